"""What the history shows, in the formats that people read: entry points by name, see `harness.registry.VIEWS`."""

from __future__ import annotations

from harness.history.diff import Difference
from harness.history.gate import Check
from harness.history.points import Listing
from harness.history.trends import Trends
from reports import gate_junit, markdown, terminal
from reports.changes import draw_difference
from reports.gate import draw_check
from reports.page import Page
from reports.steps import draw_trends
from reports.timelines import draw_listing


def listing(found: Listing, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return what `harness history` prints."""
    return rendered(draw_listing(found), format_=format_, color=color, width=width)


def difference(found: Difference, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return what `harness diff` prints."""
    return rendered(draw_difference(found), format_=format_, color=color, width=width)


def trends(found: Trends, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return what `harness trends` prints."""
    return rendered(draw_trends(found), format_=format_, color=color, width=width)


def check(found: Check, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return what `harness check` prints."""
    if format_ == "junit":
        return gate_junit.render(found)
    return rendered(draw_check(found), format_=format_, color=color, width=width)


def rendered(page: Page, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return a page as text; Markdown has neither colour nor width."""
    if format_ == "markdown":
        return markdown.render_page(page)
    return terminal.render_page(page, color=color, width=width)
