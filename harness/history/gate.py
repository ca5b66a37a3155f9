"""Whether a run is worse than what it is held against. Pure functions of points; who finds them is `against`.

A figure is over its limit where the ratio of now to then is. It is a regression where the statistics agree:

| figure                         | over its limit, and                                     | becomes      |
|--------------------------------|---------------------------------------------------------|--------------|
| latency                        | SLOWER, by `changes.latency_change`                     | `suspicious` |
| latency                        | UNDECIDED                                               | `suspicious` |
| latency                        | nothing that could be to blame changed                  | `excused`    |
| compile time, memory           | SLOWER against the spread of its history, or no history | `suspicious` |
| compile time, memory           | within that spread                                      | `pass`       |
| size of the engine, drift      | the same two rows, but it need not be measured again    | `regression` |

`suspicious` is measured again. With all measurements together it is a `regression`, or `undecided` where it is still
over its limit and no interval says so, or else `unconfirmed`. Where it cannot be measured again the first measurement
decides. A case that fails now and did not then goes the same way.

Where other processes kept the machine busy, they slow down one case more than another, and one run more than the next,
which no interval of a run holds. Then the whole interval must be over the limit, and so must the case's own latency,
not just its ratio to another case.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from harness.history.asked import Asked
from harness.history.changes import Change, latency_change
from harness.history.diff import Row, Side, Unlike
from harness.history.keys import Key, differing, place_of
from harness.history.limits import Limits
from harness.history.points import METRICS, Metric, Point
from harness.history.spread import figure_change, values
from harness.records import Record

Outcome = Literal["pass", "regression", "suspicious", "undecided", "unconfirmed", "excused", "improvement"]
REPEATED: tuple[Metric, ...] = ("latency", "compile", "memory", "device-memory", "compile-memory")
"""What may come out otherwise when it is measured again; the engine and its outputs are what they are."""
COMPILED: tuple[Metric, ...] = ("compile", "compile-memory")
"""What is measured again by compiling again."""
LEAST_COMPILE_S = 0.1
"""A compilation that takes so little longer is no regression, whatever its share."""
BUSY_SHARE = 0.25
"""Of the CPU time that others took while a case was sampled, from which on the machine was busy. As in
`harness.rounds`, which brings what measures; a test holds the two together."""
LEAST_DRIFT = 1e-6
"""Relative L2 distance below which drift may grow by any factor: some roundings of float32."""
SOUND = ("ok", "compiled")


class Figure(Record, frozen=True, kw_only=True):
    """One figure of one case, judged."""

    metric: Metric
    change: Change
    limit: float
    """The largest ratio that passes."""
    outcome: Outcome
    earlier: int = 0
    """Runs that show how it varies, for a figure that has one value a run."""
    first: Change | None = None
    """What the run alone said, where it was measured again."""
    busy: bool = False
    """Whether a latency was measured on a busy machine, then or now."""


class Judged(Record, frozen=True, kw_only=True):
    """A case that is on both sides."""

    row: Row
    figures: list[Figure]
    status: Outcome
    """Whether it fails now and did not then, or the other way round."""
    again: list[str] = msgspec.field(default_factory=list)
    """Runs in which it was measured again."""
    not_again: str = ""
    """Why it was not, where it was suspicious."""

    @property
    def outcomes(self) -> set[Outcome]:
        """Return everything that it is."""
        return {self.status, *(figure.outcome for figure in self.figures)}


class Missing(Record, frozen=True, kw_only=True):
    """A case that was there then, was asked for again, and is gone."""

    workload: str
    case: str
    run: str


class Check(Record, frozen=True, kw_only=True):
    """All that is to be said of a run."""

    outcome: Literal["passed", "failed", "nothing compared"]
    before: Side
    after: Side
    limits: Limits
    judged: list[Judged]
    missing: list[Missing]
    unlike: list[Unlike]
    notes: list[str] = msgspec.field(default_factory=list)

    @property
    def suspects(self) -> list[Judged]:
        """Return the cases that are to be measured again."""
        return [one for one in self.judged if "suspicious" in one.outcomes]


class Again(Record, frozen=True, kw_only=True):
    """What measuring again brought: points by series, of the run and of what it is held against."""

    now: dict[str, list[Point]] = msgspec.field(default_factory=dict)
    then: dict[str, list[Point]] = msgspec.field(default_factory=dict)
    reasons: dict[str, str] = msgspec.field(default_factory=dict)
    """Series -> why it was not measured again."""
    notes: list[str] = msgspec.field(default_factory=list)


def judge(
    before: Side,
    after: Side,
    earlier: Mapping[str, Sequence[Point]],
    limits: Limits,
    *,
    asked: Asked | None = None,
    whole: bool = True,
) -> Check:
    """Hold a run against something.

    Args:
        earlier: Series -> the same case in earlier runs, oldest first.
        asked: What the run was asked for. None: not known, and so all that was there then.
        whole: Whether all of `before` was meant: then what has no counterpart is said, also of other workloads.
    """
    old, new = by_series(before.points), by_series(after.points)
    judged, unlike = [], []
    for series, now in new.items():
        then = old.get(series)
        if then is None:
            continue
        if subject := differing(then[-1].subject, now[-1].subject):
            unlike.append(_unlike(after.name, now[-1], then[-1], subject))
        else:
            judged.append(_judged(then, now, earlier.get(series, ()), limits))
    lonely_then = [points[-1] for series, points in old.items() if series not in new]
    lonely_now = [points[-1] for series, points in new.items() if series not in old]
    missing, more = _without_counterpart(before, after, lonely_then, lonely_now, asked, whole=whole)
    return _concluded(
        Check(
            outcome="passed",
            before=before,
            after=after,
            limits=limits,
            judged=judged,
            missing=missing,
            unlike=[*unlike, *more],
            notes=[*before.notes, *after.notes],
        )
    )


def settle(check: Check, again: Again, earlier: Mapping[str, Sequence[Point]]) -> Check:
    """Decide what is suspicious, with what was measured again where it was."""
    old, new = by_series(check.before.points), by_series(check.after.points)
    judged = []
    for one in check.judged:
        series = one.row.after.series
        if "suspicious" not in one.outcomes:
            judged.append(one)
            continue
        more = again.now.get(series, [])
        then, now = [*old[series], *again.then.get(series, [])], [*new[series], *more]
        settled = _settled(one, then, now, earlier.get(series, ()), check.limits) if more else _first_only(one)
        runs = [point.run for point in [*more, *again.then.get(series, [])]]
        reason = "" if more else again.reasons.get(series, "")
        judged.append(msgspec.structs.replace(settled, again=runs, not_again=reason))
    return _concluded(msgspec.structs.replace(check, judged=judged, notes=[*check.notes, *again.notes]))


def by_series(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Return the points of each series, in their order."""
    out: dict[str, list[Point]] = {}
    for point in points:
        out.setdefault(point.series, []).append(point)
    return out


