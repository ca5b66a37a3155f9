"""A case then and now: what can be said of runs that were measured apart.

Within a run, cases are compared in interleaved rounds. Two runs share no round: whatever the machine did on each day is
in them. There are three ways to deal with that, the best that the runs allow:

another case    The ratio to another case of the same run, which is the same case in the same version then and now. What
                slows the whole machine down is in both parts of it. The interval holds how processes differ.
earlier runs    The case's own latency, with at least `MANY` runs before. The interval holds how those runs differed.
launches        The case's own latency. The interval holds how processes differ, and the assumption that runs differ as
                much as launches do.

The first is preferred. It is blind to what slows all cases down for a reason, such as a driver: where such a cause
changed between the runs it is not used. By `launches`, a case of which nothing changed, neither version nor library nor
such a cause, cannot be called faster or slower: what changed then is the machine's mood.

Formulas: a t interval at 99 % in log units. `another case` adds the squared standard errors of the runs' contrasts, its
freedom is Welch and Satterthwaite's. `launches` pools the variance within runs. `earlier runs` takes the median
absolute deviation with the factors for few values of C. Croux and P. J. Rousseeuw (1992,
doi:10.1007/978-3-662-26811-7_58), half of the usual freedom, since it uses values about half as well as a standard
deviation, and the variance of a median.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import scipy.special

from harness.history.keys import common_causes, own_causes
from harness.history.points import Metric, Point, Relative
from harness.records import Record
from harness.summary import Estimate, Verdict

MANY = 6
"""Runs before, from which on they tell how runs differ. Tests measure what the verdicts are worth."""
CONFIDENCE = 0.99
EFFECT = 0.01
"""As in `harness.stats`, which brings scipy.stats; a test holds the two together."""
TO_DEVIATION = 1.4826
_FEW = {6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}

Basis = Literal["another case", "earlier runs", "launches", "none"]


class Change(Record, frozen=True, kw_only=True):
    """One figure of one case, then and now."""

    metric: Metric
    before: float
    """Median over the runs before."""
    after: float
    """Median over the runs after."""
    ratio: Estimate
    """Now over then: above 1 is slower, bigger, farther off. Without an interval its ends are those of the ratio."""
    verdict: Verdict
    """UNDECIDED also where there is no interval."""
    basis: Basis
    other: str = ""
    """The case that it is compared through."""
    moved: float | None = None
    """Where it is compared through another case: now over then of its own latency, the machine's part included."""
    excused: bool = False
    """It moved, and nothing that could be to blame changed: not held against it."""


def latency_change(before: Sequence[Point], after: Sequence[Point]) -> Change | None:
    """Compare the latency of a case in some runs with that in others; None where one side was not measured."""
    then, now = _measured(before), _measured(after)
    if not then or not now:
        return None
    own = _own(then, now)
    known = then[-1].circumstances, now[-1].circumstances
    if common_causes(*known):
        return own
    through = _through_another(then, now)
    if through is None:
        moody = own.basis == "launches" and own.verdict in ("FASTER", "SLOWER") and not own_causes(*known)
        return msgspec.structs.replace(own, verdict="UNDECIDED", excused=True) if moody else own
    return _change(
        "latency", own.before, own.after, *through[:3], basis="another case", other=through[3], moved=own.ratio.value
    )


def change(metric: Metric, before: Sequence[Point], after: Sequence[Point]) -> Change | None:
    """Compare a figure that has one value a run; None where one side has none.

    There is an interval where at least `MANY` runs tell how it varies.
    """
    if metric == "latency":
        return latency_change(before, after)
    then = [value for point in before if (value := point.value(metric)) is not None]
    now = [value for point in after if (value := point.value(metric)) is not None]
    if not then or not now:
        return None
    old, new = statistics.median(then), statistics.median(now)
    if old <= 0 or new <= 0:
        same = old == new
        ratio = 1.0 if same else math.inf if new > old else 0.0
        return Change(
            metric=metric,
            before=old,
            after=new,
            ratio=Estimate(value=ratio, low=ratio, high=ratio),
            verdict="SAME" if same else "UNDECIDED",
            basis="none",
        )
    logs = [math.log(value) for value in then if value > 0]
    if len(logs) < MANY:
        return _change(metric, old, new, math.log(new / old), None, None, basis="none")
    error, freedom = _of_runs(logs, len(now))
    return _change(metric, old, new, math.log(new) - statistics.median(logs), error, freedom, basis="earlier runs")


