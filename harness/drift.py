"""How far a candidate's outputs are from the reference's, and whether that is too far. Pure functions of arrays.

With candidate c, reference r (eager in float32) and golden g (the same module in float64; r where there is none), over
the n elements that are finite in all of them, computed in float64:

    max abs      max |c - r|
    max rel      max |c - r| / (|r| + rms(r))        so that an element near zero does not decide
    RMSE         sqrt(sum (c - r)^2 / n)
    relative L2  |c - r| / |r|, Euclidean norms
    cosine       c.r / (|c| |r|)
    SNR          20 log10(|r| / |c - r|) dB
    to golden    sqrt(sum (c - g)^2 / n), and the same for r

A floating-point output passes when

    (RMSE to golden <= k * eager + tolerance / 10 * rms(g)  or  max rel <= tolerance)
    and cosine >= its limit and c is finite where r is.

`eager` is eager's RMSE to golden, in a half precision not less than one rounding of each element, u * rms(g): eager
runs in float32, and would do no better there. So the first alternative asks of a backend what its precision asks of
eager itself; the second forgives where eager happens to be exact. Where r is zero everywhere there is no scale: the
tolerance is absolute and the cosine is not judged. Integer and boolean outputs must be equal: half a class index is no
class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import UsageError
from harness.records import OutputDrift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Tensors = Mapping[str, "NDArray[np.generic]"]

CHUNK = 1 << 16
"""Elements converted to float64 at a time: outputs can be as large as memory allows to hold once."""
TOP = 5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a precision allows."""

    tolerance: float
    """Of an element, relative to |reference| + rms(reference)."""
    k: float
    """How many times eager's own RMSE to golden is allowed."""
    cosine: float
    roundoff: float = 0.0
    """Unit roundoff u of a precision that rounds every result; eager's own is in its RMSE already."""
    dtypes: tuple[str, ...] = ()
    """Dtypes that a float32 output may come back in, besides float32."""


LIMITS: Mapping[str, Limits] = {
    # Steps between neighbours: float32 1.2e-7, float16 9.8e-4, bfloat16 7.8e-3. A deep network adds up about a
    # thousand roundings in float32 and ten in the half precisions, among them TensorFloat-32 with the mantissa of
    # float16; int8 has 127 steps for a whole tensor, and neighbours in float8 E4M3 are an eighth apart.
    "fp32": Limits(tolerance=1e-3, k=2, cosine=0.999),
    "tf32": Limits(tolerance=1e-2, k=3, cosine=0.995),
    "fp16": Limits(tolerance=1e-2, k=3, cosine=0.995, roundoff=2**-11, dtypes=("float16",)),
    "bf16": Limits(tolerance=5e-2, k=3, cosine=0.99, roundoff=2**-8, dtypes=("bfloat16",)),
    "int8": Limits(tolerance=1e-1, k=3, cosine=0.99, dtypes=("float16",)),
    "fp8": Limits(tolerance=2e-1, k=3, cosine=0.99, dtypes=("float16",)),
}


def limits(precision: str) -> Limits:
    """Return what a precision allows.

    Raises:
        UsageError: There are no limits for this precision.
    """
    if precision not in LIMITS:
        raise UsageError(f"no drift limits for precision '{precision}'. Known: {', '.join(LIMITS)}")
    return LIMITS[precision]


def judge(
    candidate: Tensors,
    reference: Tensors,
    golden: Tensors | None = None,
    *,
    precision: str = "fp32",
    input_set: int = 0,
    task: str = "tensor",
    allowed: Limits | None = None,
) -> list[OutputDrift]:
    """Judge all outputs of one input set; one row for each output of the reference.

    Args:
        candidate: Name -> array as `Session.outputs()` returned them. Outputs that the reference lacks are not judged.
        reference: Name -> array of eager in float32.
        golden: Name -> array of the same module in float64, or None where it did not fit.
        precision: Which limits hold.
        input_set: Written into the rows.
        task: `classification` adds the agreement of classes to floating-point outputs of shape (rows, classes).
        allowed: Limits of the model's own, instead of the precision's.

    Returns:
        Never empty: a reference without outputs is a row that did not pass, since nothing was compared.

    Raises:
        UsageError: There are no limits for this precision.
    """
    allowed = allowed or limits(precision)
    if not reference:
        return [_refused("", input_set, "the reference has no outputs, so nothing was compared")]
    rows = []
    for name, expected in reference.items():
        if name not in candidate:
            got = ", ".join(candidate) or "none"
            rows.append(_refused(name, input_set, f"missing: expected outputs {', '.join(reference)}, got {got}"))
            continue
        truth = golden.get(name) if golden else None
        rows.append(_judge_one(name, input_set, candidate[name], expected, truth, allowed, task))
    return rows


