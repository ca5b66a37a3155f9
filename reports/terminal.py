"""Text for a terminal: the table, split by theme where it is wider than the window, and the text under it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from tabulate import SEPARATING_LINE, tabulate

from harness.api import Report
from harness.summary import RunSummary
from reports.formatting import shorten
from reports.page import draw
from reports.sections import Line, Problem, Section
from reports.table import Cell, Column, Emphasis, Table

NAME = "case"
SPEED = ("p50_ns", "p95_ns", "p99_ns", "host_to_host_p50_ns", "throughput_per_s", "ratio", "verdict", "status")
COST = (
    "version",
    "provider",
    "precision",
    "compile_s",
    "warm_load_s",
    "first_run_s",
    "engine_bytes",
    "peak_bytes",
    "drift_relative_l2",
    "drift_cosine",
    "drift_passed",
)
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
        page = draw(run)
        paint = Paint(color)
        blocks = [paint.bold(page.title)]
        if page.banners:
            blocks.append("\n".join(_statements(page.banners, paint, width)))
        if page.table.rows:
            blocks += [_grid(part, paint) for part in split(page.table, width)]
        if page.legend:
            blocks.append("\n".join(paint(_wrap(text, width), "muted") for text in page.legend))
        blocks += [_section(section, paint, width) for section in page.sections]
        if page.problems:
            shown = "\n".join(line for problem in page.problems for line in _problem(problem, paint, width))
            blocks.append(f"{paint.bold('failures')}\n{shown}")
        if page.closing:
            blocks.append(paint.bold(_wrap(page.closing, width)))
        return "\n\n".join(blocks) + "\n"


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
    """Return the table in parts that each fit `width`, all of them led by the case's name.

    First by theme, speed and cost; a theme that is still too wide is cut into as few parts of about equal
    length as fit. What is too wide with a single column beside the name stays so.
    """
    if width is None or _width(table) <= width:
        return [table]
    parts: list[Table] = []
    for theme in (SPEED, COST):
        for length in range(len(theme), 0, -1):
            cut = [table.select([NAME, *keys]) for keys in _even(theme, length)]
            if max(map(_width, cut)) <= width:
                break
        parts += cut
    return parts


def _even(keys: Sequence[str], longest: int) -> list[Sequence[str]]:
    parts = -(-len(keys) // longest)
    each = -(-len(keys) // parts)
    return [keys[start : start + each] for start in range(0, len(keys), each)]


def _width(table: Table) -> int:
    return max(len(line) for line in _grid(table, Paint(False)).split("\n"))


def _grid(table: Table, paint: Paint) -> str:
    rows = [
        [paint(_shown(cell, column), cell.emphasis) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    heads = [[column.title for column in table.columns], [column.unit for column in table.columns]]
    # As rows, because tabulate pads real headers by two characters a column. What it draws above and below goes.
    text = tabulate(
        [*heads, SEPARATING_LINE, *rows],
        tablefmt="simple",
        colalign=[column.align for column in table.columns],
        disable_numparse=True,
    )
    return "\n".join(line.rstrip() for line in text.split("\n")[1:-1])


def _shown(cell: Cell, column: Column) -> str:
    return shorten(cell.text, PROVIDER_CHARACTERS) if column.key == "provider" else cell.text


def _section(section: Section, paint: Paint, width: int | None) -> str:
    return "\n".join([paint.bold(section.title), *_statements(section.lines, paint, width)])


def _statements(lines: Sequence[Line], paint: Paint, width: int | None) -> Iterator[str]:
    # A few long names must not push every text to the right edge.
    margin = min(max(len(line.label) for line in lines), 24)
    for line in lines:
        first, rest = (f"  {line.label:<{margin}}  ", " " * (margin + 4)) if margin else ("  ", "  ")
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
