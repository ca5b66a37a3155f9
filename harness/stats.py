"""Verdicts and percentiles from samples: pure functions of arrays, vectorised over leading axes.

How a claim is made, for one group of cases that were measured together:

1. Within a launch, `log median = case + round + noise`. `fit_levels` fits that with Huber's psi, so that slow drift of
   the machine is taken out and a spiked window pulls no more than a constant. Adding a constant to a case shifts its
   level by exactly that, so with two or three cases a large effect does not leak into the round's common part; and a
   case that was visited in some rounds only is compared with the others within those.
2. Over launches, each candidate's level minus the mean level of the two baseline workers is one number a launch:
   whatever a launch does to all of its processes cancels.
3. Its variance is `process + round / visits`. A case's own launches estimate it with few degrees of freedom; all cases
   together estimate it well, but only if they are alike. `contrast` weighs both; `benchmarks/honesty.py` measures what
   that is worth in false calls and power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.special

from harness.summary import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

CONFIDENCE = 0.99
"""Of the intervals that verdicts rest on."""
EFFECT = 0.01
"""Smallest relative difference worth a claim, and the precision that a run aims for."""
PRIOR_FREEDOM = 4
"""Degrees of freedom granted to the variance expected from all cases, against those of a case's own launches.

Chosen by simulation with five launches. 0 is Welch's test: it finds a true 5 % between processes that spread by 1 % in
80 % of runs only. One spread pooled over all cases finds it in 97 % or more, but calls a case whose processes spread
six times as much as the others' falsely in 9 %. 4 finds it in 97 % and calls such a case in 3.5 %."""
HUBER_K = 1.345
"""Where psi bends, in standard deviations: 95 % efficiency on normal noise."""
RESOLUTION = 1e-6
"""Relative; a spread below this is the clock's, not the program's."""
PERCENTILE_CONFIDENCE = 0.95

_SHRINK = 10
"""Visits' worth of weight that the round noise of all cases has against a case's own."""
_ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The additive fit of launches: arrays of shape (..., launches, cases) unless said otherwise."""

    level: Floats
    """Log duration of a case, up to a constant common to the launch; NaN where it cannot be known."""
    visits: Floats
    """Rounds in which the case was visited."""
    psi_squares: Floats
    """Sum over visits of the squared bounded residual."""
    inliers: Floats
    """Visits whose residual was not bounded."""
    freedom: Floats
    """Degrees of freedom that the fit left to the case's residuals."""


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """What is known of each case against the baseline: arrays of shape (..., cases - 1) unless said otherwise.

    Index 0 is the control over the baseline; index i is case i + 1 over both baseline workers together.
    """

    difference: Floats
    """Natural log of the ratio of durations; NaN where the two were never measured together."""
    half_width: Floats
    """Of the interval at `CONFIDENCE`, in log units; NaN where there is nothing to estimate it from."""
    build_sd: Floats
    """Standard deviation between the means of independent builds, in log units; NaN where there are no two."""
    launches: Floats
    """Launches that the difference rests on."""
    freedom: Floats
    """Degrees of freedom of the interval."""
    process_sd: Floats
    """Pooled standard deviation between identical processes in log units, shape (...); NaN when no case has two
    launches. More rounds do not narrow this part of an interval, more launches do."""

    @property
    def rounds_only(self) -> Bools:
        """Say whether no case had a second launch: intervals then lack the spread between processes."""
        return np.asarray(np.isnan(self.process_sd))


