"""Text for a terminal: the table, split by theme where it is wider than the window, and the text under it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import click

from harness.api import Report
from harness.summary import RunSummary
from reports.blocks import (
    Banners,
    Block,
    Code,
    Failures,
    Heading,
    Legend,
    Line,
    Plot,
    Problem,
    Section,
    Sentence,
    Timeline,
)
from reports.formatting import columns, shorten
from reports.page import Page, draw
from reports.plot import draw_plot, draw_timeline
from reports.table import Cell, Column, Emphasis, Table

GAP = "  "
PROVIDER_CHARACTERS = 32
_GLUE = "\N{NO-BREAK SPACE}"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:s|ms|µs|MB|GB|%)(?:[ ,;:)]|$))")
COLORS: dict[Emphasis, str] = {"good": "green", "bad": "red", "muted": "bright_black"}


class Terminal(Report):
    """For people at a terminal."""

    name = "terminal"
    summary = "a table for the terminal, with colour where the terminal has it"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the text.

        With a `width` no line of a table or of prose is longer, as far as its words allow: the table is split
        by theme, prose is wrapped. Commands and log lines stay whole, so that they can be copied.
        """
        return render_page(draw(run), color=color, width=width)


def render_page(page: Page, *, color: bool = False, width: int | None = None) -> str:
    """Return a page as text for a terminal; see `Terminal.render`."""
    paint = Paint(color)
    shown = [
        paint.bold(_wrap(page.title, width)),
        *chain.from_iterable(_block(block, paint, width) for block in page.blocks),
    ]
    if page.closing:
        shown.append(paint.bold(_wrap(page.closing, width)))
    return "\n\n".join(shown) + "\n"


@dataclass(frozen=True)
class Paint:
    """Colours, or none."""

    color: bool

    def __call__(self, text: str, emphasis: Emphasis) -> str:
        """Return text in the colour of its emphasis, line by line, so that no colour runs over a line's end."""
        if not self.color or emphasis not in COLORS:
            return text
        return "\n".join(click.style(line, fg=COLORS[emphasis]) for line in text.split("\n"))

    def bold(self, text: str) -> str:
        """Return text in bold."""
        return "\n".join(click.style(line, bold=True) for line in text.split("\n")) if self.color else text


def split(table: Table, width: int | None) -> list[Table]:
    """Return the table in parts that each fit `width`, all of them led by the first column.

    First by theme, such as speed and cost; a theme that is still too wide is cut into as few parts of about equal
    length as fit. What is too wide with a single column beside the first stays so.
    """
    if width is None or _width(table) <= width:
        return [table]
    parts: list[Table] = []
    for theme in table.themes:
        for length in range(len(theme), 0, -1):
            cut = [table.select([table.columns[0].key, *keys]) for keys in _even(theme, length)]
            if max(map(_width, cut)) <= width:
                break
        parts += cut
    return parts


def _block(block: Block, paint: Paint, width: int | None) -> Iterator[str]:
    match block:
        case Heading():
            rule = "=" * min(columns(block.text), width or columns(block.text))
            yield f"{paint.bold(_wrap(block.text, width))}\n{rule}"
        case Banners():
            yield "\n".join(_statements(block.lines, paint, width))
        case Table():
            yield from (_grid(part, paint) for part in split(block, width))
        case Legend():
            yield "\n".join(paint(_wrap(text, width), "muted") for text in block.texts)
        case Plot():
            if lines := draw_plot(block, width):
                yield "\n".join(lines)
        case Timeline():
            if lines := draw_timeline(block, width):
                yield "\n".join(lines)
        case Section():
            yield "\n".join([paint.bold(_wrap(block.title, width)), *_statements(block.lines, paint, width)])
        case Failures():
            lines = [line for problem in block.problems for line in _problem(problem, paint, width)]
            yield "\n".join([paint.bold("failures"), *lines])
        case Code():
            yield "\n".join([paint.bold(block.title), *(f"    {line}".rstrip() for line in block.lines)])
        case Sentence():
            yield paint.bold(_wrap(block.text, width))


def _even(keys: Sequence[str], longest: int) -> list[Sequence[str]]:
    parts = -(-len(keys) // longest)
    each = -(-len(keys) // parts)
    return [keys[start : start + each] for start in range(0, len(keys), each)]


def _width(table: Table) -> int:
    return sum(_widths(table)) + len(GAP) * (len(table.columns) - 1)


def _widths(table: Table) -> list[int]:
    return [
        max(columns(text) for text in (column.title, column.unit, *(_shown(row[index], column) for row in table.rows)))
        for index, column in enumerate(table.columns)
    ]


def _grid(table: Table, paint: Paint) -> str:
    # Not by tabulate, which takes a wide character for one column unless a further package is installed.
    widths = _widths(table)

    def line(cells: Sequence[tuple[str, Emphasis]]) -> str:
        parts = []
        for (text, emphasis), width, column in zip(cells, widths, table.columns, strict=True):
            padding = " " * (width - columns(text))
            painted = paint(text, emphasis)
            parts.append(padding + painted if column.align == "right" else painted + padding)
        return GAP.join(parts).rstrip()

    heads: list[list[tuple[str, Emphasis]]] = [[(column.title, "") for column in table.columns]]
    if any(column.unit for column in table.columns):
        heads.append([(column.unit, "") for column in table.columns])
    rows = [
        [(_shown(cell, column), cell.emphasis) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    return "\n".join([*map(line, heads), GAP.join("-" * width for width in widths), *map(line, rows)])


def _shown(cell: Cell, column: Column) -> str:
    return shorten(cell.text, PROVIDER_CHARACTERS) if column.key == "provider" else cell.text


def _statements(lines: Sequence[Line], paint: Paint, width: int | None) -> Iterator[str]:
    # A few long names must not push every text to the right edge.
    margin = min(max(columns(line.label) for line in lines), 24)
    for line in lines:
        label = line.label + " " * (margin - columns(line.label))
        first, rest = (f"  {label}  ", " " * (margin + 4)) if margin else ("  ", "  ")
        yield paint(_wrap(line.text, width, first=first, rest=rest), line.emphasis)


def _problem(problem: Problem, paint: Paint, width: int | None) -> Iterator[str]:
    head = f"{problem.subject}: {problem.status} in stage {problem.stage}"
    yield "  " + paint(head, problem.emphasis)
    yield _wrap(problem.reason, width, first="    ", rest="    ")
    if problem.hint:
        yield _wrap(problem.hint, width, first="    hint: ", rest="          ")
    yield from (f"    | {line}" for line in problem.log_tail)
    if problem.log:
        yield f"    log: {problem.log}"
    if problem.reproduce:
        yield f"    reproduce: {problem.reproduce}"


def _wrap(text: str, width: int | None, *, first: str = "", rest: str = "") -> str:
    if width is None:
        return first + text
    # Commands and paths are copied: break neither words nor at hyphens. A number keeps its unit.
    filled = textwrap.fill(
        _BEFORE_UNIT.sub(_GLUE, text),
        max(width, len(rest) + 20),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_GLUE, " ")
