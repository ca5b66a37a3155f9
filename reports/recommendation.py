"""What to deploy, as people read it: the answer, why, how sure, why not the others, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.advice import (
    METRICS,
    Advice,
    BreakEven,
    Candidate,
    Kind,
    Limit,
    Miss,
    Recommendation,
    Wish,
    metric,
)
from harness.summary import Overall, RunSummary, WorkloadSummary
from reports import details, sections
from reports.blocks import Block, Code, Heading, Legend, Line, Section, Sentence
from reports.formatting import MISSING, clean, counted, duration, listed, percent, ratio, scientific, significant, size
from reports.page import Page
from reports.table import OF_STATUS, Cell, Column, Drawn, Emphasis, Table, assembled
from reports.terminal import render_page

SHOWN = ("latency", "drift", "compile", "memory")
"""Figures that every table of candidates has; those of the wish come besides."""
SUPERLATIVE: dict[str, str] = {
    "latency": "the lowest p50 latency",
    "latency-p95": "the lowest p95 latency",
    "latency-p99": "the lowest p99 latency",
    "host-to-host": "the lowest p50 with copies",
    "device-latency": "the lowest p50 of the device itself",
    "throughput": "the highest throughput",
    "compile": "the shortest compilation",
    "warm-load": "the quickest warm load",
    "memory": "the least memory",
    "device-memory": "the least memory of the device",
    "energy": "the least energy of an inference",
    "engine": "the smallest engine",
    "drift": "the least distance from the reference",
    "accuracy": "the highest accuracy on the data set",
    "cost": "the lowest cost of a million items",
}
DOUBTS = {
    "one launch": "one launch cannot show how processes differ: a first look, not a verdict (--launches 5)",
    "suspicious": "two identical workers of the baseline differ in this run: repeat it on a quieter machine",
    "not deterministic": "the reference gave different outputs when run twice",
    "interrupted": "the run did not finish: what is missing could be better",
    "unsteady": "windows differ so much that a p50 is not what most of them saw: go by the ratios, or measure again",
    "apart": "not all candidates were measured side by side; their intervals are compared instead",
}
LONG_COUNT = 1e6


def render(advice: Advice, summary: RunSummary, *, color: bool = False, width: int | None = None) -> str:
    """Return what `harness recommend` prints."""
    return render_page(draw(advice, summary), color=color, width=width)


def draw(advice: Advice, summary: RunSummary) -> Page:
    """Return the page of an advice, without a format."""
    several = len(advice.recommendations) > 1
    blocks: list[Block] = [Section(title="wish", lines=tuple(_wish(advice.wish)))]
    for one, of in zip(advice.recommendations, summary.workloads, strict=True):
        if several:
            blocks.append(Heading(text=details.heading(of, summary)))
        blocks += draw_one(one, of, advice.wish)
    if any(each.break_even for one in advice.recommendations for each in one.candidates):
        blocks.append(Legend(texts=(_PAYS,)))
    if not advice.recommendations:
        blocks.append(Sentence(text="The run holds no workload: there is nothing to choose from."))
    closing = overall(advice.overall, advice.wish) if advice.overall else ""
    return Page(title=f"What to deploy: {sections.title(summary)}", blocks=tuple(blocks), closing=closing)


def draw_one(found: Recommendation, of: WorkloadSummary, wish: Wish) -> Iterator[Block]:
    """Yield the recommendation for one workload."""
    yield Sentence(text=headline(found, of, wish))
    if any(one.figures for one in found.candidates):
        yield _table(found, wish)
    if why := tuple(_why(found, wish)):  # of a single case without limits there is nothing to say
        yield Section(title="why", lines=why)
    if found.no_snippet:
        yield Section(title="to deploy it", lines=(Line(text=clean(found.no_snippet)),))
    if found.snippet:
        yield Code(title=f"to load {clean(found.case or '')}", lines=tuple(found.snippet.splitlines()))


def headline(found: Recommendation, of: WorkloadSummary, wish: Wish) -> str:
    """Return the answer in a sentence or two."""
    if found.case is None:
        return _nothing(found, of, wish)
    chosen = next(one for one in found.candidates if one.case == found.case)
    others = sum(one.fate in ("tied", "worse") for one in found.candidates)
    figure = f"{METRICS['latency'].title} {shown(chosen.figures['latency'], 'duration')}"
    if wish.objective not in ("latency", "drift"):
        aim = metric(wish.objective, wish)
        figure = f"{aim.title} {shown(chosen.figures[wish.objective], aim.kind)}"
    lead = f"{'A first look, no verdict:' if 'one launch' in found.doubts else 'Deploy'} {clean(found.case)}"
    if found.tied:
        tied = listed([clean(case) for case in found.tied])
        how = "it compiles fastest" if wish.objective != "compile" else "it is as good as any"
        text = f"{lead} ({figure}): in a tie within noise with {tied} for {SUPERLATIVE[wish.objective]}, and {how}"
    elif others:
        sure = "surely" if found.sure else "by its estimate"
        text = f"{lead} ({figure}): {sure} {SUPERLATIVE[wish.objective]} of the {others + 1} {_that_fit(wish)}"
    else:
        text = f"{lead} ({figure}): nothing else meets the wish"
    return f"{text}."


def _that_fit(wish: Wish) -> str:
    """Return what all candidates that were considered have in common: a page may be read by who did not wish."""
    return "that meet the wish" if wish.limits or wish.max_drift != "pass" else "whose outputs agree"


def overall(found: Overall, wish: Wish) -> str:
    """Return what a person would say of all workloads together."""
    if found.case is None:
        if not found.meets:
            return "Nothing meets the wish in any workload."
        best = sorted(found.meets.items(), key=lambda item: -item[1])[:3]
        named = listed([f"{clean(case)} in {count} of {found.workloads}" for case, count in best])
        return f"No backend meets the wish in all {found.workloads} workloads: {named}."
    assert found.ratio is not None
    sure = ", by estimates only" if found.doubts else ""
    one = "the baseline"
    if found.ratio.low < found.ratio.high:
        one = f"{ratio(found.ratio)} of the baseline's time on geometric mean"
    tied = f", in a tie within noise with {listed([clean(case) for case in found.tied])}" if found.tied else ""
    return f"One backend for all {found.workloads} workloads{sure}: {clean(found.case)}, {one}{tied}."


def shown(value: float, kind: Kind) -> str:
    """Return a figure as running text has it."""
    match kind:
        case "duration":
            return duration(value)
        case "size":
            return size(int(value))
        case "rate":
            return f"{significant(value)} items/s"
        case "share":
            return percent(value)
        case "energy":
            return f"{significant(value)} mJ"
        case "money":
            return significant(value)
        case "number":
            return scientific(value)


def why_not(one: Candidate, wish: Wish) -> str:
    """Return why a case is not the one, or that it is."""
    match one.fate:
        case "recommended":
            return "recommended"
        case "no result" if one.status == "compiled":
            return "only compiled, for a device that is not here"
        case "no result":
            return f"{one.status.replace('_', ' ')}{f': {clean(one.reason)}' if one.reason else ''}"
        case "tied":
            return f"tied within noise{_by(one)}"
        case "worse":
            return _worse(one, wish)
        case "misses":
            text = "; ".join(miss(each, wish) for each in one.misses)
            better = one.factor is not None and one.factor < 1
            return f"{text}; otherwise {_times(1 / one.factor)} better" if better and one.factor else text


def miss(one: Miss, wish: Wish) -> str:
    """Return a condition that is not met, and by how much."""
    if one.metric == "check":
        return "its outputs do not agree with the reference"
    if one.metric == "status":
        return "it has no result"
    of = metric(one.metric, wish)
    if one.value is None:
        return f"no {of.title}: not measured, or too few samples"
    assert one.limit is not None
    bound, beyond = ("at least", "too little") if of.higher_is_better else ("at most", "too much")
    excess = "" if one.over is None or not math.isfinite(one.over) else f", {_excess(one.over)} {beyond}"
    return f"{of.title} {shown(one.value, of.kind)}, {bound} {shown(one.limit, of.kind)} wished{excess}"


def pays(one: BreakEven | None) -> str:
    """Return when a longer compilation has paid for itself, for a cell of a table."""
    if one is None:
        return MISSING
    if one.kind in ("at once", "never"):
        return one.kind
    assert one.inferences is not None
    high = _count(one.high) if one.high is not None else "never"
    prefix = "until " if one.kind == "until" else ""
    return f"{prefix}{_count(one.inferences)} [{_count(one.low or 0)}, {high}]"


_PAYS = (
    "pays off after = inferences after which the recommended one has made up for compiling longer than this one; at "
    "once = it compiles no longer; never = it runs no faster; until = from there on this one would be ahead. [low, "
    "high] is the 99 % interval of the difference in speed: never at its end means that it is not sure to pay. "
    "frontier = no other is at least as good in latency, drift, compile time and memory and better in one of them."
)


def _wish(wish: Wish) -> Iterator[Line]:
    yield Line(label="objective", text=SUPERLATIVE[wish.objective])
    agree = {"pass": "agree with the reference", "any": "may be any"}
    if isinstance(wish.max_drift, str):
        yield Line(label="outputs", text=agree[wish.max_drift])
    else:
        yield Line(label="outputs", text=f"within a relative L2 distance of {scientific(wish.max_drift)}")
    if wish.limits:
        yield Line(label="limits", text=", ".join(_limit(one, wish) for one in wish.limits))
    if wish.price_per_hour:
        yield Line(label="price", text=f"{significant(wish.price_per_hour)} an hour")


def _limit(one: Limit, wish: Wish) -> str:
    of = metric(one.metric, wish)
    return f"{of.title} {'at least' if of.higher_is_better else 'at most'} {shown(one.value, of.kind)}"


def _nothing(found: Recommendation, of: WorkloadSummary, wish: Wish) -> str:
    if found.nearest is None:
        failure = of.workload.failure
        if failure is not None:
            return f"Nothing can be recommended: {clean(failure.message).rstrip('.')}."
        if of.workload.target:
            return f"Nothing can be recommended: it was compiled for {of.workload.target} and did not run."
        if not found.candidates:
            return "Nothing can be recommended: the run has no case of it, or not yet."
        failed = counted(len(found.candidates), "case", "cases")
        return f"Nothing can be recommended: none of {failed} has a result."
    tried = [one for one in found.candidates if one.fate == "misses"]
    lacking = {each.metric for one in tried for each in one.misses if each.value is None and each.metric in METRICS}
    for key in sorted(lacking):
        if all(key not in one.figures for one in tried):
            return (
                f"Nothing can be recommended: this run has no {METRICS[key].title} of any case. More launches and "
                "rounds give tails their samples: harness compare --launches 10 --budget 600."
                if key.startswith("latency-p")
                else f"Nothing can be recommended: this run has no {METRICS[key].title} of any case."
            )
    nearest = next(one for one in tried if one.case == found.nearest)
    misses = "; ".join(miss(each, wish) for each in nearest.misses)
    return f"Nothing that was measured meets the wish. The nearest is {clean(found.nearest)}: {misses}."


def _why(found: Recommendation, wish: Wish) -> Iterator[Line]:
    for one in found.candidates:
        if one.fate != "recommended":
            emphasis: Emphasis = "bad" if one.fate == "misses" else "muted" if one.fate == "no result" else ""
            yield Line(label=f"not {clean(one.case)}", text=why_not(one, wish), emphasis=emphasis)
    for margin in found.margins:
        of = metric(margin.metric, wish)
        text = f"{of.title} {shown(margin.value, of.kind)} of {shown(margin.limit, of.kind)}"
        near = "; its interval reaches beyond the limit, so the next run may miss it" if margin.close else ""
        yield Line(label="limit met", text=f"{text}{near}", emphasis="bad" if margin.close else "")
    if found.case is not None:
        for doubt in found.doubts:
            yield Line(label="doubt", text=DOUBTS[doubt], emphasis="bad")


def _worse(one: Candidate, wish: Wish) -> str:
    aim = metric(wish.objective, wish)
    if aim.per_iteration and one.comparison:
        return f"slower: {ratio(one.comparison.ratio)} of its time"
    if one.factor is None:
        return f"{aim.title}: worse"
    side = "less" if aim.higher_is_better else "more"
    return f"{aim.title}: {_times(one.factor)} {side}"


def _by(one: Candidate) -> str:
    return f": {ratio(one.comparison.ratio)} of its time" if one.comparison else ""


def _times(factor: float) -> str:
    return f"{significant(factor)}x"


def _excess(over: float) -> str:
    return percent(over) if over < 1 else f"{significant(over + 1)} times"


def _count(number: int) -> str:
    return f"{number:,}" if number < LONG_COUNT else f"{number:.1e}"


def _table(found: Recommendation, wish: Wish) -> Table:
    wished = [one.metric for one in wish.limits] + [wish.objective]
    keys = list(dict.fromkeys([*SHOWN, *wished]))
    rows = [one for one in found.candidates if one.figures]
    drawn: list[Drawn] = [_text("case", "backend", [Cell(text=clean(one.case), value=one.case) for one in rows])]
    for key in keys:
        of = metric(key, wish)
        cells = [
            Cell(text=shown(one.figures[key], of.kind), value=one.figures[key]) if key in one.figures else Cell()
            for one in rows
        ]
        drawn.append((Column(key=key, title=of.title), cells))
    marks = [Cell(text="yes" if one.frontier else "no", value=one.frontier) for one in rows]
    drawn.append(_text("frontier", "frontier", marks))
    if any(one.break_even for one in rows):
        paid = [Cell(text=pays(one.break_even), value=_paid(one.break_even)) for one in rows]
        drawn.append((Column(key="pays", title="pays off after", unit="inferences"), paid))
    drawn.append(_text("fate", "", [_fate(one) for one in rows]))
    return assembled(drawn)


def _paid(one: BreakEven | None) -> int | None:
    return one.inferences if one else None


def _fate(one: Candidate) -> Cell:
    emphasis: dict[str, Emphasis] = {"recommended": "good", "tied": "good", "misses": "bad"}
    text = one.status if one.fate == "no result" else one.fate
    return Cell(text=text, value=text, emphasis=emphasis.get(one.fate, OF_STATUS.get(text, "")))


def _text(key: str, title: str, cells: list[Cell]) -> Drawn:
    return Column(key=key, title=title, align="left"), cells
