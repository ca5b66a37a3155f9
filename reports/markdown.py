"""Markdown for pull requests and issues: a GitHub table, text under it, details folded away."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import chain

from harness.api import Report
from harness.summary import RunSummary
from reports.blocks import (
    FOLDED,
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
from reports.page import Page, draw
from reports.table import Cell, Column, Table

_MEANS_SOMETHING = re.compile(r"([\\`*_\[\]~#$])")
_BACKTICKS = re.compile(r"`+")


class Markdown(Report):
    """For pull requests, issues and wikis."""

    name = "markdown"
    summary = "a GitHub table, its details folded away"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the document; `color` and `width` change nothing."""
        return render_page(draw(run))


def render_page(page: Page) -> str:
    """Return a page as a Markdown document."""
    blocks = [f"## {escape(page.title)}", *chain.from_iterable(map(_block, page.blocks))]
    blocks.append(f"**{escape(page.closing)}**" if page.closing else "")
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, inside and outside a table.

    A pipe becomes an entity: in a table, a backslash in front of an escaped pipe cannot itself be escaped.
    """
    return _MEANS_SOMETHING.sub(r"\\\1", html.escape(text, quote=False)).replace("|", "&#124;")


def fence(lines: tuple[str, ...] | list[str]) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for line in lines for run in _BACKTICKS.findall(line)), default=0)
    ticks = "`" * max(3, longest + 1)
    return "\n".join([f"{ticks}text", *lines, ticks])


def _block(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"### {escape(block.text)}"
        case Banners():
            yield from (f"> **{escape(line.label)}**: {escape(line.text)}" for line in block.lines)
        case Table():
            yield "\n".join(_table(block))
        case Legend():
            yield from map(escape, block.texts)
        case Plot() | Timeline():
            return  # the table before it holds the same numbers
        case Section() if block.title in FOLDED:
            lines = "\n".join(map(_item, block.lines))
            yield f"<details><summary>{html.escape(block.title)}</summary>\n\n{lines}\n\n</details>"
        case Section():
            yield f"{'#' * block.level} {escape(block.title)}\n\n" + "\n".join(map(_item, block.lines))
        case Failures():
            yield f"{'#' * block.level} failures\n\n{_overview(block.problems)}"
            yield from ("\n\n".join(_problem(problem)) for problem in block.problems)
        case Code():
            yield f"{escape(block.title)}\n\n{fence(block.lines)}"
        case Sentence():
            yield f"**{escape(block.text)}**"


def _table(table: Table) -> Iterator[str]:
    yield _line(_heading(column) for column in table.columns)
    yield _line("---:" if column.align == "right" else ":---" for column in table.columns)
    for row in table.rows:
        yield _line(_cell(cell) for cell in row)


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(column: Column) -> str:
    return escape(f"{column.title} {column.unit}".rstrip())


def _cell(cell: Cell) -> str:
    # There is no colour here, and bold for all that is well would hide what is not.
    return f"**{escape(cell.text)}**" if cell.emphasis == "bad" else escape(cell.text)


def _item(line: Line) -> str:
    label = f"**{escape(line.label)}**: " if line.label else ""
    return f"- {label}{escape(line.text)}"


def _overview(problems: tuple[Problem, ...]) -> str:
    return "\n".join(f"- **{escape(one.subject)}**: {escape(one.status)}, {escape(one.reason)}" for one in problems)


def _problem(problem: Problem) -> Iterator[str]:
    summary = f"{problem.subject}: {problem.status} in stage {problem.stage}"
    yield f"<details><summary>{html.escape(summary)}</summary>"
    facts = [("reason", problem.reason), ("hint", problem.hint), ("log", problem.log)]
    yield "\n".join(f"- **{label}**: {escape(text)}" for label, text in facts if text)
    if problem.log_tail:
        yield "The end of the log:"
        yield fence(problem.log_tail)
    if problem.reproduce:
        yield "To reproduce:"
        yield fence([problem.reproduce])
    yield "</details>"