def _judged(then: list[Point], now: list[Point], earlier: Sequence[Point], limits: Limits) -> Judged:
    figures = []
    for metric in METRICS:
        found = _change(metric, then, now, earlier)
        if found is None:
            continue
        count = 0 if metric == "latency" else len(values(metric, earlier))
        outcome = _outcome(found, limits)
        figures.append(
            Figure(
                metric=metric,
                change=found,
                limit=limits.of(metric),
                outcome=outcome,
                earlier=count,
                busy=metric == "latency" and (_busy(then) or _busy(now)),
            )
        )
    best = min(reversed(then), key=lambda point: _rank(point, limits))
    row = Row(
        workload=now[-1].workload,
        case=now[-1].case,
        before=best,
        after=now[-1],
        runs=(len(then), len(now)),
        changes=[figure.change for figure in figures],
        circumstances=differing(then[-1].circumstances, now[-1].circumstances),
    )
    return Judged(row=row, figures=figures, status=_status(best, now[-1], limits))


def _change(metric: Metric, then: list[Point], now: list[Point], earlier: Sequence[Point]) -> Change | None:
    if metric == "latency":
        return latency_change(then, now)
    # How far outputs are from the reference does not vary from run to run as a duration does.
    return figure_change(metric, then, now, () if metric == "drift" else earlier)


def _outcome(change: Change, limits: Limits) -> Outcome:
    if not _over(change, limits):
        return "improvement" if _better(change, limits) else "pass"
    if change.metric == "latency":
        return "excused" if change.excused else "suspicious"
    if change.basis != "none" and change.verdict != "SLOWER":
        return "pass"
    return "suspicious" if change.metric in REPEATED else "regression"


def _over(change: Change, limits: Limits) -> bool:
    if change.metric == "drift" and limits.drift.kind == "distance":
        return change.after > limits.drift.value
    if change.metric == "drift" and change.after < LEAST_DRIFT:
        return False
    if change.metric == "compile" and change.after - change.before < LEAST_COMPILE_S:
        return False
    return change.ratio.value > limits.of(change.metric)


def _better(change: Change, limits: Limits) -> bool:
    limit = limits.of(change.metric)
    if change.metric == "latency" or change.basis != "none":
        return change.verdict == "FASTER" and (change.metric == "latency" or change.ratio.value < 1 / limit)
    if change.metric == "drift" and change.before < LEAST_DRIFT:
        return False
    if change.metric == "compile" and change.before - change.after < LEAST_COMPILE_S:
        return False
    return change.ratio.value < 1 / limit


def _rank(point: Point, limits: Limits) -> int:
    if point.status in SOUND or (point.status == "drifted" and limits.drift.kind == "any"):
        return 0
    return 1 if point.status == "drifted" else 2


def _status(then: Point, now: Point, limits: Limits) -> Outcome:
    before, after = _rank(then, limits), _rank(now, limits)
    return "pass" if before == after else "suspicious" if after > before else "improvement"