def verdict_of(ratio: Estimate) -> Verdict:
    """Return what may be said of a ratio with a 99 % interval; the table of `stats.verdicts`."""
    if ratio.high < 1 and ratio.value <= 1 - EFFECT:
        return "FASTER"
    if ratio.low > 1 and ratio.value >= 1 + EFFECT:
        return "SLOWER"
    return "SAME" if ratio.low > 1 - EFFECT and ratio.high < 1 + EFFECT else "UNDECIDED"


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation as at least `MANY` values tell it, a few wild ones among them or not."""
    middle = statistics.median(values)
    distance = statistics.median(abs(value - middle) for value in values)
    count = len(values)
    return TO_DEVIATION * _FEW.get(count, count / (count - 0.8)) * distance


def _measured(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.evidence is not None and point.latency_ns]


def _levels(points: Sequence[Point]) -> list[list[float]]:
    return [point.evidence.levels for point in points if point.evidence is not None]


def _own(then: list[Point], now: list[Point]) -> Change:
    old, new = _levels(then), _levels(now)
    means = [statistics.fmean(levels) for levels in old]
    difference = statistics.median(map(statistics.fmean, new)) - statistics.median(means)
    before, after = (statistics.median(point.latency_ns or 0.0 for point in side) for side in (then, now))
    freedom = float(sum(len(levels) - 1 for levels in [*old, *new]))
    squares = sum(sum((level - statistics.fmean(levels)) ** 2 for level in levels) for levels in [*old, *new])
    launch = squares / freedom if freedom else 0.0
    if len(old) >= MANY:
        least = math.sqrt(launch / statistics.median(map(len, old)))
        error, half = _of_runs(means, len(new), least=least)
        return _change("latency", before, after, difference, error, half, basis="earlier runs")
    if not freedom:
        return _change("latency", before, after, difference, None, None, basis="none")
    variance = sum(sum(launch * (1 + 1 / len(levels)) for levels in side) / len(side) ** 2 for side in (old, new))
    return _change("latency", before, after, difference, math.sqrt(variance), freedom, basis="launches")


def _of_runs(values: Sequence[float], new: int, *, least: float = 0.0) -> tuple[float, float]:
    spread = max(deviation(values), least)
    return spread * math.sqrt(1 / new + math.pi / 2 / len(values)), (len(values) - 1) / 2


def _through_another(then: list[Point], now: list[Point]) -> tuple[float, float, float, str] | None:
    """Return difference, standard error and freedom of the ratio to a case that is on both sides, and its name."""
    old, new = ([_by_other(point) for point in side] for side in (then, now))
    counts = Counter(key for others in old for key in others)
    shared = [key for key in counts if all(key in others for others in new)]
    if not shared:
        return None
    # The one that most runs have; of equal ones the most precise now.
    key = max(shared, key=lambda each: (counts[each], -new[-1][each].error))
    before = [others[key] for others in old if key in others]
    after = [others[key] for others in new]
    difference = statistics.median(one.difference for one in after) - statistics.median(
        one.difference for one in before
    )
    if len(before) >= MANY:
        least = math.sqrt(statistics.fmean(one.error**2 for one in before))
        error, freedom = _of_runs([one.difference for one in before], len(after), least=least)
        return difference, error, freedom, after[-1].case
    parts = [(one.error / len(side)) ** 2 for side in (before, after) for one in side]
    freedoms = [one.freedom for side in (before, after) for one in side]
    total = sum(parts)
    freedom = total**2 / sum(part**2 / each for part, each in zip(parts, freedoms, strict=True)) if total else 1.0
    return difference, math.sqrt(total), freedom, after[-1].case


def _by_other(point: Point) -> dict[tuple[str, str | None], Relative]:
    relatives = point.evidence.relatives if point.evidence is not None else []
    return {(one.series, one.version): one for one in relatives}


def _change(
    metric: Metric,
    before: float,
    after: float,
    difference: float,
    error: float | None,
    freedom: float | None,
    *,
    basis: Basis,
    other: str = "",
    moved: float | None = None,
) -> Change:
    half = 0.0
    if error is not None and freedom:
        half = error * float(scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
    ratio = Estimate(value=math.exp(difference), low=math.exp(difference - half), high=math.exp(difference + half))
    verdict: Verdict = "UNDECIDED" if error is None else verdict_of(ratio)
    return Change(
        metric=metric,
        before=before,
        after=after,
        ratio=ratio,
        verdict=verdict,
        basis=basis,
        other=other,
        moved=moved,
    )
