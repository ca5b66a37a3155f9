"""From a workload's windows to comparisons of its cases. Pure functions of the records."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from harness import stats
from harness.measure import Boundary
from harness.records import CONTROL, Launch, Window, Workload
from harness.summary import Comparison, Estimate, Verdict

if TYPE_CHECKING:
    from harness.stats import Contrasts, Floats


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The windows of one case that its numbers rest on, by index of the launch."""

    windows: list[tuple[int, Window]]
    marked: int
    """Windows among all that something on the host disturbed. They are counted only."""
    total: int
    dropped: dict[str, int]
    """What disturbed the GPU -> windows that are not among `windows` for it."""
    dropped_windows: int
    disturbed: dict[str, int]
    """The same where every window was disturbed, and so all of them are kept."""


def visits(launches: list[Launch], case: str, boundary: Boundary) -> Visits:
    """Return the windows of one case and boundary that hold samples, without those in which the GPU was disturbed.

    Windows are dropped one by one, not by whole rounds. The fit is `case + round`, so a round that lacks a case still
    tells how the others compare, and the effect of a round is estimated from those that are left: a missing cell moves
    nobody. Dropping whole rounds would let the hottest case, which is slowed most often, take the others' windows
    away; and it would not undo the choice, for that case would be left with the rounds in which it was not slowed all
    the same. What such a choice means is said in a note, see `reports.details`.

    Where every window of a case was disturbed, that is how the case runs on this card: all are kept, and it is said.
    """
    every = [
        (index, window)
        for index, launch in enumerate(launches)
        for sitting in launch.sittings
        if sitting.case == case
        for window in sitting.windows
        if window.boundary == boundary and window.samples_ns
    ]
    kept = [(index, window) for index, window in every if not (window.gpu and window.gpu.marks)]
    reasons = dict(Counter(mark for _, window in every if window.gpu for mark in window.gpu.marks))
    return Visits(
        windows=kept or every,
        marked=sum(bool(window.marks) for _, window in every),
        total=len(every),
        dropped=reasons if kept else {},
        dropped_windows=len(every) - len(kept) if kept else 0,
        disturbed=reasons if not kept else {},
    )


def estimates(workload: Workload) -> tuple[list[str], Contrasts]:
    """Return the baseline, its control and the candidates, and what is known of all but the first.

    Groups that were measured one after another need no care: a candidate is only ever compared with the baseline's
    workers of the same launch, and how much identical processes differ is learnt from all groups together.
    """
    workers = [workload.baseline, workload.baseline + CONTROL]
    # The control of an earlier baseline is no candidate.
    cases = workers + [case for case in _seen(workload) if case not in workers and not case.endswith(CONTROL)]
    return cases, stats.contrast(_tables(workload.launches, cases), _builds(workload))


def against(workload: Workload, reference: str) -> dict[str, Comparison]:
    """Compare all cases with one that need not be the baseline, within the launches that visited both.

    This is narrower than what two intervals against the baseline would give: the noise of the baseline is not in it.
    A case that shared no launch with the reference is left out.
    """
    if reference == workload.baseline:
        return comparisons(*estimates(workload))
    others = [case for case in _seen(workload) if case != reference and not case.endswith(CONTROL)]
    cases = [reference, reference + CONTROL, *others]
    return comparisons(cases, stats.contrast(_tables(workload.launches, cases), _builds(workload)))


def comparisons(cases: Sequence[str], contrasts: Contrasts) -> dict[str, Comparison]:
    """Return what can be said of all cases but the first; one without an interval is left out."""
    ratio, low, high = stats.ratios(contrasts)
    verdicts, noisy = stats.verdicts(contrasts), stats.noisy(contrasts)
    return {
        case: Comparison(
            ratio=Estimate(value=float(ratio[index]), low=float(low[index]), high=float(high[index])),
            verdict=cast("Verdict", str(verdicts[index])),
            noisy=bool(noisy[index]),
            rounds_only=bool(contrasts.rounds_only),
            build_sd=_number(contrasts.build_sd[index]),
        )
        for index, case in enumerate(cases[1:])
        if math.isfinite(high[index])
    }


def _builds(workload: Workload) -> list[int] | None:
    """Return which build each launch measured, or None where every case was built once."""
    several = max((len(case.builds) for case in workload.cases), default=0)
    return [launch.index % several for launch in workload.launches] if several > 1 and workload.launches else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _seen(workload: Workload) -> list[str]:
    return list(dict.fromkeys(sitting.case for launch in workload.launches for sitting in launch.sittings))


def _tables(launches: list[Launch], cases: Sequence[str]) -> Floats:
    """Return log medians of windows in log ns, shape (launches, cases, rounds); NaN where a case was not visited."""
    rounds = [sorted({window.round for sitting in one.sittings for window in sitting.windows}) for one in launches]
    # A workload without samples is one launch of one round in which nobody was visited.
    shape = max(len(launches), 1), len(cases), max((1, *map(len, rounds)))
    tables = np.full(shape, np.nan)
    for row, case in enumerate(cases):
        for index, window in visits(launches, case, "compute").windows:
            column = rounds[index].index(window.round)
            tables[index, row, column] = math.log(max(statistics.median(window.samples_ns), 1.0))
    return tables
