"""Figures over time as people read them: each step with its size and date, what changed then, a plot of the levels."""

from __future__ import annotations

from collections.abc import Iterator

from harness.history.points import METRICS, Metric
from harness.history.trends import Direction, Step, Trend, Trends
from reports.blocks import Banners, Block, Legend, Line, Section, Timeline
from reports.changes import NAMED, told
from reports.formatting import MISSING, clean, counted, listed, percent, ratio, significant
from reports.page import Page
from reports.plot import MARKS
from reports.table import Cell, Column, Drawn, Emphasis, Table, assembled
from reports.timelines import SERIES_DRAWN, unit_of

WORDS: dict[Metric, tuple[str, str, str]] = {
    "latency": ("latency", "slower", "faster"),
    "compile": ("compile time", "longer", "shorter"),
    "memory": ("peak memory", "more", "less"),
    "device-memory": ("device memory", "more", "less"),
    "compile-memory": ("memory of compiling", "more", "less"),
    "engine": ("engine size", "bigger", "smaller"),
    "drift": ("drift", "farther off", "nearer"),
}
"""What a figure is called, and what it is when it is worse or better."""
CASES_LISTED = 20
"""Of those with too few runs."""
OF_DIRECTION: dict[Direction, Emphasis] = {"worse": "bad", "better": "good", "machine": "muted"}
_Found = list[tuple[Trend, Step]]


def draw_trends(found: Trends) -> Page:
    """Return the page of what moved over time."""
    steps = [(trend, step) for trend in found.trends for step in trend.steps]
    # What is worse comes first, of these what is worst.
    steps.sort(key=lambda one: (list(OF_DIRECTION).index(one[1].direction), -abs(one[1].ratio.value - 1)))
    blocks: list[Block] = []
    if not found.trends:
        text = f"no figure has {found.least_runs} runs yet: nothing can be said of where it moves"
        blocks.append(Banners(lines=(Line(label="TOO LITTLE HISTORY", text=text, emphasis="muted"),)))
    if steps:
        blocks += [_table(steps), Legend(texts=tuple(_legend(steps)))]
        blocks += [plot for metric in METRICS if (plot := _timeline(metric, steps)) is not None]
        blocks.append(Section(title="what changed", lines=tuple(_changes(steps))))
    blocks += [Section(title=title, lines=lines) for title, lines in _rest(found) if lines]
    cases = {trend.series for trend in found.trends}
    since = f" since {found.since[:10]}" if found.since else ""
    title = (
        f"trends: {counted(len(steps), 'step', 'steps')}{since} in {counted(len(found.trends), 'figure', 'figures')} "
        f"of {counted(len(cases), 'case', 'cases')}"
    )
    return Page(title=title, blocks=tuple(blocks), closing=" ".join(_said(found, steps)))


def _table(steps: _Found) -> Table:
    def column(key: str, title: str, cells: list[Cell], unit: str = "", *, left: bool = False) -> Drawn:
        return Column(key=key, title=title, unit=unit, align="left" if left else "right"), cells

    return assembled(
        [
            column("case", "case", [_text(_name(trend)) for trend, _ in steps], left=True),
            column("metric", "figure", [_text(WORDS[trend.metric][0]) for trend, _ in steps], left=True),
            column("created", "since", [_text(step.created[:10]) for _, step in steps], left=True),
            column("before", "before", [_level(trend, step.before) for trend, step in steps]),
            column("after", "after", [_level(trend, step.after) for trend, step in steps]),
            column("ratio", "step", [_ratio(step) for _, step in steps], "after / before [99 %]"),
            column("through", "held against", [_through(step) for _, step in steps], "other case [99 %]", left=True),
            column("runs", "runs", [_text(f"{step.runs[0]} > {step.runs[1]}") for _, step in steps]),
            column("noise", "noise", [Cell(text=percent(trend.noise), value=trend.noise) for trend, _ in steps]),
            column("direction", "is", [_direction(step) for _, step in steps], left=True),
        ]
    )


def _legend(steps: _Found) -> Iterator[str]:
    yield (
        "A step is a move of the level that held for at least 3 runs: single runs that stand out are none. Levels are "
        "means of runs without what stands out; noise is how runs differ within a level."
    )
    if any(step.through for _, step in steps):
        yield (
            "held against = the ratio to another case of the same runs, in one version throughout: what slows the "
            "whole machine down is not in it. Where it stayed at 1, the step is the machine's."
        )


