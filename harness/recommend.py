"""Which case to deploy for a wish, why not the others, and what would change the answer. Pure functions of summaries.

How the recommended case is found, in one workload:

1. A case meets the wish when it ended well, its outputs agree (or are as near as the wish asks), every limited figure
   exists and keeps its limit, and the objective's figure exists.
2. Of those, the one whose objective is best by its estimate leads. Durations of an iteration are ordered by their ratio
   to the baseline, which drift of the machine does not touch.
3. Those that are not surely worse than the leader are tied with it. Surely means what it means for a verdict: the
   interval is clear and the effect is at least `stats.EFFECT`; what follows from an iteration's duration is compared
   directly, within the launches that visited both.
4. Among the tied the one that compiles fastest is recommended: nothing that the run knows speaks for a longer wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from harness import ratios
from harness.advice import (
    COST,
    METRICS,
    Advice,
    Candidate,
    Fate,
    Limit,
    Margin,
    Metric,
    Miss,
    Recommendation,
    Wish,
    metric,
)
from harness.cautions import torn
from harness.records import Workload
from harness.stats import EFFECT
from harness.suite import geometric_mean
from harness.summary import CaseSummary, Comparison, Doubt, Estimate, Overall, RunSummary, WorkloadSummary
from harness.tradeoffs import break_even, frontier, speeds

Direct = Callable[[Workload, str], Mapping[str, Comparison]]
"""Compares all cases of a workload with one of them: `ratios.against`."""

_UNITY = Estimate(value=1.0, low=1.0, high=1.0)
_SOUND = ("ok", "drifted")


def advise(summary: RunSummary, wish: Wish, *, direct: Direct = ratios.against) -> Advice:
    """Return what to deploy for each workload, and for all of them together."""
    each = [recommend(one, wish, direct=direct) for one in summary.workloads]
    late = _interrupted(summary)
    each = [msgspec.structs.replace(one, doubts=[*one.doubts, *late]) for one in each]
    return Advice(
        run=summary.run.id,
        wish=wish,
        recommendations=each,
        overall=overall(summary, wish, direct=direct),
    )


def recommend(summary: WorkloadSummary, wish: Wish, *, direct: Direct = ratios.against) -> Recommendation:
    """Return which case of a workload to deploy; `direct` compares its cases with one of them."""
    rows = summary.rows
    misses = {row.case.id: missed(row, wish) for row in rows}
    fit = [row for row in rows if not misses[row.case.id]]
    aim = metric(wish.objective, wish)
    values = _values(rows, aim)
    leader = min(fit, key=lambda row: values[row.case.id], default=None)
    if leader is None:
        nearest = _nearest(rows, misses, values)
        candidates = [_candidate(row, wish, "misses", misses[row.case.id]) for row in rows]
        found = Recommendation(workload=summary.workload.key, case=None, nearest=nearest, candidates=candidates)
        return _marked(found, rows, wish)
    to_leader = direct(summary.workload, leader.case.id)
    level, apart = _level(leader, fit, aim, to_leader)
    chosen = min(level, key=lambda row: _compile_s(row))
    beside = to_leader if chosen is leader else direct(summary.workload, chosen.case.id)
    tied = [row.case.id for row in level if row is not chosen]
    candidates = []
    for row in rows:
        key = row.case.id
        fate: Fate = "recommended" if row is chosen else "tied" if key in tied else "misses" if misses[key] else "worse"
        factor = _factor(row, chosen, aim, beside)
        candidates.append(_candidate(row, wish, fate, misses[key], beside.get(key), factor, chosen))
    found = Recommendation(
        workload=summary.workload.key,
        case=chosen.case.id,
        tied=tied,
        margins=_margins(chosen, wish),
        doubts=_doubts(summary, aim, apart=apart),
        candidates=candidates,
        engine=chosen.case.engine,
    )
    return _marked(found, rows, wish)


def missed(row: CaseSummary, wish: Wish) -> list[Miss]:
    """Return the conditions of a wish that a case does not meet."""
    case = row.case
    if case.status not in _SOUND or row.compute is None:
        return [Miss(metric="status")]
    found = []
    if wish.max_drift == "pass":
        found += [Miss(metric="check")] if case.status == "drifted" else []
    elif wish.max_drift != "any":
        found += _over("drift", METRICS["drift"], wish.max_drift, row)
    for limit in wish.limits:
        found += _over(limit.metric, metric(limit.metric, wish), limit.value, row)
    if metric(wish.objective, wish).of(row) is None and all(one.metric != wish.objective for one in found):
        found.append(Miss(metric=wish.objective))
    return found


def _over(key: str, of: Metric, limit: float, row: CaseSummary) -> list[Miss]:
    figure = of.of(row)
    if figure is None:
        return [Miss(metric=key, limit=limit)]
    better = figure.value >= limit if of.higher_is_better else figure.value <= limit
    if better:
        return []
    small, large = sorted((figure.value, limit))
    return [Miss(metric=key, limit=limit, value=figure.value, over=large / small - 1 if small > 0 else math.inf)]


def _values(rows: Sequence[CaseSummary], aim: Metric) -> dict[str, float]:
    """Return every case's objective, smaller is better."""
    if aim.per_iteration:
        return speeds(rows)
    sign = -1.0 if aim.higher_is_better else 1.0
    figures = {row.case.id: aim.of(row) for row in rows}
    return {key: sign * one.value if one else math.inf for key, one in figures.items()}