def passed(rows: list[OutputDrift]) -> bool:
    """Say whether a case passes: all its outputs do, and there is at least one."""
    return bool(rows) and all(row.passed for row in rows)


def worst(rows: list[OutputDrift]) -> int | None:
    """Return the index of the output farthest from the reference: a failed one first, then by relative L2.

    An output without a distance, such as a missing one, is farther than any other. None where there are no rows.
    """

    def badness(index: int) -> tuple[bool, float]:
        row = rows[index]
        return not row.passed, math.inf if row.relative_l2 is None else row.relative_l2

    return max(range(len(rows)), key=badness, default=None)


def agreement(candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> tuple[float, float]:
    """Return top-1 and top-5 agreement of two arrays of scores, shape (rows, classes).

    Top-1 is the share of rows with the same first class. Top-5 is the share of the reference's five highest classes
    that are among the candidate's five, averaged over rows. NaN ranks last; fewer than five classes count as they are.
    """
    first, second = _ranked(candidate), _ranked(reference)
    shared = (first[:, :, None] == second[:, None, :]).any(axis=1)
    return float((first[:, 0] == second[:, 0]).mean()), float(shared.mean())


@dataclass
class _Sums:
    """Sums over the elements that are finite everywhere, filled chunk by chunk."""

    elements: int = 0
    nan_count: int = 0
    inf_count: int = 0
    misplaced: int = 0
    """Elements where exactly one of candidate and reference is finite, or both are non-finite but differ."""
    unequal: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("cr", "cc", "rr", "dd", "cg", "rg", "gg"), 0.0)
    )

    def add(self, c: Floats, r: Floats, g: Floats, scale: float) -> None:
        finite = np.isfinite(c) & np.isfinite(r)
        self.nan_count += int(np.isnan(c).sum())
        self.inf_count += int(np.isinf(c).sum())
        self.misplaced += int((~finite & ~((c == r) | (np.isnan(c) & np.isnan(r)))).sum())
        if not finite.all():
            c, r, g = c[finite], r[finite], g[finite]
        g = np.where(np.isfinite(g), g, r)
        if not c.size:
            return
        distance = np.abs(c - r)
        self.elements += c.size
        self.unequal += int((distance > 0).sum())
        self.max_abs = max(self.max_abs, float(distance.max()))
        self.max_rel = max(self.max_rel, float((distance / (np.abs(r) + scale)).max()))
        pairs = {"cr": (c, r), "cc": (c, c), "rr": (r, r), "dd": (distance, distance), "gg": (g, g)}
        pairs |= {"cg": (c - g, c - g), "rg": (r - g, r - g)}
        for key, (left, right) in pairs.items():
            self.sums[key] += float(left @ right)

    def rms(self, key: str) -> float:
        return math.sqrt(self.sums[key] / self.elements)


def _judge_one(
    name: str,
    input_set: int,
    candidate: NDArray[np.generic],
    reference: NDArray[np.generic],
    golden: NDArray[np.generic] | None,
    allowed: Limits,
    task: str,
) -> OutputDrift:
    floating = np.issubdtype(reference.dtype, np.floating)
    if candidate.shape != reference.shape:
        return _refused(name, input_set, f"shape: expected {list(reference.shape)}, got {list(candidate.shape)}")
    if candidate.dtype != reference.dtype and not (floating and candidate.dtype.name in allowed.dtypes):
        expected = " or ".join([reference.dtype.name, *(allowed.dtypes if floating else ())])
        return _refused(name, input_set, f"dtype: expected {expected}, got {candidate.dtype.name}")
    total = _total(candidate, reference, reference if golden is None else golden)
    if not total.elements and not total.misplaced:
        return _refused(name, input_set, f"nothing to compare: no finite elements in shape {list(reference.shape)}")
    return _row(name, input_set, total, allowed, floating, _classes(candidate, reference, task, floating))


