"""Figures that have one value a run, then and now: what their history says of how they vary.

Compile time, memory and the size of an engine are measured once a run. How much such a figure varies by itself is
learnt from the earlier runs of the same case: the spread of one value is the median absolute deviation of the
logarithms' successive differences over the root of two. A step, such as an earlier upgrade left, is in one of the
differences only and hardly moves their median; a plain deviation of the values would take it for noise, and go blind.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import scipy.special

from harness.history.changes import CONFIDENCE, MANY, Change, deviation, verdict_of
from harness.history.points import Metric, Point
from harness.summary import Estimate


def figure_change(
    metric: Metric, then: Sequence[Point], now: Sequence[Point], earlier: Sequence[Point]
) -> Change | None:
    """Compare a figure that has one value a run; None where one side has none.

    Of several values now the smallest counts: what was measured again must be worse each time. The interval is a t
    interval at 99 % in log units with half of the usual freedom, see `harness.history.changes`; there is one where at
    least `MANY` earlier runs show how the figure varies, else its ends are the ratio itself.

    Args:
        earlier: The same case in earlier runs, oldest first; those of `then` may be among them.
    """
    old, new = values(metric, then), values(metric, now)
    if not old or not new:
        return None
    before, after = statistics.median(old), min(new)
    if before <= 0 or after <= 0:
        ratio = 1.0 if before == after else math.inf if after > before else 0.0
        return _change(metric, before, after, Estimate(value=ratio, low=ratio, high=ratio), known=False)
    middle = math.log(after / before)
    logs = [math.log(value) for value in values(metric, earlier) if value > 0]
    if len(logs) < MANY:
        ratio = math.exp(middle)
        return _change(metric, before, after, Estimate(value=ratio, low=ratio, high=ratio), known=False)
    # The variance of a median of three or more values, against that of their mean.
    loss = math.pi / 2 if len(old) > 2 else 1.0
    quantile = float(scipy.special.stdtrit((len(logs) - 1) / 2, (1 + CONFIDENCE) / 2))
    half = quantile * spread(logs) * math.sqrt(1 + loss / len(old))
    estimate = Estimate(value=math.exp(middle), low=math.exp(middle - half), high=math.exp(middle + half))
    return _change(metric, before, after, estimate, known=True)


def spread(logs: Sequence[float]) -> float:
    """Return the standard deviation of one value, from at least `MANY` of them in the order of time."""
    steps = [after - before for before, after in itertools.pairwise(logs)]
    return deviation(steps) / math.sqrt(2)


def values(metric: Metric, points: Sequence[Point]) -> list[float]:
    """Return a figure of each case that has it."""
    return [value for point in points if (value := point.value(metric)) is not None]


def _change(metric: Metric, before: float, after: float, ratio: Estimate, *, known: bool) -> Change:
    return Change(
        metric=metric,
        before=before,
        after=after,
        ratio=ratio,
        verdict=verdict_of(ratio) if known else "UNDECIDED",
        basis="earlier runs" if known else "none",
    )
