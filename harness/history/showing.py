"""Behind `harness history`, `diff` and `trends`: what is asked for, found and printed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any  # what a view takes is known to the view

import click
import msgspec
import sqlalchemy as sa

from harness import registry
from harness.cli import GATE_FAILED, NO_RESULT, OK
from harness.errors import UsageError
from harness.history import queries
from harness.history.diff import compare
from harness.history.managing import opened
from harness.history.points import METRICS, Listing, Metric
from harness.history.sides import Sides


def printed(view: str, format_: str, content: object, **given: Any) -> None:
    """Print something on stdout, through a view or as JSON."""
    if format_ == "json":
        # Encoding turns NaN and infinities into null, which the standard library's encoder cannot.
        click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
        return
    terminal = sys.stdout is not None and sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else None
    text = registry.view(view)(content, format_=format_, color=color, width=width, **given)
    click.echo(text, nl=False, color=color)


def show_history(filter_: queries.Filter, metric: Metric, most: int, store: str | None, format_: str) -> int:
    """Carry out `harness history`; return the exit code."""
    history = opened(store)
    with history.database.read() as connection:
        points = queries.points(connection, filter_, most)
        total = len(points) if len(points) < most else queries.count(connection, filter_)
        if not total:
            _explain_nothing(connection, filter_)
    printed("listing", format_, Listing(points=points, total=total, metric=metric))
    return OK


def _explain_nothing(connection: sa.Connection, filter_: queries.Filter) -> None:
    """Refuse a filter that lets nothing through, with what there is in place of what was asked for.

    Raises:
        UsageError: What the filter asks for is not in the history.
    """
    known: dict[str, Callable[[], list[str]]] = {
        "model": lambda: queries.models(connection),
        "backend": lambda: queries.backends(connection),
        "version": lambda: queries.versions(connection, filter_.backend),
        "label": lambda: queries.labels(connection),
    }
    for name, look_up in known.items():
        value, names = getattr(filter_, name), look_up()
        if value is not None and value not in names and "*" not in value:
            raise registry.unknown(f"{name} in the history", value, names or ["none"])
    raise UsageError("nothing in the history fits all of these filters", hint="leave one out: harness history")


def show_difference(before: str, after: str, store: str | None, format_: str) -> int:
    """Carry out `harness diff`; return the exit code."""
    sides = Sides(store)
    one, other = sides.side(before), sides.side(after)
    if one.runs == other.runs and {point.series for point in one.points} == {point.series for point in other.points}:
        raise UsageError(
            f"'{before}' and '{after}' are the same run, {', '.join(one.runs)}"
            if len(one.runs) == 1
            else f"'{before}' and '{after}' are the same runs",
            hint="harness diff last~1 last compares the newest with the one before",
        )
    found = compare(one, other)
    printed("difference", format_, found)
    return OK if found.rows else NO_RESULT


def show_trends(
    filter_: queries.Filter,
    metrics: Sequence[Metric],
    *,
    since: str | None,
    most: int,
    least: float,
    store: str | None,
    format_: str,
    fail: bool,
) -> int:
    """Carry out `harness trends`; return the exit code.

    Args:
        filter_: Which cases.
        metrics: Which figures; empty: all.
        since: Leave out steps before; ISO 8601, UTC.
        most: How many runs of each case are looked at, the newest.
        least: The smallest relative change that is a step.
        fail: Whether a figure that became worse is a failure.
    """
    from harness.history.trends import find_trends

    with opened(store).database.read() as connection:
        series = queries.series(connection, filter_)
        if not series:
            _explain_nothing(connection, filter_)
        cases = [queries.newest_of_series(connection, one, most) for one in series]
    found = find_trends(cases, metrics or METRICS, least=least, since=since)
    printed("trends", format_, found)
    return GATE_FAILED if fail and any(trend.regressed for trend in found.trends) else OK