def fit_levels(tables: Floats) -> Levels:
    """Fit `case + round` to each launch by iteratively reweighted least squares with Huber's weights.

    Formula: P. J. Huber, Robust Statistics (1981), sections 7.6 to 7.8. The scale is the normal-consistent median
    absolute residual, corrected for the fitted parameters.

    Args:
        tables: Log medians of windows, shape (..., launches, cases, rounds), NaN where a case was not visited.
            Rows 0 and 1 are the baseline's two workers. Shorter launches are padded with rounds of NaN.
    """
    seen = ~np.isnan(tables)
    seen &= _connected(seen)[..., None]
    # Alone in a round, a case says nothing of any other; its residual, exactly zero, would make the noise look smaller.
    seen &= seen.sum(-2, keepdims=True) > 1
    values = np.where(seen, tables, 0.0)
    cells = seen.sum((-1, -2))
    freedom = _freedom(seen)
    correction = cells / np.maximum(freedom.sum(-1), 1)
    weights = seen.astype(np.float64)
    for _ in range(_ITERATIONS):
        level, residuals = _weighted_fit(values, weights)
        size = np.where(seen, np.abs(residuals), np.inf)
        scale = np.maximum(_middle(size, cells) / 0.6745 * np.sqrt(correction), RESOLUTION)
        bound = HUBER_K * scale[..., None, None]
        weights = np.where(seen, bound / np.maximum(size, bound), 0.0)
    return Levels(
        level=np.where(seen.any(-1), level, np.nan),
        visits=seen.sum(-1).astype(np.float64),
        psi_squares=(np.minimum(size, bound) ** 2 * seen).sum(-1),
        inliers=(size <= bound).sum(-1).astype(np.float64),
        freedom=freedom,
    )


def contrast(tables: Floats, builds: Sequence[int] | None = None) -> Contrasts:
    """Estimate every case's ratio to the baseline with an interval.

    The variance of one launch's difference is a weighted mean of its own sample variance and of the one expected from
    all cases, `k * process variance + round variance / visits`, with k = 3/2 against two baseline workers and 2 for
    the control against one; the process variance is pooled by the method of moments. Same idea as G. K. Smyth's
    moderated t (2004, doi:10.2202/1544-6115.1027), with `PRIOR_FREEDOM` fixed: estimating it from a handful of cases
    made both false calls and power worse in simulation. Normal noise is assumed only for the t quantile.

    Where every case was built several times, the builds are what a claim is about: their means, one a build, are
    independent numbers, and an interval is never narrower than the t interval of those.

    Args:
        tables: As for `fit_levels`.
        builds: Which build each launch measured; None where there is one of each case.
    """
    fit = fit_levels(tables)
    per_launch = _differences(fit.level)
    known = ~np.isnan(per_launch)
    launches = known.sum(-2).astype(np.float64)
    divisor = np.maximum(launches, 1)
    mean = np.where(known, per_launch, 0.0).sum(-2) / divisor
    squares = (np.where(known, per_launch - mean[..., None, :], 0.0) ** 2).sum(-2)
    own = np.maximum(launches - 1, 0)
    processes = _mean_variance(np.where(np.isnan(fit.level), np.nan, 1.0))
    round_part = _mean_variance(_round_variance(fit))
    total = own.sum(-1)
    excess = (squares - own * round_part).sum(-1) / np.maximum((own * processes).sum(-1), 1)
    process_variance = np.maximum(excess, 0.0)
    expected = processes * process_variance[..., None] + round_part
    moderated = (PRIOR_FREEDOM * expected + squares) / (PRIOR_FREEDOM + own)
    freedom = np.where(total[..., None] > 0, PRIOR_FREEDOM + own, fit.freedom.sum((-1, -2))[..., None])
    spread = np.sqrt(np.maximum(moderated, RESOLUTION**2) / divisor)
    quantile = scipy.special.stdtrit(np.where(freedom > 0, freedom, np.nan), (1 + CONFIDENCE) / 2)
    measured = launches > 0
    half_width = quantile * spread
    build_sd = np.full(mean.shape, np.nan)
    if builds is not None and len(set(builds)) > 1:
        mean, build_sd, between = _between_builds(per_launch, builds)
        half_width = np.fmax(half_width, between)
    return Contrasts(
        difference=np.where(measured, mean, np.nan),
        half_width=np.where(measured, half_width, np.nan),
        build_sd=build_sd,
        launches=launches,
        freedom=freedom,
        process_sd=np.where(total > 0, np.sqrt(process_variance), np.nan),
    )