def _settled(one: Judged, then: list[Point], now: list[Point], earlier: Sequence[Point], limits: Limits) -> Judged:
    best = min(now, key=lambda point: _rank(point, limits))
    status: Outcome = one.status
    if status == "suspicious":
        status = "regression" if _status(one.row.before, best, limits) == "suspicious" else "unconfirmed"
    figures = one.figures
    if one.status == "suspicious" and status == "unconfirmed":  # its figures are those of the other times
        figures = _judged(then, [point for point in now if point is not one.row.after], earlier, limits).figures
    figures = [_figure(figure, then, now, earlier, limits) for figure in figures]
    row = msgspec.structs.replace(one.row, changes=[figure.change for figure in figures])
    return msgspec.structs.replace(one, figures=figures, status=status, row=row)


def _figure(figure: Figure, then: list[Point], now: list[Point], earlier: Sequence[Point], limits: Limits) -> Figure:
    if figure.outcome != "suspicious":
        return figure
    joint = _change(figure.metric, then, now, earlier)
    assert joint is not None  # both sides had it before
    busy = figure.metric == "latency" and (_busy(then) or _busy(now))
    figure = msgspec.structs.replace(figure, change=joint, first=figure.change, busy=busy)
    outcome = _decided(figure) if _over(joint, limits) else "unconfirmed"
    return msgspec.structs.replace(figure, outcome=outcome)


def _first_only(one: Judged) -> Judged:
    figures = [
        msgspec.structs.replace(figure, outcome=_decided(figure)) if figure.outcome == "suspicious" else figure
        for figure in one.figures
    ]
    return msgspec.structs.replace(
        one, figures=figures, status="regression" if one.status == "suspicious" else one.status
    )


def _decided(figure: Figure) -> Outcome:
    """Return what a figure over its limit is, once nothing more will be measured."""
    change = figure.change
    if change.excused:
        return "excused"
    if change.metric != "latency":
        return "regression" if change.verdict == "SLOWER" or change.basis == "none" else "unconfirmed"
    moved = change.ratio.value if change.moved is None else change.moved
    clear = not figure.busy or min(change.ratio.low, moved) > figure.limit
    return "regression" if change.verdict == "SLOWER" and clear else "undecided"


def _busy(points: Sequence[Point]) -> bool:
    shares = [point.others_cpu for point in points if point.others_cpu is not None]
    return bool(shares) and statistics.median(shares) > BUSY_SHARE


def _without_counterpart(
    before: Side, after: Side, then: list[Point], now: list[Point], asked: Asked | None, *, whole: bool
) -> tuple[list[Missing], list[Unlike]]:
    """Return what is missing, and what else is on one side only.

    | a case of `before`                                | becomes                              |
    |---------------------------------------------------|--------------------------------------|
    | something like it has no counterpart either       | told with that                       |
    | of a workload of the run, which lacks it; asked   | missing, where it was sound          |
    | the same, not asked                               | told, so that it does not go unseen  |
    | all else, such as that of another number of threads | told where all of `before` was meant |
    """
    unlike: list[Unlike] = []
    paired: set[str] = set()
    for point in now:
        nearest = _nearest(point, then)
        if nearest is None:
            unlike.append(Unlike(side=after.name, workload=point.workload, case=point.case))
            continue
        paired.add(nearest.series)
        unlike.append(_unlike(after.name, point, nearest, _between(nearest.key, point.key)))
    there = {(place_of(point.key), point.case) for point in after.points}
    here = {place for place, _ in there} | (asked.places if asked else frozenset())
    missing = []
    for point in then:
        if point.series in paired:
            continue
        place = place_of(point.key)
        if place in here and (place, point.case) not in there:
            if asked is not None and not asked.covers(point):
                unlike.append(Unlike(side=before.name, workload=point.workload, case=point.case, unasked=True))
            elif point.status in SOUND:
                missing.append(Missing(workload=point.workload, case=point.case, run=point.run))
        elif whole:
            nearest = _nearest(point, after.points)
            differs = _between(point.key, nearest.key) if nearest else {}
            unlike.append(_unlike(before.name, point, nearest or point, differs))
    return missing, unlike


def _nearest(point: Point, others: list[Point]) -> Point | None:
    kin = [one for one in others if one.key.backend == point.key.backend and one.key.model == point.key.model]
    return min(kin, key=lambda one: (len(_between(point.key, one.key)), one.case != point.case), default=None)


def _between(one: Key, other: Key) -> dict[str, tuple[str, str]]:
    """Return the fields in which two keys differ; in a key, unlike elsewhere, nothing is something too."""
    a, b = msgspec.structs.asdict(one), msgspec.structs.asdict(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def _unlike(side: str, point: Point, nearest: Point, differs: dict[str, tuple[str, str]]) -> Unlike:
    return Unlike(side=side, workload=point.workload, case=point.case, nearest=nearest.case, differs=differs)


def _concluded(check: Check) -> Check:
    compared = [one for one in check.judged if one.figures or one.status != "pass"]
    failing = {"regression", "suspicious"} | ({"undecided"} if check.limits.undecided == "fail" else set())
    bad = any(failing & one.outcomes for one in check.judged) or check.missing
    outcome: Literal["passed", "failed", "nothing compared"] = "failed" if bad else "passed"
    return msgspec.structs.replace(check, outcome=outcome if compared else "nothing compared")
