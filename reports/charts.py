"""Charts of a workload and of a sweep: what each shows, and how it is drawn.

Cases keep their colour over all charts of a workload; dashes, markers and hatches tell them apart too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any  # matplotlib's axes: it is not imported here

import numpy as np

from harness import ratios
from harness.advice import distance
from harness.records import CONTROL, Ceiling
from harness.summary import CaseSummary, WorkloadSummary
from reports.blocks import Plot
from reports.charting import (
    BACK,
    BELOW,
    COLORS,
    GRID,
    LEGEND_ROW,
    MUTED,
    NAME_CHARACTERS,
    SERIES,
    Chart,
    around,
    legend_below,
    name_rows,
    places,
    room,
    short,
    shown,
    spread,
    style,
)
from reports.formatting import clean, duration, scientific, shorten, significant, size, time_unit
from reports.roofline_chart import roofline

POINTS = 160
"""Of a line of a distribution."""
TAIL = 0.995
"""Share of the samples that the axis of a distribution reaches."""
STAGES = ("import", "load", "tune", "build", "compile", "first_run", "second_run", "save")
"""In the order in which they happen; `compile` is what is left of it beside its parts."""
PARTS = ("load", "tune", "build")
FIGURE = 0.07
"""Inches that a figure beside an axis takes."""


def of_workload(workload: WorkloadSummary, ceilings: Sequence[Ceiling] = ()) -> list[Chart]:
    """Return the charts that there are data for; `ceilings` are those of the run's devices."""
    made = [
        *(make(workload) for make in (_latency, _rounds, _drift)),
        roofline(workload, ceilings),
        *(make(workload) for make in (_compile, _memory)),
    ]
    return [chart for chart in made if chart is not None]


def could_have_roofline(workload: WorkloadSummary) -> bool:
    """Say whether only the ceilings of its device are missing."""
    info = workload.workload.info
    known = info is not None and info.gflop and info.least_bytes
    return bool(known) and all(row.limit_share is None for row in workload.rows if row.compute)