def _level(
    leader: CaseSummary, fit: Sequence[CaseSummary], aim: Metric, to_leader: Mapping[str, Comparison]
) -> tuple[list[CaseSummary], bool]:
    """Return the rows that are not surely worse than the leader, itself among them.

    Also whether any of them was never measured beside it, so that their intervals had to be compared.
    """
    level, apart = [leader], False
    for row in fit:
        if row is leader:
            continue
        comparison = to_leader.get(row.case.id)
        if aim.per_iteration and comparison is not None:
            worse = _surely_worse(comparison.ratio, _UNITY)
        else:
            apart = apart or aim.per_iteration
            higher = aim.higher_is_better and not aim.per_iteration
            worse = _surely_worse(*_indirect(row, leader, aim), higher_is_better=higher)
        if not worse:
            level.append(row)
    return [row for row in fit if row in level], apart


def _indirect(row: CaseSummary, leader: CaseSummary, aim: Metric) -> tuple[Estimate | None, Estimate | None]:
    """Return what of two cases is set side by side where they were never measured together."""
    if not aim.per_iteration:
        return aim.of(row), aim.of(leader)
    own, best = _ratio(row), _ratio(leader)
    if own and best:
        return own, best
    return METRICS["latency"].of(row), METRICS["latency"].of(leader)


def _ratio(row: CaseSummary) -> Estimate | None:
    if row.is_baseline:
        return _UNITY
    return row.comparison.ratio if row.comparison else None


def _surely_worse(one: Estimate | None, best: Estimate | None, *, higher_is_better: bool = False) -> bool:
    if one is None or best is None:
        return False
    if higher_is_better:
        return one.high < best.low and one.value * (1 + EFFECT) <= best.value
    return one.low > best.high and one.value >= (1 + EFFECT) * best.value


def _compile_s(row: CaseSummary) -> float:
    return row.case.stages.get("compile", math.inf)


def _factor(row: CaseSummary, chosen: CaseSummary, aim: Metric, beside: Mapping[str, Comparison]) -> float | None:
    if aim.per_iteration and (comparison := beside.get(row.case.id)):
        return comparison.ratio.value
    own, best = aim.of(row), aim.of(chosen)
    if own is None or best is None or own.value <= 0 or best.value <= 0:
        return None
    return best.value / own.value if aim.higher_is_better else own.value / best.value


def _candidate(
    row: CaseSummary,
    wish: Wish,
    fate: Fate,
    misses: list[Miss],
    comparison: Comparison | None = None,
    factor: float | None = None,
    chosen: CaseSummary | None = None,
) -> Candidate:
    case, known = row.case, [*METRICS, *([COST] if wish.price_per_hour else [])]
    gone = any(one.metric == "status" for one in misses)
    pays = break_even(chosen, row, comparison) if chosen and comparison and not gone and row is not chosen else None
    return Candidate(
        case=case.id,
        status=case.status,
        fate="no result" if gone else fate,
        figures={key: one.value for key in known if (one := metric(key, wish).of(row)) is not None},
        misses=misses,
        comparison=comparison,
        factor=factor,
        break_even=pays,
        reason=case.failure.message.partition("\n")[0] if case.failure and misses else "",
    )


def _marked(found: Recommendation, rows: Sequence[CaseSummary], wish: Wish) -> Recommendation:
    """Return the recommendation with the Pareto frontier of its sound cases marked."""
    sound = [row for row in rows if row.compute and _is_sound(row, wish)]
    dominated = frontier(sound)
    marked = [
        msgspec.structs.replace(one, frontier=dominated.get(one.case) == [], dominated_by=dominated.get(one.case, []))
        for one in found.candidates
    ]
    return msgspec.structs.replace(found, candidates=marked)


