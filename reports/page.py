"""The whole report without a format: title, banners, table, legend, sections, failures, and one last sentence."""

from __future__ import annotations

from dataclasses import dataclass

from harness.summary import RunSummary
from reports import sections
from reports.sections import Line, Problem, Section
from reports.table import Table, draw_table


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a format for people shows, from top to bottom. All text is one line each, without control characters."""

    title: str
    banners: tuple[Line, ...]
    """What the reader must know before any number."""
    table: Table
    legend: tuple[str, ...]
    """How to read the columns."""
    sections: tuple[Section, ...]
    problems: tuple[Problem, ...]
    closing: str


def draw(summary: RunSummary) -> Page:
    """Return the report of a run."""
    return Page(
        title=sections.title(summary),
        banners=tuple(sections.banners(summary)),
        table=draw_table(summary),
        legend=tuple(sections.legend(summary)),
        sections=tuple(section for section in sections.sections(summary) if section.lines),
        problems=tuple(sections.problems(summary)),
        closing=sections.closing(summary),
    )