def of_plot(plot: Plot) -> Chart:
    """Return throughput against the size of a free dimension."""
    known = [
        (name, [(size_, value) for size_, value in zip(plot.sizes, values, strict=True) if value is not None])
        for name, values in plot.series
    ][:SERIES]

    def draw(axes: Any) -> None:
        for index, (name, points) in enumerate(known):
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=short(name), markersize=5, **style(index, True)
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(plot.sizes, [str(size_) for size_ in plot.sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(plot.dim)
        axes.set_ylabel("items/s")
        legend_below(axes, 2)

    below = BELOW + LEGEND_ROW * math.ceil(len(known) / 2) + 0.05
    best = [f"{name} {significant(max(y for _, y in points))} items/s at most" for name, points in known if points]
    return Chart(
        key="throughput",
        title=f"Throughput by {plot.dim}",
        caption="Sizes are spaced by their logarithm; what did not end well is left out.",
        summary="; ".join(best),
        draw=draw,
        height=2.3 + below + 0.1,
        below=below,
    )


def _latency(workload: WorkloadSummary) -> Chart | None:
    """Return the distributions of latency, from every sample."""
    found = {row.case.id: _samples_s(workload, row.case.id) for row in shown(workload)}
    found = {name: samples for name, samples in found.items() if len(samples) > 1}
    if not found:
        return None
    numbers = places(workload)
    unit = time_unit([float(np.median(samples)) for samples in found.values()])
    low = min(float(samples[0]) for samples in found.values()) / unit.seconds
    high = max(float(np.quantile(samples, TAIL)) for samples in found.values()) / unit.seconds

    def draw(axes: Any) -> None:
        for name, samples in found.items():
            shares = np.linspace(0, 1, min(POINTS, len(samples)))
            axes.plot(np.quantile(samples, shares) / unit.seconds, shares, label=short(name), **style(numbers[name]))
        spread(axes, low, high)
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"latency, {unit.name}")
        axes.set_ylabel("share of samples")
        axes.legend(loc="lower right")

    medians = [f"{name} {duration(float(np.median(samples)))}" for name, samples in found.items()]
    return Chart(
        key="latency",
        title="Distribution of latency",
        caption="Share of samples that took at most so long, boundary compute, all launches. Steep is steady; the "
        f"slowest {1 - TAIL:.1%} may lie beyond the edge.",
        summary=f"Medians: {'; '.join(medians)}",
        draw=draw,
    )


def _rounds(workload: WorkloadSummary) -> Chart | None:
    """Return how each case's ratio to the baseline moved from round to round."""
    baseline = workload.baseline
    if baseline is None:
        return None
    base, starts, numbers = _medians(workload, baseline), _starts(workload), places(workload)
    names = [row.case.id for row in shown(workload) if row.case.id != baseline] + [baseline + CONTROL]
    lines = []
    for name in names:
        own = _medians(workload, name)
        common = [visit for visit in own if visit in base]
        if len(common) > 1:
            logs = np.array([math.log(own[visit] / base[visit]) for visit in common])
            off = 100 * np.expm1(logs - np.median(logs))
            lines.append((name, [1 + starts[launch] + number for launch, number in common], off))
    if not lines:
        return None
    reach = max(1.0, float(np.quantile(np.abs(np.concatenate([off for _, _, off in lines])), 0.9))) * 1.3
    floor = 100 * (workload.noise_floor or 0.0)

    def draw(axes: Any) -> None:
        axes.axhspan(-floor, floor, color=GRID, alpha=0.5, linewidth=0)
        for name, rounds, off in lines:
            drawn = style(numbers[name], True) if name in numbers else {"color": MUTED, "marker": "."}
            axes.plot(
                rounds,
                off,
                label=_name(name, baseline),
                markersize=3,
                **(drawn | {"linewidth": 0.7, "linestyle": "-"}),
            )
        for start in list(starts.values())[1:]:
            axes.axvline(start + 0.5, color=MUTED, linewidth=0.6, linestyle=":")
        axes.set_ylim(max(-reach, -100), reach)  # nothing can be more than 100 % quicker
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("round; dotted lines divide launches")
        axes.set_ylabel("% off its median")
        legend_below(axes, 2)

    worst = [f"{_name(name, baseline)} {significant(float(np.median(np.abs(off))), 2)} %" for name, _, off in lines]
    below = BELOW + LEGEND_ROW * math.ceil(len(lines) / 2) + 0.05
    return Chart(
        key="rounds",
        title=f"Ratio to {shorten(clean(baseline), NAME_CHARACTERS)}, round by round",
        caption="Each case's time over the baseline's in the same round, as a distance from its own median: what "
        "wanders here is noise. The band is the noise floor; spikes may leave the picture.",
        summary=f"Half of the rounds lie within {'; '.join(worst)}",
        draw=draw,
        beside=Chart.beside + FIGURE * max(0, len(f"{reach:.0f}") - 4),
        height=2.3 + below + 0.1,
        below=below,
    )


def _drift(workload: WorkloadSummary) -> Chart | None:
    """Return speed against distance from the reference, with the Pareto line of what is sound."""
    found = [
        (row, row.compute.p50.value / 1e9, far)
        for row in workload.rows
        if row.compute and (far := distance(row)) is not None and math.isfinite(far)
    ]
    if len(found) < 2:
        return None
    unit = time_unit([seconds for _, seconds, _ in found])
    numbers = places(workload)
    positive = [far for _, _, far in found if far > 0]
    floor = min(positive, default=1e-8) / 10
    line = list(_staircase([(s, max(far, floor)) for row, s, far in found if row.case.status == "ok"]))

    def draw(axes: Any) -> None:
        axes.step(
            [x / unit.seconds for x, _ in line], [y for _, y in line], where="post", color=MUTED, linewidth=1, zorder=1
        )
        for row, seconds, far in found:
            drawn = style(numbers[row.case.id], True) | {"linestyle": ""}
            sound = row.case.status == "ok"
            marker = {"marker": drawn["marker"] if sound else "X"}
            name = short(row.case.id) if sound else f"{short(row.case.id)} ({row.case.status})"
            axes.plot([seconds / unit.seconds], [max(far, floor)], label=name, markersize=7, **(drawn | marker))
        axes.set_yscale("log", subs=())  # no small ticks: each takes time
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        legend_below(axes, 2)
        spread(axes, *around([seconds / unit.seconds for _, seconds, _ in found]))
        axes.set_ylim(floor / 3, max(max(positive, default=floor), floor) * 10)
        axes.set_xlabel(f"p50 latency, {unit.name}")
        axes.set_ylabel("relative L2 distance")

    points = [f"{row.case.id} {duration(seconds)}, {scientific(far)}" for row, seconds, far in found]
    below = BELOW + LEGEND_ROW * math.ceil(len(found) / 2) + 0.05
    return Chart(
        key="drift",
        title="Speed against distance from the reference",
        caption="Left is faster, down is nearer. The line joins what no other is better than in both; a cross did not "
        "pass its check; a distance of 0 lies at the lower edge.",
        summary="; ".join(points),
        draw=draw,
        height=2.3 + below + 0.1,
        beside=0.75,
        below=below,
    )


def _compile(workload: WorkloadSummary) -> Chart | None:
    """Return what was done until a session could run, one after the other."""
    rows = [row for row in workload.rows if row.case.stages.get("compile")][: 2 * SERIES]
    if not rows:
        return None
    times = [_in_order(row.case.stages) for row in rows]
    used = [stage for stage in STAGES if any(of.get(stage) for of in times)]
    high = 0.3 + 0.28 * len(rows)

    def draw(axes: Any) -> None:
        for index, stage in enumerate(used):
            starts = [sum(of.get(before, 0.0) for before in used[:index]) for of in times]
            lengths = [of.get(stage, 0.0) for of in times]
            title = "compile, other" if stage == "compile" and any(part in used for part in PARTS) else stage
            hatch = "//" if index % 2 else None
            axes.barh(
                range(len(rows)),
                lengths,
                left=starts,
                color=COLORS[index % SERIES],
                hatch=hatch,
                edgecolor=BACK,
                linewidth=0.4,
                label=title.replace("_", " "),
            )
        longest = max(sum(of.values()) for of in times)
        for place, of in enumerate(times):
            axes.text(sum(of.values()) + longest / 80, place, duration(sum(of.values())), va="center", fontsize=8)
        axes.set_xlim(0, longest * 1.25)
        name_rows(axes, rows)
        axes.set_xlabel("seconds")
        legend_below(axes, 3)

    totals = [f"{row.case.id} {duration(sum(of.values()))}" for row, of in zip(rows, times, strict=True)]
    below = BELOW + LEGEND_ROW * math.ceil(len(used) / 3) + 0.05
    return Chart(
        key="compile",
        title="From nothing to a saved engine",
        caption="Each stage begins where the one before it ended, in a fresh process; what is too short to be seen is "
        "in the list of stages.",
        summary="; ".join(totals),
        draw=draw,
        height=high + below + 0.1,
        beside=room(rows),
        below=below,
    )


def _memory(workload: WorkloadSummary) -> Chart | None:
    """Return the largest resident memory of compiling and of running, and the size of the engine."""
    kinds: list[tuple[str, Callable[[CaseSummary], int | None]]] = [
        ("while compiling", lambda row: row.case.peak_compile_bytes),
        ("while running", lambda row: row.peak_bytes),
        ("saved engine", lambda row: row.case.engine_bytes),
    ]
    rows = [row for row in workload.rows if row.compute or row.case.status == "compiled"][: 2 * SERIES]
    if not any(of(row) for row in rows for _, of in kinds):
        return None
    highest = max(of(row) or 0 for row in rows for _, of in kinds)
    per, unit = (1e9, "GB") if highest >= 1e9 else (1e6, "MB")
    high = 0.35 + 0.4 * len(rows)

    def draw(axes: Any) -> None:
        for index, (title, of) in enumerate(kinds):
            axes.barh(
                [place + (index - 1) * 0.27 for place in range(len(rows))],
                [(of(row) or 0) / per for row in rows],
                height=0.25,
                color=COLORS[index],
                hatch="//" if index == 1 else None,
                edgecolor=BACK,
                linewidth=0.4,
                label=title,
            )
        name_rows(axes, rows)
        axes.set_xlabel(unit)
        legend_below(axes, 3)

    peaks = [f"{row.case.id} {size(row.peak_bytes)}" for row in rows if row.peak_bytes]
    return Chart(
        key="memory",
        title="Memory",
        caption="Largest resident memory of the process tree, and what was saved.",
        summary=f"While running: {'; '.join(peaks)}" if peaks else "Nothing ran.",
        draw=draw,
        height=high + BELOW + LEGEND_ROW + 0.15,
        beside=room(rows),
        below=BELOW + LEGEND_ROW + 0.05,
    )


def _samples_s(workload: WorkloadSummary, case: str) -> np.ndarray:
    windows = ratios.visits(workload.workload.launches, case, "compute").windows
    return np.sort(np.array([ns for _, window in windows for ns in window.samples_ns], dtype=np.float64)) / 1e9


def _medians(workload: WorkloadSummary, case: str) -> dict[tuple[int, int], float]:
    """Return (launch, round) -> median of the window, for one case."""
    windows = ratios.visits(workload.workload.launches, case, "compute").windows
    return {(launch, window.round): max(float(np.median(window.samples_ns)), 1.0) for launch, window in windows}


def _starts(workload: WorkloadSummary) -> dict[int, int]:
    """Return launch -> how many rounds there were before it."""
    lengths = [
        1 + max((window.round for sitting in launch.sittings for window in sitting.windows), default=-1)
        for launch in workload.workload.launches
    ]
    return {index: sum(lengths[:index]) for index in range(len(lengths))}


def _in_order(stages: dict[str, float]) -> dict[str, float]:
    """Return what each stage took, `compile` without its parts."""
    found = {name: stages[name] for name in STAGES if name in stages}
    if "compile" in found:
        found["compile"] = max(0.0, found["compile"] - sum(found.get(part, 0.0) for part in PARTS))
        if found["compile"] < 0.01 * stages["compile"] and any(part in found for part in PARTS):
            del found["compile"]
    return found


def _staircase(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield the points that no other is at least as good as in both, from left to right."""
    best = math.inf
    for x, y in sorted(points):
        if y < best:
            best = y
            yield x, y


def _name(case: str, baseline: str) -> str:
    return f"{short(baseline)} again" if case == baseline + CONTROL else short(case)
