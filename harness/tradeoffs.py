"""What is given for what: the Pareto frontier, and when a longer compilation pays. Pure functions of summaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from harness.advice import FRONTIER, METRICS, BreakEven
from harness.summary import CaseSummary, Comparison, Estimate


def frontier(rows: Sequence[CaseSummary]) -> dict[str, list[str]]:
    """Return, for each of these rows, the cases that dominate it; those of the Pareto frontier have none.

    One dominates another when it is at least as good in every metric of `FRONTIER` and better in one. What is not known
    is as bad as can be. Figures are taken as they are: a difference within the noise counts.
    """
    points = {row.case.id: _point(row, speeds(rows)) for row in rows}
    return {
        case: [
            other
            for other, theirs in points.items()
            if all(a <= b for a, b in zip(theirs, own, strict=True)) and theirs != own
        ]
        for case, own in points.items()
    }


def break_even(chosen: CaseSummary, other: CaseSummary, comparison: Comparison) -> BreakEven | None:
    """Return when the recommended case has made up for a longer compilation, or the other one would have.

    With the compile times C and c, the recommended case's p50 t and the other's time over it r, an inference saves
    t (r - 1), so it takes (C - c) / (t (r - 1)) of them. The interval is that of r: compile times were measured once.

    Args:
        chosen: The recommended case.
        other: The alternative.
        comparison: The other's latency over the recommended one's.
    """
    longer, shorter = chosen.case.stages.get("compile"), other.case.stages.get("compile")
    if longer is None or shorter is None or chosen.compute is None:
        return None
    extra, each = longer - shorter, chosen.compute.p50.value / 1e9
    ratio = comparison.ratio
    if extra <= 0 and ratio.value >= 1:
        return BreakEven(kind="at once", inferences=0)
    if extra >= 0 and ratio.value <= 1:
        return BreakEven(kind="never")
    nearer, farther = (ratio.low, ratio.high) if extra > 0 else (ratio.high, ratio.low)
    count = extra / (each * (ratio.value - 1))
    unsure = (nearer - 1) * extra <= 0  # the interval reaches 1: it may never pay
    return BreakEven(
        kind="after" if extra > 0 else "until",
        inferences=math.ceil(count),
        low=math.ceil(extra / (each * (farther - 1))),
        high=None if unsure else math.ceil(extra / (each * (nearer - 1))),
        seconds=count * each,
    )


def inverse(comparison: Comparison) -> Comparison:
    """Return the comparison the other way round; what its verdict says of the two is not turned."""
    ratio = comparison.ratio
    turned = Estimate(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)
    return msgspec.structs.replace(comparison, ratio=turned)


def speeds(rows: Sequence[CaseSummary]) -> dict[str, float]:
    """Return durations of an iteration in which drift of the machine is taken out, as far as there is a baseline."""
    baseline = next((row.compute.p50.value for row in rows if row.is_baseline and row.compute), None)

    def of(row: CaseSummary) -> float:
        if row.comparison and baseline:
            return row.comparison.ratio.value * baseline
        return row.compute.p50.value if row.compute else math.inf

    return {row.case.id: of(row) for row in rows}


def _point(row: CaseSummary, speeds: Mapping[str, float]) -> tuple[float, ...]:
    values = {key: one.value if (one := METRICS[key].of(row)) else math.inf for key in FRONTIER}
    return tuple({**values, "latency": speeds[row.case.id]}.values())
