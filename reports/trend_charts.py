"""Charts of the figures of one setting over time, a line a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any  # matplotlib's axes: it is not imported here

from harness.history.points import Metric
from harness.history.site import CaseHistory, Setting, interval
from harness.history.trends import Step, Trends
from harness.summary import Estimate
from reports.charting import BELOW, COLORS, LEGEND_ROW, SERIES, Chart, legend_below, short, style
from reports.formatting import counted, scientific, significant, time_unit

MB = 1e6
SPREAD = 6
"""From this ratio of the highest to the lowest value on an axis is logarithmic."""
HIGH = 2.1
"""Inches of the axes."""
WHAT: dict[Metric, tuple[str, str]] = {
    "latency": (
        "Median latency",
        "Boundary compute. The band is the 99 % interval that the launches of a run tell; one launch tells none. "
        "Dotted lines mark where a level changed.",
    ),
    "compile": ("Compile time", "Of runs that compiled: an engine that was taken from an earlier run is left out."),
    "engine": ("Engine size", "All that the backend saved."),
    "drift": ("Distance from the reference", "Relative L2 of the output farthest from it; 0 is not drawn."),
}
"""Metric -> title and caption."""


def of_setting(setting: Setting, trends: Trends) -> list[Chart]:
    """Return a chart for every figure that at least one case has in two runs; `trends` are those of its cases."""
    return [chart for metric in WHAT if (chart := _over_time(setting, metric, trends)) is not None]


def _over_time(setting: Setting, metric: Metric, trends: Trends) -> Chart | None:
    lines = [(index, case, _known(case, metric)) for index, case in enumerate(setting.cases)]
    lines = [line for line in lines if line[2]][:SERIES]
    if all(len(known) < 2 for _, _, known in lines):
        return None
    steps = {one.series: one.steps for one in trends.trends if one.metric == metric}
    unit, per = _unit(metric, [value for _, _, known in lines for _, value, _ in known])
    title, caption = WHAT[metric]

    def draw(axes: Any) -> None:
        for index, case, known in lines:
            times = [when for when, _, _ in known]
            values = [value / per for _, value, _ in known]
            drawn = style(index, True) | {"markersize": 3 if len(known) > 20 else 4, "linewidth": 1.2}
            axes.plot(times, values, label=short(case.last.case), **drawn)
            banded = [(when, band) for when, _, band in known if band is not None]
            if len(banded) > 1:
                axes.fill_between(
                    [when for when, _ in banded],
                    [band.low / per for _, band in banded],
                    [band.high / per for _, band in banded],
                    color=COLORS[index % SERIES],
                    alpha=0.18,
                    linewidth=0,
                )
            for step in steps.get(case.last.series, []):
                _mark(axes, step, COLORS[index % SERIES])
        _scale(axes, [value / per for _, _, known in lines for _, value, _ in known])
        _dates(axes)
        axes.set_ylabel(unit)
        legend_below(axes, 2)

    below = BELOW + LEGEND_ROW * math.ceil(len(lines) / 2)
    return Chart(
        key=f"{metric}-over-time",
        title=title,
        caption=caption,
        summary="; ".join(_said(case, known, per, unit) for _, case, known in lines),
        draw=draw,
        height=HIGH + below + 0.1,
        beside=0.9,
        below=below,
    )


Known = tuple[datetime, float, Estimate | None]


def _known(case: CaseHistory, metric: Metric) -> list[Known]:
    found = []
    for point in case.comparable:
        value, when = point.value(metric), _when(point.created)
        if value is not None and when is not None and value > 0 and math.isfinite(value):
            found.append((when, value, interval(point) if metric == "latency" else None))
    return found


def _mark(axes: Any, step: Step, color: str) -> None:
    """Mark where a figure moved to another level, and how far."""
    when = _when(step.created)
    if when is None:
        return
    axes.axvline(when, color=color, linewidth=0.9, linestyle=":", zorder=1)
    axes.annotate(
        f"{significant(step.ratio.value)}x",
        (when, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(2, -2),
        textcoords="offset points",
        fontsize=7.5,
        color=color,
        va="top",
    )


def _when(created: str) -> datetime | None:
    try:
        return datetime.fromisoformat(created).replace(tzinfo=None)
    except ValueError:
        return None


def _unit(metric: Metric, values: Sequence[float]) -> tuple[str, float]:
    if metric == "latency":
        unit = time_unit([value * 1e-9 for value in values])
        return unit.name, unit.seconds * 1e9
    return {"compile": ("s", 1.0), "engine": ("MB", MB)}.get(metric, ("rel. L2", 1.0))


def _scale(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if high / low > SPREAD:
        axes.set_yscale("log", subs=(1, 2, 5) if high / low < 30 else (1,))
        axes.set_ylim(low / 1.5, high * 1.5)
    else:
        margin = (high - low) * 0.15 or high * 0.05
        axes.set_ylim(max(low - margin, 0), high + margin)
    for name in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        name(lambda value, _: f"{value:.3g}")


def _dates(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _said(case: CaseHistory, known: Sequence[Known], per: float, unit: str) -> str:
    show = scientific if unit == "rel. L2" else significant
    first, last = (show(one[1] / per) for one in (known[0], known[-1]))
    return f"{short(case.last.case)} {first} {unit}, after {counted(len(known), 'run', 'runs')} {last} {unit}"
