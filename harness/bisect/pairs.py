"""Two cases of the same runs: by how much a figure differs between them, and how sure that is. Pure functions.

| figure                 | values                                          | interval                                 |
|------------------------|-------------------------------------------------|------------------------------------------|
| latency                | as a comparison judges it                       | the comparison's own, from its launches  |
| memory, device-memory  | the peak of each launch                         | t over launches, paired                  |
| compile, compile-memory| one a run, both cases compiled one after another | t over runs, paired                      |
| engine, drift, status  | they do not vary                                | none is needed                           |

Intervals are at 99 %, in logarithms.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec
import scipy.special

from harness import ratios
from harness.history.changes import CONFIDENCE
from harness.history.deriving import points_of
from harness.history.points import METRICS, Metric
from harness.records import CONTROL, Case, Record, Run, Sitting, Status, Workload

Figure = Literal[Metric, "status"]
FIGURES: tuple[Figure, ...] = (*METRICS, "status")
OVER_RUNS: tuple[Figure, ...] = ("compile", "compile-memory")
"""One value a run."""
EXACT: tuple[Figure, ...] = ("engine", "drift", "status")
BEYOND = 100.0
"""Stands for the change from nothing to something: JSON, and so the memory of what was measured, has no infinity."""
WORKS: tuple[Status, ...] = ("ok", "compiled")


class Change(Record, frozen=True, kw_only=True):
    """One figure of two cases that were measured together."""

    figure: Figure
    statuses: tuple[Status, Status]
    """Of the first and of the second case."""
    failures: tuple[str, str] = ("", "")
    """Stage and message, where they have no result or drifted."""
    before: float | None = None
    """Median over runs. None where there is no such figure."""
    after: float | None = None
    change: float | None = None
    """Natural logarithm of after over before."""
    half_width: float | None = None
    """Of its interval; None where too little was measured to have one."""
    values: int = 0
    """Launches or runs that it rests on."""


def change_of(runs: Sequence[Run], before: str, after: str, figure: Figure) -> Change:
    """Compare two cases by their ids in runs of one workload each, the newest last.

    Latency and memory come from the newest run alone: it holds all launches. A case that has a figure although its
    outputs drifted is compared, except in its status.
    """
    workload = runs[-1].workloads[0]
    first, second = _case(workload, before), _case(workload, after)
    blank = Change(
        figure=figure,
        statuses=(first.status, second.status),
        failures=(_failure(first), _failure(second)),
    )
    if figure == "status":
        works = first.status in WORKS, second.status in WORKS
        change = BEYOND if works == (True, False) else -BEYOND if works == (False, True) else 0.0
        return msgspec.structs.replace(blank, change=change, half_width=0.0, values=1)
    told = [{point.case: point.value(figure) for point in points_of(run)} for run in runs]
    pairs = [(one[before], one[after]) for one in told]
    complete = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not complete:
        return msgspec.structs.replace(blank, before=pairs[-1][0], after=pairs[-1][1])
    if figure == "latency":
        return _latency(blank, workload, before, after, complete[-1])
    if figure in EXACT:
        a, b = complete[-1]
        return msgspec.structs.replace(blank, before=a, after=b, change=_log(a, b), half_width=0.0, values=1)
    if figure in OVER_RUNS:
        differences = [_log(a, b) for a, b in complete]
    else:
        complete, differences = complete[-1:], _of_launches(workload, before, after, figure)
    return msgspec.structs.replace(
        blank,
        before=statistics.median(a for a, _ in complete),
        after=statistics.median(b for _, b in complete),
        change=statistics.fmean(differences),
        half_width=_half_width(differences),
        values=len(differences),
    )


def _latency(blank: Change, workload: Workload, before: str, after: str, values: tuple[float, float]) -> Change:
    found = ratios.against(workload, before).get(after)
    launches = sum(any(sitting.case == after for sitting in launch.sittings) for launch in workload.launches)
    change = math.log(found.ratio.value) if found else _log(*values)
    half = math.log(found.ratio.high) - change if found and not found.rounds_only else None
    return msgspec.structs.replace(
        blank, before=values[0], after=values[1], change=change, half_width=half, values=launches
    )


def _of_launches(workload: Workload, before: str, after: str, figure: Figure) -> list[float]:
    """Return the logarithm of the ratio of peaks, one a launch that has both; two workers of a case count as one."""
    out = []
    for launch in workload.launches:
        a = [peak for one in launch.sittings if one.case in (before, before + CONTROL) and (peak := _peak(one, figure))]
        b = [peak for one in launch.sittings if one.case in (after, after + CONTROL) and (peak := _peak(one, figure))]
        if a and b:
            out.append(_log(statistics.fmean(a), statistics.fmean(b)))
    return out


def _peak(sitting: Sitting, figure: Figure) -> int | None:
    if figure == "memory":
        return sitting.peak_bytes or None
    return sitting.device_memory.peak_bytes if sitting.device_memory else None


def _half_width(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    quantile = float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _log(before: float, after: float) -> float:
    if before == after:
        return 0.0
    if before <= 0 or after <= 0:
        return BEYOND if after > before else -BEYOND
    return math.log(after / before)


def _case(workload: Workload, id_: str) -> Case:
    return next(case for case in workload.cases if case.id == id_)


def _failure(case: Case) -> str:
    if case.failure is None:
        return ""
    lines = case.failure.message.splitlines()
    return f"{case.failure.stage}: {lines[0] if lines else ''}"
