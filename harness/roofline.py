"""How far a case is from what its device could do at most. Pure functions of summaries.

With the model's operations F, the bytes B that it must move at least, and a device's rates f for matrix products and b
for memory, no engine can take less than max(F / f, B / b). What decides that is what the case is bound by; the limit
over the measured p50 is the share that it reached.

Rates of memory are known by working set, since caches are faster than what lies behind them: the rate of the largest
measured set that is not larger than B holds. Below the smallest one all lies in caches, and memory sets no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from harness.records import Ceiling, ModelInfo
from harness.summary import CaseSummary, WorkloadSummary

BITS = {"fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8}
"""Of a weight; the least bytes of a model are known in float32."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least time that a device needs, and what it follows from."""

    seconds: float
    by: Literal["compute", "memory"]
    ceiling: Ceiling


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where a case lies under the roof of its device: intensity by rate. Rates are in operations or bytes a second."""

    intensity: float
    """The model's operations for each byte that it must move at least."""
    rate: float
    """Operations over p50."""
    peak: float
    peak_of: str
    """The precision whose rate of matrix products that is."""
    bandwidth: float | None
    """None where all that must be moved fits in caches."""
    share: float
    """Of its limit that it reached."""
    by: Literal["compute", "memory"]
    ceiling: Ceiling


def with_limits(summary: WorkloadSummary, ceilings: Sequence[Ceiling]) -> WorkloadSummary:
    """Return a workload with the share of its limit that each case reached, where its device's ceilings are known."""
    rows = [_with_limit(row, summary, ceilings) for row in summary.rows]
    return msgspec.structs.replace(summary, rows=rows)


def bound(row: CaseSummary, summary: WorkloadSummary, ceilings: Sequence[Ceiling]) -> Bound | None:
    """Return the least time of one iteration of a case; None where something that it needs is not known."""
    info, ceiling = summary.workload.info, _ceiling(row, ceilings)
    if info is None or ceiling is None:
        return None
    found: list[Bound] = []
    rate, _ = _peak(ceiling, row.case.precision)
    if info.gflop and rate:
        found.append(Bound(seconds=info.gflop * 1e9 / rate, by="compute", ceiling=ceiling))
    moved = _moved(info, row.case.precision)
    if (speed := _memory_rate(ceiling, moved)) is not None:
        found.append(Bound(seconds=moved / speed, by="memory", ceiling=ceiling))
    return max(found, key=lambda one: one.seconds, default=None)


def spot(row: CaseSummary, summary: WorkloadSummary, ceilings: Sequence[Ceiling]) -> Spot | None:
    """Return where a measured case lies in a roofline; None where something that it needs is not known."""
    info, limit = summary.workload.info, bound(row, summary, ceilings)
    if info is None or limit is None or row.compute is None or row.compute.p50.value <= 0:
        return None
    moved, seconds = _moved(info, row.case.precision), row.compute.p50.value / 1e9
    peak, peak_of = _peak(limit.ceiling, row.case.precision)
    if not info.gflop or not moved or not peak:
        return None
    return Spot(
        intensity=info.gflop * 1e9 / moved,
        rate=info.gflop * 1e9 / seconds,
        peak=peak,
        peak_of=peak_of,
        bandwidth=_memory_rate(limit.ceiling, moved),
        share=limit.seconds / seconds,
        by=limit.by,
        ceiling=limit.ceiling,
    )


def _ceiling(row: CaseSummary, ceilings: Sequence[Ceiling]) -> Ceiling | None:
    case = row.case
    return next((one for one in ceilings if one.device == case.device and one.threads in (None, case.threads)), None)


def _peak(ceiling: Ceiling, precision: str) -> tuple[float, str]:
    """Return the rate of matrix products, and of which precision it is.

    An engine may compute in float32 whatever it was asked for: the faster of the two holds.
    """
    return max((ceiling.matrix.get(each, 0.0), each) for each in ("fp32", precision))


def _moved(info: ModelInfo, precision: str) -> float:
    return (info.least_bytes or 0) * BITS.get(precision, 32) / 32


def _memory_rate(ceiling: Ceiling, moved: float) -> float | None:
    reached = [size for size, _ in ceiling.memory if size <= moved]
    if not reached or moved <= 0:
        return None
    # A larger set that was measured faster was measured more luckily: a ceiling never rises with the set.
    return max(rate for size, rate in ceiling.memory if size >= max(reached))


def _with_limit(row: CaseSummary, summary: WorkloadSummary, ceilings: Sequence[Ceiling]) -> CaseSummary:
    limit = bound(row, summary, ceilings)
    if limit is None or row.compute is None:
        return row
    share = limit.seconds / (row.compute.p50.value / 1e9)
    cautions = [*row.cautions, *([_too_fast(share, limit)] if share > 1 else [])]
    return msgspec.structs.replace(row, bound_by=limit.by, limit_share=share, cautions=tuple(cautions))


def _too_fast(share: float, limit: Bound) -> str:
    what = "multiply matrices" if limit.by == "compute" else "move memory"
    return (
        f"it ran at {100 * share:.0f} % of the fastest that {limit.ceiling.device} can {what}, {limit.ceiling.source}: "
        "something is wrong, unless its algorithm needs fewer operations than are counted, as fast convolutions do"
    )
