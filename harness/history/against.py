"""What `harness check` holds a run against: the sides, and how each case did in earlier runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from harness.errors import UsageError
from harness.history import queries
from harness.history.asked import Asked
from harness.history.diff import RUNS_AT_MOST, Side
from harness.history.gate import by_series
from harness.history.location import locate
from harness.history.points import Point
from harness.history.sides import Sides
from harness.records import Record

BASELINE = "baseline"
_LAST = re.compile(rf"{queries.LAST}:(\d{{1,4}})")
EARLIER = 30
"""Earlier runs of a case that tell how a figure varies."""


class Match(Record, frozen=True, kw_only=True):
    """A run, what it is held against, and what came before."""

    before: Side
    after: Side
    earlier: dict[str, list[Point]]
    """Series of `after` -> the same case in earlier runs, oldest first."""
    whole: bool
    """Whether all of `before` was meant, not just the cases of this run."""
    again: list[Point] = msgspec.field(default_factory=list)
    """Cases of `after` that an earlier check measured again."""
    asked: Asked | None = None
    """What `after` was asked for; None where its file cannot be read."""


def match(run: str, against: str, store: str | None) -> Match:
    """Find a run and what it is held against.

    Raises:
        UsageError: Nothing answers to a name, or there is nothing of the kind to hold it against.
        StoreError: The history or a run file cannot be read.
    """
    sides = Sides(store)
    after = sides.side(run, as_stored=True)
    if len(after.runs) != 1:
        raise UsageError(f"'{run}' stands for {len(after.runs)} runs, and one run is checked", hint="harness history")
    after = msgspec.structs.replace(after, name=after.runs[0])
    asked = sides.asked(run, after.runs[0])
    earlier, again = _from_history(sides, store, after)
    last = _LAST.fullmatch(against)
    if against != BASELINE and last is None:
        before = _named(sides, against, after)
        return Match(before=before, after=after, earlier=earlier, whole=True, again=again, asked=asked)
    if last is not None and not 1 <= int(last[1]) <= EARLIER:
        raise UsageError(f"--against {against}: a number from 1 to {EARLIER} is wanted", hint="--against last:10")
    before = _newest(sides, after, earlier, int(last[1])) if last else _baseline(sides, after, asked)
    return Match(before=before, after=after, earlier=earlier, whole=False, again=again, asked=asked)


def _from_history(sides: Sides, store: str | None, after: Side) -> tuple[dict[str, list[Point]], list[Point]]:
    location = locate(store)
    if location is None or (location.path is not None and not location.path.exists()):
        return {}, []  # run files stand for themselves
    series = dict.fromkeys(point.series for point in after.points)
    with sides.history.database.read() as connection:
        found = queries.earlier(connection, series, most=EARLIER, before=after.points[0].created)
        return found, queries.measured_again(connection, after.runs[0])


def _named(sides: Sides, against: str, after: Side) -> Side:
    before = sides.side(against, as_stored=True)
    if before.runs == after.runs:
        raise UsageError(
            f"'{against}' is the run itself, {after.name}", hint="--against last~1, or another run, or: last:10"
        )
    # A label may be on the run that is checked, too.
    points = [point for point in before.points if point.run != after.runs[0]]
    newest = [point for found in by_series(points).values() for point in found[-RUNS_AT_MOST:]]
    return msgspec.structs.replace(before, points=newest)


def _baseline(sides: Sides, after: Side, asked: Asked | None) -> Side:
    # Also of a model that an interrupted run did not get to.
    models = {point.key.model for point in after.points} | {place.model for place in (asked.places if asked else ())}
    with sides.history.database.read() as connection:
        points = queries.baselines_of_models(connection, models)
    points = [point for point in points if point.run != after.runs[0]] or points
    if not points:
        raise UsageError(
            f"no case of {', '.join(sorted(models))} has a baseline",
            hint="harness baseline set RUN, or --against last~1, last:10, a run, a label or BACKEND@VERSION",
        )
    if all(point.run == after.runs[0] for point in points):
        raise UsageError(f"{after.name} is the baseline itself", hint="harness check another run, or --against last:10")
    return Side(name=BASELINE, points=points)


def _newest(sides: Sides, after: Side, earlier: dict[str, list[Point]], most: int) -> Side:
    name = f"{queries.LAST}:{most}"
    points = [point for found in earlier.values() for point in found[-most:]]
    with sides.history.database.read() as connection:
        if points:
            newest = max(points, key=lambda point: (point.created, point.run)).run
            known = {point.series for point in points}
            points += [one for one in queries.points_of_run(connection, newest) if one.series not in known]
        else:
            points = _of_same_models(sides, after)
    if not points:
        raise UsageError(
            f"there is no run before {after.name} in {sides.location.shown}", hint="check a later run, or --against RUN"
        )
    return Side(name=name, points=points)


def _of_same_models(sides: Sides, after: Side) -> list[Point]:
    """Return cases that cannot be compared, to say why not."""
    found: list[Point] = []
    with sides.history.database.read() as connection:
        for model in sorted({point.key.model for point in after.points}):
            points: Sequence[Point] = queries.points(connection, queries.Filter(model=model), 50)
            found += [point for point in points if point.created < after.points[0].created]
    return found