def _timeline(metric: Metric, steps: _Found) -> Timeline | None:
    """Return the figure of the cases with the largest steps, relative to their first level."""
    trends = list({trend.series: trend for trend, _ in steps if trend.metric == metric}.values())
    trends = trends[: min(SERIES_DRAWN, len(MARKS))]
    if not trends:
        return None
    created = {run: when for trend in trends for run, when in zip(trend.runs, trend.created, strict=True)}
    runs = sorted(created, key=lambda run: (created[run], run))
    series = []
    for trend in trends:
        first = trend.steps[0].before or 1.0
        values = dict(zip(trend.runs, (value / first for value in trend.values), strict=True))
        series.append((_name(trend), tuple(values.get(run) for run in runs)))
    return Timeline(
        unit=f"{WORDS[metric][0]} / its level before the first step",
        runs=tuple(created[run][5:10] for run in runs),
        series=tuple(series),
    )


def _changes(steps: _Found) -> Iterator[Line]:
    """Yield what changed at each step; those of one run and the same changes together."""
    together: dict[tuple[str, str, str, tuple[tuple[str, str], ...]], list[str]] = {}
    for trend, step in steps:
        changed = tuple(told(step.changed))
        key = step.created[:10], step.before_run, step.run, changed
        together.setdefault(key, []).append(f"{WORDS[trend.metric][0]} of {_name(trend)}")
    for (when, before, after, changed), names in together.items():
        nothing = "nothing that runs record: neither versions, driver, system, commit, nor the load by others"
        what = "; ".join(f"{name} {values}" for name, values in changed) or nothing
        yield Line(label=when, text=f"{what} ({listed(names, most=NAMED)})")
        yield Line(text=f"harness diff {clean(before)} {clean(after)}")


def _rest(found: Trends) -> Iterator[tuple[str, tuple[Line, ...]]]:
    short: dict[str, list[str]] = {}
    for one in found.short:
        short.setdefault(clean(one.title), []).append(f"{one.metric} {one.runs}")
    lines = [Line(label=name, text=", ".join(figures)) for name, figures in list(short.items())[:CASES_LISTED]]
    if len(short) > CASES_LISTED:
        lines.append(Line(text=f"and {len(short) - CASES_LISTED} more cases"))
    yield f"too few runs, {found.least_runs} are needed", tuple(lines)
    left_out = [Line(label=clean(name), text="runs of another model of this name") for name in found.other_models]
    yield "left out", tuple(left_out)


def _said(found: Trends, steps: _Found) -> Iterator[str]:
    for trend, step in steps:
        if step.direction == "machine":
            continue
        name, worse, better = WORDS[trend.metric]
        value = step.ratio.value
        factor = f"{significant(value if value >= 1 else 1 / value)}x"
        yield f"{_name(trend)}: {name} {factor} {worse if value > 1 else better} since {step.created[:10]}."
    machine = dict.fromkeys(_name(trend) for trend, step in steps if step.direction == "machine")
    if machine:
        yield f"The machine moved, not the case: {listed(list(machine), most=NAMED)}."
    if found.trends and not steps:
        yield "No figure moved."


def _name(trend: Trend) -> str:
    return clean(trend.title)


def _text(text: str) -> Cell:
    return Cell(text=clean(text) or MISSING, value=text)


def _level(trend: Trend, value: float) -> Cell:
    if trend.metric == "drift":
        return Cell(text=f"{value:.1e}", value=value)
    scale, unit = unit_of(trend.metric, [value])
    return Cell(text=f"{significant(value / scale)} {unit}", value=value)


def _ratio(step: Step) -> Cell:
    return Cell(text=ratio(step.ratio), value=step.ratio.value, emphasis=OF_DIRECTION[step.direction])


def _through(step: Step) -> Cell:
    if step.through is None:
        return Cell()
    return Cell(text=f"{clean(step.through.other)} {ratio(step.through.ratio)}", value=step.through.other)


def _direction(step: Step) -> Cell:
    return Cell(text=step.direction, value=step.direction, emphasis=OF_DIRECTION[step.direction])
