"""Two sides of the history, case by case: which cases can be compared, what changed, and what is to blame for it.

A side is a run, the runs of a label, or all runs of one version of a backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from harness.history.changes import Change, change
from harness.history.keys import differing
from harness.history.points import METRICS, Point
from harness.records import Record

RUNS_AT_MOST = 10
"""Of a label or a version: the newest, for older ones say less about today's machine."""


class Side(Record, frozen=True, kw_only=True):
    """One of two things that are compared."""

    name: str
    """As the user gave it."""
    points: list[Point]
    """Oldest first."""
    notes: list[str] = msgspec.field(default_factory=list)
    """What must be known of its figures."""
    of_version: bool = False
    """Whether it is all that is known of one version of a backend, whatever had been asked for."""

    @property
    def runs(self) -> list[str]:
        """Return the runs that it is made of, oldest first."""
        return list(dict.fromkeys(point.run for point in self.points))


class Row(Record, frozen=True, kw_only=True):
    """A case that is on both sides."""

    workload: str
    case: str
    before: Point
    """The newest of its side, as `after`."""
    after: Point
    runs: tuple[int, int]
    """How many runs each side has of it."""
    changes: list[Change]
    """One a metric that both sides have."""
    circumstances: dict[str, tuple[str, str]]
    """What changed besides."""

    def of(self, metric: str) -> Change | None:
        """Return the change of one figure."""
        return next((one for one in self.changes if one.metric == metric), None)


class Unlike(Record, frozen=True, kw_only=True):
    """A case that has no counterpart."""

    side: str
    workload: str
    case: str
    nearest: str = ""
    """The case on the other side that is most like it."""
    differs: dict[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    """In what: before, after. Empty where the other side has nothing of the kind."""
    unasked: bool = False
    """Whether the other side is a run that was not asked for it."""


class Difference(Record, frozen=True, kw_only=True):
    """All that can be said of two sides."""

    before: Side
    after: Side
    rows: list[Row]
    unlike: list[Unlike]


def compare(before: Side, after: Side) -> Difference:
    """Hold two sides against each other. Pure: their points are all it knows."""
    if before.of_version and after.of_version:
        # The release that was asked for is what the sides differ by, not a reason why they could not be compared.
        before, after = _of_any_release(before), _of_any_release(after)
    old, new = _by_series(before.points), _by_series(after.points)
    rows, unlike = [], []
    for series, now in new.items():
        then = old.get(series)
        subject = differing(then[-1].subject, now[-1].subject) if then else {}
        if then and not subject:
            rows.append(row(then, now))
        elif then:
            unlike.append(_unlike(after.name, now[-1], then[-1], subject))
    matched = {series for series in new if series in old}
    unlike += [_lonely(after, new[series][-1], before, flip=True) for series in new if series not in matched]
    unlike += [_lonely(before, old[series][-1], after, flip=False) for series in old if series not in matched]
    return Difference(before=before, after=after, rows=rows, unlike=_once(unlike))


def row(then: Sequence[Point], now: Sequence[Point]) -> Row:
    """Compare one case with itself in other runs."""
    changes = [found for metric in METRICS if (found := change(metric, then, now)) is not None]
    return Row(
        workload=now[-1].workload,
        case=now[-1].case,
        before=then[-1],
        after=now[-1],
        runs=(len(then), len(now)),
        changes=changes,
        circumstances=differing(then[-1].circumstances, now[-1].circumstances),
    )


def _of_any_release(side: Side) -> Side:
    points = []
    for point in side.points:
        key = msgspec.structs.replace(point.key, release="")
        points.append(msgspec.structs.replace(point, key=key, series=key.series))
    return msgspec.structs.replace(side, points=points)


def _by_series(points: Iterable[Point]) -> dict[str, list[Point]]:
    out: dict[str, list[Point]] = {}
    for point in points:
        out.setdefault(point.series, []).append(point)
    return {series: found[-RUNS_AT_MOST:] for series, found in out.items()}


def _lonely(side: Side, point: Point, other: Side, *, flip: bool) -> Unlike:
    kin = [one for one in other.points if one.key.backend == point.key.backend and one.key.model == point.key.model]
    if not kin:
        return Unlike(side=side.name, workload=point.workload, case=point.case)
    nearest = min(kin, key=lambda one: (len(differing(point.key, one.key)), one.case != point.case))
    differs = differing(nearest.key, point.key) if flip else differing(point.key, nearest.key)
    return _unlike(side.name, point, nearest, differs)


def _unlike(side: str, point: Point, nearest: Point, differs: dict[str, tuple[str, str]]) -> Unlike:
    return Unlike(side=side, workload=point.workload, case=point.case, nearest=nearest.case, differs=differs)


def _once(unlike: list[Unlike]) -> list[Unlike]:
    """Return each pair once: where A has no counterpart but something near in B, B mostly says the same of A."""
    seen: set[tuple[object, ...]] = set()
    out = []
    for one in unlike:
        pair = (one.workload, frozenset((one.case, one.nearest)), tuple(sorted(one.differs.items())))
        if not one.differs or pair not in seen:
            out.append(one)
        seen.add(pair)
    return out