def _total(candidate: NDArray[np.generic], reference: NDArray[np.generic], golden: NDArray[np.generic]) -> _Sums:
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (candidate, reference, golden)]
    starts = range(0, flat[0].size, CHUNK)
    square, count = 0.0, 0
    for start in starts:
        part = flat[1][start : start + CHUNK].astype(np.float64)
        part = part[np.isfinite(part)]
        square, count = square + float(part @ part), count + part.size
    scale = math.sqrt(square / count) if square > 0 else 1.0
    total = _Sums()
    for start in starts:
        c, r, g = (array[start : start + CHUNK].astype(np.float64) for array in flat)
        total.add(c, r, g, scale)
    return total


def _row(
    name: str, input_set: int, total: _Sums, allowed: Limits, floating: bool, classes: tuple[float, float] | None
) -> OutputDrift:
    if not total.elements:
        return _refused(name, input_set, _misplaced(total), nan_count=total.nan_count, inf_count=total.inf_count)
    norm_c, norm_r, norm_d = (math.sqrt(total.sums[key]) for key in ("cc", "rr", "dd"))
    cosine = _cosine(total.sums["cr"], norm_c, norm_r)
    scale = total.rms("gg") or 1.0
    eager = max(total.rms("rg"), allowed.roundoff * scale)
    rmse_limit = allowed.k * eager + allowed.tolerance / 10 * scale if floating else 0.0
    rmse_golden = total.rms("cg")
    within = total.max_rel <= allowed.tolerance if floating else total.unequal == 0
    complaints = []
    if total.misplaced:
        complaints.append(_misplaced(total))
    if not floating and total.unequal:
        complaints.append(f"expected equal elements, got {total.unequal} of {total.elements} that differ")
    elif not within and rmse_golden > rmse_limit:
        complaints.append(
            f"RMSE to golden: expected at most {rmse_limit:.2e}, got {rmse_golden:.2e}; largest relative error: "
            f"expected at most {allowed.tolerance:g}, got {total.max_rel:.2e}"
        )
    if floating and cosine is not None and cosine < allowed.cosine:
        complaints.append(f"cosine: expected at least {allowed.cosine:g}, got {cosine:.6f}")
    return OutputDrift(
        output=name,
        input_set=input_set,
        elements=total.elements,
        max_abs=total.max_abs,
        max_rel=total.max_rel,
        rmse=total.rms("dd"),
        relative_l2=norm_d / norm_r if norm_r else (0.0 if norm_d == 0 else None),
        cosine=cosine,
        snr_db=20 * math.log10(norm_r / norm_d) if norm_r and norm_d else None,
        nan_count=total.nan_count,
        inf_count=total.inf_count,
        within_tolerance=within,
        rmse_limit=rmse_limit,
        rmse_golden=rmse_golden,
        passed=not complaints,
        reason="; ".join(complaints),
        top1_agreement=classes[0] if classes else None,
        top5_agreement=classes[1] if classes else None,
    )


def _cosine(product: float, norm_c: float, norm_r: float) -> float | None:
    """Return the cosine; None where the reference alone is zero, 1 where both are, 0 where the candidate alone is."""
    if norm_r == 0:
        return 1.0 if norm_c == 0 else None
    return 0.0 if norm_c == 0 else max(-1.0, min(1.0, product / (norm_c * norm_r)))


def _misplaced(total: _Sums) -> str:
    return (
        f"expected NaN and Inf only where the reference has them, got {total.misplaced} elements that differ in that "
        f"({total.nan_count} NaN, {total.inf_count} Inf)"
    )


def _classes(
    candidate: NDArray[np.generic], reference: NDArray[np.generic], task: str, floating: bool
) -> tuple[float, float] | None:
    if task != "classification" or not floating or reference.ndim != 2 or not reference.shape[0]:
        return None
    return agreement(candidate, reference) if reference.shape[1] > 1 else None


def _ranked(scores: NDArray[np.generic]) -> NDArray[np.int_]:
    values = np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return np.argsort(-values, axis=-1, kind="stable")[:, :TOP]


def _refused(name: str, input_set: int, reason: str, *, nan_count: int = 0, inf_count: int = 0) -> OutputDrift:
    return OutputDrift(
        output=name,
        input_set=input_set,
        elements=0,
        nan_count=nan_count,
        inf_count=inf_count,
        passed=False,
        reason=reason,
    )
