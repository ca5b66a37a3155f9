"""What several workloads say of a case together: means, wins and counts. Pure functions of summaries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from harness.stats import EFFECT
from harness.summary import CaseSummary, Estimate, Standing, Suite, WorkloadSummary

_UNITY = Estimate(value=1.0, low=1.0, high=1.0)


def standings(workloads: Sequence[WorkloadSummary], asked: Sequence[str]) -> Suite | None:
    """Return how every case stands over the workloads, or None where fewer than two can be taken together.

    Ratios to different baselines have no mean, so the baseline of most workloads is taken and those with another one
    are left out.

    Args:
        workloads: All of the run.
        asked: Case ids in the order asked for.
    """
    baselines = Counter(one.baseline for one in workloads if one.baseline is not None)
    if not baselines:
        return None
    baseline = baselines.most_common(1)[0][0]
    together = [one for one in workloads if one.baseline == baseline]
    if len(together) < 2:
        return None
    outcomes = [outcome for one in together if (outcome := leaders(one)) is not None]
    seen = dict.fromkeys([*asked, *(row.case.id for one in workloads for row in one.rows)])
    present = {row.case.id for one in workloads for row in one.rows}
    rows = [_standing(case, baseline, workloads, together, outcomes) for case in seen if case in present]
    places = {case: place for place, case in enumerate(seen)}
    full = len(together)
    # Only means over all of them are ranked: two means over different workloads cannot be.
    rows.sort(key=lambda row: (-row.over, row.ratio.value if row.ratio and row.over == full else 0, places[row.case]))
    return Suite(
        baseline=baseline,
        workloads=[one.workload.key for one in together],
        left_out=[one.workload.key for one in workloads if one.baseline != baseline],
        rows=rows,
        contested=len(outcomes),
        rounds_only=any(
            row.comparison.rounds_only
            for one in together
            for row in one.rows
            if row.comparison and row.case.status == "ok"
        ),
    )


def geometric_mean(ratios: Sequence[Estimate]) -> Estimate:
    """Return the geometric mean of independent ratios with its interval.

    In logs it is the mean of `n` differences with half-widths `h`; its half-width is `sqrt(sum h^2) / n`, since other
    workloads are other processes and their errors are independent. Every `h` is a quantile of t times a standard
    error; the quantile that belongs to the mean is never larger than the largest of theirs, since by Welch and
    Satterthwaite it has at least their fewest degrees of freedom. The interval is therefore never too narrow; for three
    workloads of five launches each it is a fifth too wide. It is that of measuring these workloads again: of models
    that are not among them it says nothing.
    """
    middle = sum(math.log(one.value) for one in ratios) / len(ratios)
    halves = [math.log(one.high / one.low) / 2 for one in ratios]
    half = math.hypot(*halves) / len(ratios)
    return Estimate(value=math.exp(middle), low=math.exp(middle - half), high=math.exp(middle + half))


def leaders(summary: WorkloadSummary) -> list[str] | None:
    """Return the `ok` cases of a workload that no other is faster than for sure: one is a winner, several are a tie.

    For sure means that the intervals of the ratios to the baseline lie clear of each other and the estimates differ by
    the smallest effect that a verdict needs. That is stricter than comparing the two directly.

    Returns:
        None where nothing is contested: fewer than two `ok` cases with a ratio, or no verdicts because there was one
        launch only.
    """
    ratios = {row.case.id: ratio for row in summary.rows if (ratio := _ratio(row)) is not None}
    if len(ratios) < 2 or any(row.comparison.rounds_only for row in summary.rows if row.comparison):
        return None
    return [case for case, own in ratios.items() if not any(_faster(other, own) for other in ratios.values())]


def _ratio(row: CaseSummary) -> Estimate | None:
    """Return the ratio of a case that counts: one that is `ok` and was measured."""
    if row.case.status != "ok" or row.compute is None:
        return None
    if row.is_baseline:
        return _UNITY
    return row.comparison.ratio if row.comparison else None


def _faster(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low and one.value <= (1 - EFFECT) * other.value


def _standing(
    case: str,
    baseline: str,
    workloads: Sequence[WorkloadSummary],
    together: Sequence[WorkloadSummary],
    outcomes: Sequence[list[str]],
) -> Standing:
    def own(summary: WorkloadSummary) -> CaseSummary | None:
        return next((row for row in summary.rows if row.case.id == case), None)

    ratios = [ratio for one in together if (row := own(one)) and (ratio := _ratio(row)) is not None]
    found = [(one, own(one)) for one in workloads]
    # A workload that failed before its cases were made failed for each of them.
    statuses = Counter(
        row.case.status if row else "failed" for one, row in found if row is not None or one.workload.failure
    )
    known = {status: statuses.pop(status, 0) for status in ("ok", "drifted", "compiled")}
    return Standing(
        case=case,
        is_baseline=case == baseline,
        ratio=geometric_mean(ratios) if ratios else None,
        over=len(ratios),
        wins=sum(leading == [case] for leading in outcomes),
        ties=sum(case in leading and len(leading) > 1 for leading in outcomes),
        ok=known["ok"],
        drifted=known["drifted"],
        compiled=known["compiled"],
        failed=sum(statuses.values()),
    )
