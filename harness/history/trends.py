"""Figures over time: which moved, when, by how much, and what changed in between. Pure functions of points.

A step of the latency is looked at twice. Its own ratio is that of the two levels. Where the runs hold another case that
stayed in its version, `changes` also tells the ratio to that case: if that one stayed where it was, the whole machine
moved, and not the case.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from harness.history.changes import Change, latency_change
from harness.history.diff import RUNS_AT_MOST
from harness.history.keys import differing
from harness.history.points import Metric, Point, titles
from harness.history.steps import LEAST_RUNS, Shift, find_steps, noise
from harness.records import Record
from harness.summary import Estimate

EFFECT = 0.02
"""The smallest change that is a step, unless the user wants another."""
OF_DRIFT = 0.25
"""The same for drift: another order of additions moves it by some percent, and means nothing."""
EXACT = 1e-7
"""Relative L2 below which outputs agree as well as float32 can tell."""
BUSIER, SLOWER_CLOCK = 0.05, 0.05
"""What the load by others, a share of all CPU time, and the clock, relatively, must differ by to be told."""

Direction = Literal["worse", "better", "machine"]


class Step(Record, frozen=True, kw_only=True):
    """One move of one figure to another level."""

    before_run: str
    """The last run on the old level."""
    run: str
    """The first run on the new level."""
    created: str
    """Of that run."""
    before: float
    """Median of the runs on the old level."""
    after: float
    runs: tuple[int, int]
    """How many runs each level has."""
    ratio: Estimate
    """New over old level with its 99 % interval, above 1 is worse."""
    direction: Direction
    """`machine`: the case stayed where it was in relation to another case of the same runs."""
    through: Change | None = None
    """The ratio to another case, where the runs have one that stayed in its version."""
    changed: dict[str, tuple[str, str]]
    """What differs between the two runs besides."""


class Trend(Record, frozen=True, kw_only=True):
    """One figure of one case over its runs."""

    workload: str
    case: str
    series: str
    title: str
    """Workload and case, and what tells the series from others of that name."""
    metric: Metric
    runs: list[str]
    created: list[str]
    values: list[float]
    """In the unit of `Point`: nanoseconds, seconds, bytes, relative L2."""
    noise: float
    """Standard deviation of a run around its level, as a share."""
    steps: list[Step]

    @property
    def regressed(self) -> bool:
        """Return whether the newest step that is not the machine's was for the worse."""
        own = [step.direction for step in self.steps if step.direction != "machine"]
        return bool(own) and own[-1] == "worse"


class Short(Record, frozen=True, kw_only=True):
    """A figure of a case with too few runs to say anything."""

    workload: str
    case: str
    title: str
    """As of a `Trend`."""
    metric: Metric
    runs: int


class Trends(Record, frozen=True, kw_only=True):
    """All that was looked at."""

    trends: list[Trend]
    short: list[Short]
    least_runs: int = LEAST_RUNS
    other_models: list[str] = msgspec.field(default_factory=list)
    """Cases whose runs of an earlier model of the same name were left out."""
    since: str | None = None


def find_trends(
    cases: Iterable[Sequence[Point]], metrics: Sequence[Metric], *, least: float = EFFECT, since: str | None = None
) -> Trends:
    """Look for steps in figures of cases.

    Args:
        cases: The runs of each case, oldest first.
        metrics: Which figures.
        least: The smallest relative change that is a step.
        since: Leave out steps before; ISO 8601, UTC. The runs before it are looked at all the same.
    """
    trends, short, others = [], [], []
    cases = list(cases)
    names = titles(points[-1] for points in cases)
    for points in cases:
        name = names[points[-1].series]
        same = [point for point in points if not differing(point.subject, points[-1].subject)]
        if len(same) < len(points):
            others.append(name)
        for metric in metrics:
            known = [(point, value) for point in same if (value := point.value(metric)) is not None]
            if len(known) >= LEAST_RUNS:
                trends.append(_trend(name, metric, known, least, since))
            elif known:
                newest = points[-1]
                short.append(
                    Short(workload=newest.workload, case=newest.case, title=name, metric=metric, runs=len(known))
                )
    return Trends(trends=trends, short=short, other_models=others, since=since)


def _trend(name: str, metric: Metric, known: Sequence[tuple[Point, float]], least: float, since: str | None) -> Trend:
    points, values = [point for point, _ in known], [value for _, value in known]
    logs = [math.log(max(value, EXACT if metric == "drift" else 1e-12)) for value in values]
    shifts = find_steps(logs, least=max(least, OF_DRIFT) if metric == "drift" else least)
    steps = [_step(metric, points, values, shift) for shift in shifts]
    newest = points[-1]
    return Trend(
        workload=newest.workload,
        case=newest.case,
        series=newest.series,
        title=name,
        metric=metric,
        runs=[point.run for point in points],
        created=[point.created for point in points],
        values=values,
        noise=noise(logs),
        steps=[step for step in steps if since is None or step.created >= since],
    )


def _step(metric: Metric, points: Sequence[Point], values: Sequence[float], shift: Shift) -> Step:
    old, new = points[shift.start : shift.at], points[shift.at : shift.end]
    height, half = shift.after - shift.before, shift.half_width
    ratio = Estimate(value=math.exp(height), low=math.exp(height - half), high=math.exp(height + half))
    through = _through(old[-RUNS_AT_MOST:], new[:RUNS_AT_MOST]) if metric == "latency" else None
    direction: Direction = "worse" if height > 0 else "better"
    return Step(
        before_run=old[-1].run,
        run=new[0].run,
        created=new[0].created,
        before=statistics.median(values[shift.start : shift.at]),
        after=statistics.median(values[shift.at : shift.end]),
        runs=(len(old), len(new)),
        ratio=ratio,
        direction="machine" if through is not None and _stayed(through.ratio, ratio.value) else direction,
        through=through,
        changed=differing(old[-1].circumstances, new[0].circumstances) | _machine(old, new),
    )


def _through(old: Sequence[Point], new: Sequence[Point]) -> Change | None:
    found = latency_change(old, new)
    return found if found is not None and found.basis == "another case" else None


def _stayed(to_another: Estimate, own: float) -> bool:
    return to_another.low <= 1 <= to_another.high and not to_another.low <= own <= to_another.high


def _machine(old: Sequence[Point], new: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Return what the machine did otherwise on one level than on the other."""
    changed = {}
    load = [[point.others_cpu for point in side if point.others_cpu is not None] for side in (old, new)]
    if all(load):
        before, after = map(statistics.median, load)
        if abs(after - before) >= BUSIER:
            changed["CPU taken by others"] = (f"{before:.0%}", f"{after:.0%}")
    clocks = [[point.mhz for point in side if point.mhz is not None] for side in (old, new)]
    if all(clocks):
        before, after = map(statistics.median, clocks)
        if abs(after / before - 1) >= SLOWER_CLOCK:
            changed["CPU clock"] = (f"{before:.0f} MHz", f"{after:.0f} MHz")
    return changed