def _is_sound(row: CaseSummary, wish: Wish) -> bool:
    return row.case.status == "ok" or (row.case.status == "drifted" and wish.max_drift != "pass")


def _nearest(rows: Sequence[CaseSummary], misses: Mapping[str, list[Miss]], values: Mapping[str, float]) -> str | None:
    """Return the case that misses a wish by least.

    What cannot be put into a number, such as outputs that do not agree, is worse than any excess; then the largest
    excess decides, then all of them together, then the objective.
    """

    def distance_of(row: CaseSummary) -> tuple[int, float, float, float]:
        own = misses[row.case.id]
        excess = [math.log1p(one.over) for one in own if one.over is not None]
        return len(own) - len(excess), max(excess, default=0.0), sum(excess), values[row.case.id]

    tried = [row for row in rows if all(one.metric != "status" for one in misses[row.case.id])]
    best = min(tried, key=distance_of, default=None)
    return best.case.id if best else None


def _margins(row: CaseSummary, wish: Wish) -> list[Margin]:
    limits = list(wish.limits)
    if isinstance(wish.max_drift, float):
        limits.append(Limit(metric="drift", value=wish.max_drift))
    found = []
    for limit in limits:
        of = metric(limit.metric, wish)
        figure = of.of(row)
        assert figure is not None
        end = figure.low if of.higher_is_better else figure.high
        close = end < limit.value if of.higher_is_better else end > limit.value
        found.append(Margin(metric=limit.metric, limit=limit.value, value=figure.value, close=close))
    return found


def _doubts(summary: WorkloadSummary, aim: Metric, *, apart: bool) -> list[Doubt]:
    found: list[Doubt] = ["apart"] if apart else []
    if aim.per_iteration and any(row.comparison and row.comparison.rounds_only for row in summary.rows):
        found.append("one launch")
    if summary.suspicious:
        found.append("suspicious")
    if aim.per_iteration and any(torn(row.compute) for row in summary.rows):
        found.append("unsteady")
    if summary.workload.info and not summary.workload.info.deterministic:
        found.append("not deterministic")
    return found


def overall(summary: RunSummary, wish: Wish, *, direct: Direct = ratios.against) -> Overall | None:
    """Return the one case for all workloads that were measured: the best on geometric mean of those that always fit.

    None where fewer than two were measured, against different baselines, or for an objective without a mean.
    """
    counted = [
        (one, {row.case.id: row for row in one.rows if not missed(row, wish)})
        for one in summary.workloads
        if any(row.compute for row in one.rows)
    ]
    baselines = {one.baseline for one, _ in counted}
    comparable = len(baselines) == 1 and None not in baselines
    aim = metric(wish.objective, wish)
    if len(counted) < 2 or not comparable or not aim.per_iteration:
        return None
    meets = {
        case: sum(case in fit for _, fit in counted)
        for case in dict.fromkeys(case for _, fit in counted for case in fit)
    }
    means = {}
    for case, count in meets.items():
        found = [_ratio(fit[case]) for _, fit in counted if case in fit]
        if count == len(counted) and all(found):
            means[case] = geometric_mean([one for one in found if one])
    if not means:
        return Overall(case=None, meets=meets, workloads=len(counted), doubts=_interrupted(summary))
    leader = min(means, key=lambda case: means[case].value)
    beside = [direct(one.workload, leader) for one, _ in counted]
    tied = [case for case in means if case == leader or not _worse_on_mean(means[case], means[leader], case, beside)]
    chosen = min(tied, key=lambda case: sum(_compile_s(fit[case]) for _, fit in counted))
    apart = any(case not in found for found in beside for case in means if case != leader)
    doubts = dict.fromkeys(doubt for one, _ in counted for doubt in _doubts(one, aim, apart=apart))
    return Overall(
        case=chosen,
        ratio=means[chosen],
        tied=[case for case in tied if case != chosen],
        meets=meets,
        workloads=len(counted),
        doubts=[*doubts, *_interrupted(summary)],
    )


def _interrupted(summary: RunSummary) -> list[Doubt]:
    return [] if summary.run.state == "finished" else ["interrupted"]


def _worse_on_mean(own: Estimate, best: Estimate, case: str, beside: Sequence[Mapping[str, Comparison]]) -> bool:
    together = [found[case].ratio for found in beside if case in found]
    if len(together) == len(beside):
        return _surely_worse(geometric_mean(together), _UNITY)
    return _surely_worse(own, best)