def _between_builds(per_launch: Floats, builds: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Return the mean over builds, their standard deviation, and the half-width of the t interval of the mean.

    Shape (..., launches, cases - 1) -> three of (..., cases - 1). The last two are NaN where fewer than two builds were
    measured. A build that was measured in more launches than another counts once, too.
    """
    numbers = np.asarray(builds)
    places = [numbers == number for number in sorted(set(builds))]
    known = np.stack([(~np.isnan(per_launch[..., place, :])).sum(-2) for place in places], axis=-2)
    sums = np.stack([np.nansum(per_launch[..., place, :], axis=-2) for place in places], axis=-2)
    means = np.divide(sums, known, out=np.zeros_like(sums), where=known > 0)
    count = (known > 0).sum(-2)
    mean = means.sum(-2) / np.maximum(count, 1)
    squares = (np.where(known > 0, means - mean[..., None, :], 0.0) ** 2).sum(-2)
    own = np.where(count > 1, count - 1, np.nan)
    sd = np.sqrt(squares / own)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, own)
    return mean, sd, quantile * sd / np.sqrt(np.maximum(count, 1))


def verdicts(contrasts: Contrasts) -> NDArray[np.str_]:
    """Return FASTER, SLOWER, SAME or UNDECIDED for every contrast.

    | interval                  | estimate     | verdict         |
    |---------------------------|--------------|-----------------|
    | clear of 1                | 1 % or more  | FASTER, SLOWER  |
    | inside 0.99 to 1.01       | any          | SAME            |
    | anything else, or no two launches to see how processes differ | UNDECIDED |

    The estimate's threshold makes the first two rows exclusive: an interval inside +-1 % has its estimate there.
    """
    ratio, low, high = ratios(contrasts)
    supported = (contrasts.launches >= 2) & ~np.isnan(contrasts.half_width)
    faster = supported & (high < 1) & (ratio <= 1 - EFFECT)
    slower = supported & (low > 1) & (ratio >= 1 + EFFECT)
    same = supported & (low > 1 - EFFECT) & (high < 1 + EFFECT)
    return np.asarray(np.select([faster, slower, same], ["FASTER", "SLOWER", "SAME"], "UNDECIDED"))


def ratios(contrasts: Contrasts) -> tuple[Floats, Floats, Floats]:
    """Return the ratios of durations, and the lower and upper ends of their intervals."""
    middle, half = contrasts.difference, contrasts.half_width
    return np.exp(middle), np.exp(middle - half), np.exp(middle + half)


def noisy(contrasts: Contrasts, to: float = EFFECT) -> Bools:
    """Say where the interval is wider than +-`to` of the ratio, or where there is none."""
    return ~(contrasts.half_width <= math.log1p(to))


def precise(contrasts: Contrasts, to: float = EFFECT) -> Bools:
    """Say whether every candidate's interval is within +-`to` of its ratio; the control stands in where there is none.

    For a stop rule: it looks at widths only, never at the differences, because stopping at the first significant
    difference would inflate false alarms. A case that was never measured does not hold the run up; one launch alone is
    never precise, since its intervals lack the spread between processes.
    """
    of_interest = slice(1, None) if contrasts.difference.shape[-1] > 1 else slice(None)
    measured = ~np.isnan(contrasts.difference[..., of_interest])
    fine = ~noisy(contrasts, to)[..., of_interest] & (contrasts.launches[..., of_interest] >= 2)
    return np.asarray((fine | ~measured).all(-1) & measured.any(-1))


def noise_floor(contrasts: Contrasts) -> float | None:
    """Return the smallest relative difference between estimates that would have been called for whichever case.

    That is the widest half-width among the candidates, and never less than `EFFECT`: a smaller difference may have
    been called in a row with a narrower interval, which the row itself shows. The control stands in where there are
    no candidates. None where no verdict could have been given at all. Takes one run, not a stack of them.
    """
    candidates = contrasts.half_width[1:][contrasts.launches[1:] >= 2]
    widths = candidates if candidates.size else contrasts.half_width[:1][contrasts.launches[:1] >= 2]
    widths = widths[~np.isnan(widths)]
    return max(EFFECT, math.expm1(float(widths.max()))) if widths.size else None


def suspicious(contrasts: Contrasts) -> Bools:
    """Say whether the control's interval excludes 1: two workers of one engine differ by more than the run can explain.

    Expected in 1 % of sound runs. One launch never is: its intervals lack the very spread that makes workers differ.
    """
    outside = np.abs(contrasts.difference[..., 0]) > contrasts.half_width[..., 0]
    return np.asarray(outside & (contrasts.launches[..., 0] >= 2))


def percentile(ordered: Floats, q: float) -> Estimate | None:
    """Return a percentile of sorted samples with its distribution-free 95 % interval from order statistics.

    Formula: the ends are the samples of 1-based ranks l and u with P(B < l) <= 2.5 % and P(B >= u) <= 2.5 % for
    B binomial(n, q) (David and Nagaraja, Order Statistics, section 7.1). Samples are taken as independent: neighbours
    within a process are not quite, so the interval describes these samples and supports no comparison.

    Returns:
        None where rank l or u does not exist: below 6 samples for the median, 36 for the 90th percentile, 72
        for the 95th, 368 for the 99th.
    """
    count = len(ordered)
    tail = (1 - PERCENTILE_CONFIDENCE) / 2
    low = _binomial_quantile(tail, count, q) if count else 0
    high = _binomial_quantile(1 - tail, count, q) + 1 if count else 1
    if low < 1 or high > count:
        return None
    return Estimate(value=float(np.quantile(ordered, q)), low=float(ordered[low - 1]), high=float(ordered[high - 1]))


def variation(samples: Floats) -> float:
    """Return the coefficient of variation: sample standard deviation over mean; 0 for a single sample."""
    return float(np.std(samples, ddof=1) / np.mean(samples)) if len(samples) > 1 else 0.0


def _binomial_quantile(share: float, count: int, q: float) -> int:
    """Return the smallest number k with P(B <= k) of at least `share` for B binomial(count, q).

    As scipy.stats has it, whose import takes longer than all the rest of a command's start.
    """
    found = int(np.ceil(scipy.special.bdtrik(share, count, q)))
    return found - 1 if found and scipy.special.bdtr(found - 1, count, q) >= share else found


def _weighted_fit(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Solve weighted least squares for `case + round`; rounds are eliminated, so the system has one row a case."""
    mass = np.maximum(weights.sum(-2, keepdims=True), np.finfo(np.float64).tiny)
    shares = weights / mass
    centred = values - (shares * values).sum(-2, keepdims=True)
    system = -np.einsum("...cr,...dr->...cd", weights, shares)
    rows = np.arange(values.shape[-2])
    system[..., rows, rows] += weights.sum(-1)
    # A constant may move between cases and rounds. Adding one to every entry pins it (the levels then sum to zero),
    # and unvisited cases get a row of their own so that the system stays regular.
    system += 1.0
    system[..., rows, rows] += weights.sum(-1) == 0
    level = np.linalg.solve(system, (weights * centred).sum(-1)[..., None])[..., 0]
    residuals = centred - (level[..., None] - (shares * level[..., None]).sum(-2, keepdims=True))
    return level, residuals


def _freedom(seen: Bools) -> Floats:
    """Return the residual degrees of freedom by case: cells times (1 - 1/visits) times (1 - 1/cases in the round).

    Exact for a complete table, where they add up to (cases - 1) * (rounds - 1).
    """
    rows = np.maximum(seen.sum(-1, keepdims=True), 1)
    columns = np.maximum(seen.sum(-2, keepdims=True), 1)
    return np.asarray((seen * (1 - 1 / rows) * (1 - 1 / columns)).sum(-1))


def _connected(seen: Bools) -> Bools:
    """Say which cases share rounds, directly or through others, with row 0, or with row 1 where 0 is empty."""
    visits = seen.astype(np.float64)
    links = np.asarray(np.einsum("...cr,...dr->...cd", visits, visits) > 0)
    visited = np.asarray(seen.any(-1))
    reached = np.zeros_like(visited)
    reached[..., :2] = visited[..., :2]
    reached[..., 1:2] &= ~visited[..., :1]
    for _ in range(seen.shape[-2]):
        reached = reached | (links & reached[..., None, :]).any(-1)
    return reached


def _middle(size: Floats, cells: NDArray[np.int_]) -> Floats:
    """Return the median of the finite entries over the last two axes; 0 where there are none."""
    flat = np.sort(size.reshape(*cells.shape, -1), axis=-1)
    ranks = np.stack([np.maximum(cells - 1, 0) // 2, cells // 2], axis=-1)
    pair = np.take_along_axis(flat, np.minimum(ranks, flat.shape[-1] - 1), axis=-1)
    return np.where(cells > 0, pair.mean(-1), 0.0)


def _differences(level: Floats) -> Floats:
    """Return the control minus the baseline, then every candidate minus the mean of the baseline workers present."""
    count = (~np.isnan(level[..., :2])).sum(-1, keepdims=True)
    total = np.nansum(level[..., :2], axis=-1, keepdims=True)
    baseline = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return np.concatenate([level[..., 1:2] - level[..., :1], level[..., 2:] - baseline], axis=-1)


def _mean_variance(variance: Floats) -> Floats:
    """Return the variance of `_differences` for independent levels of these variances, averaged over launches.

    Shape (..., launches, cases) -> (..., cases - 1); 0 where a difference is known in no launch.
    """
    count = (~np.isnan(variance[..., :2])).sum(-1, keepdims=True)
    total = np.nansum(variance[..., :2], axis=-1, keepdims=True)
    baseline = np.divide(total, count**2, out=np.full(total.shape, np.nan), where=count > 0)
    parts = np.concatenate([variance[..., 1:2] + variance[..., :1], variance[..., 2:] + baseline], axis=-1)
    return np.asarray(np.nansum(parts, axis=-2) / np.maximum((~np.isnan(parts)).sum(-2), 1))


def _round_variance(fit: Levels) -> Floats:
    """Return what the noise of rounds adds to the variance of every level; NaN where there is no level.

    Per case and visit it is sum(psi^2) / freedom / share of inliers^2 (Huber 1981, section 7.6), both factors shrunk
    towards those of all cases.
    """
    squares, freedom = fit.psi_squares.sum(-2), fit.freedom.sum(-2)
    inliers, visits = fit.inliers.sum(-2), fit.visits.sum(-2)
    bounded = (squares + _SHRINK * _share(squares, freedom)) / (freedom + _SHRINK)
    inside = (inliers + _SHRINK * _share(inliers, visits)) / (visits + _SHRINK)
    per_visit = np.divide(bounded, inside**2, out=np.zeros_like(bounded), where=inside > 0)
    unknown = np.full(fit.visits.shape, np.nan)
    return np.asarray(np.divide(per_visit[..., None, :], fit.visits, out=unknown, where=fit.visits > 0))


def _share(part: Floats, whole: Floats) -> Floats:
    """Return the sum of one over the sum of the other, over the last axis, which is kept; 0 where both are empty."""
    return np.asarray(part.sum(-1, keepdims=True) / np.maximum(whole.sum(-1, keepdims=True), 1))
