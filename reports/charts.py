"""Charts of a workload: what each shows, and how it is drawn on matplotlib's axes, which are passed in.

Cases keep their colour over all charts of a workload; dashes, markers and hatches tell them apart too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any  # matplotlib's axes: it is not imported here

import numpy as np

from harness import ratios
from harness.advice import distance
from harness.records import CONTROL
from harness.summary import CaseSummary, WorkloadSummary
from reports.blocks import Plot
from reports.formatting import clean, duration, scientific, shorten, significant, size, time_unit

INSTALL = "pip install 'harness[plots]'"
SERIES = 8
"""Cases that a chart of lines shows: the fastest, and always the baseline."""
POINTS = 160
"""Of a line of a distribution."""
TAIL = 0.995
"""Share of the samples that the axis of a distribution reaches."""
NAME_CHARACTERS = 28
BELOW = 0.55
"""Inches for the numbers and the title of an axis."""
STAGES = ("import", "load", "tune", "build", "compile", "first_run", "second_run", "save")
"""In the order in which they happen; `compile` is what is left of it beside its parts."""
PARTS = ("load", "tune", "build")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"

INK, MUTED, GRID, BACK = "#010101", "#010102", "#010103", "#010104"
COLORS = tuple(f"#0200{index:02x}" for index in range(1, SERIES + 1))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BACK: "--back"} | {
    color: f"--s{index}" for index, color in enumerate(COLORS, 1)
}
"""Placeholder -> the CSS variable that takes its place."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture."""

    key: str
    title: str
    caption: str
    """How to read it."""
    summary: str
    """What it shows, for those who do not see it."""
    draw: Callable[[Any], None]
    height: float = 3.2
    """In inches; all are as wide as each other."""
    beside: float = 0.65
    """Room in inches at the left of the axes."""
    below: float = 0.5
    """And below them."""


def of_workload(workload: WorkloadSummary) -> list[Chart]:
    """Return the charts that there are data for."""
    made = (_latency, _rounds, _tradeoff, _stages, _memory)
    return [chart for make in made if (chart := make(workload)) is not None]


def of_plot(plot: Plot) -> Chart:
    """Return throughput against the size of a free dimension."""
    known = [
        (name, [(size_, value) for size_, value in zip(plot.sizes, values, strict=True) if value is not None])
        for name, values in plot.series
    ][:SERIES]

    def draw(axes: Any) -> None:
        for index, (name, points) in enumerate(known):
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=_short(name), markersize=5, **_style(index, True)
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(plot.sizes, [str(size_) for size_ in plot.sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(plot.dim)
        axes.set_ylabel("items/s")
        axes.legend()

    best = [f"{name} {significant(max(y for _, y in points))} items/s at most" for name, points in known if points]
    return Chart(
        key="throughput",
        title=f"Throughput by {plot.dim}",
        caption="Sizes are spaced by their logarithm; what did not end well is left out.",
        summary="; ".join(best),
        draw=draw,
    )


def _latency(workload: WorkloadSummary) -> Chart | None:
    """Return the distributions of latency, from every sample."""
    found = {row.case.id: _samples_s(workload, row.case.id) for row in _shown(workload)}
    found = {name: samples for name, samples in found.items() if len(samples) > 1}
    if not found:
        return None
    places = _places(workload)
    unit = time_unit([float(np.median(samples)) for samples in found.values()])
    low = min(float(samples[0]) for samples in found.values()) / unit.seconds
    high = max(float(np.quantile(samples, TAIL)) for samples in found.values()) / unit.seconds

    def draw(axes: Any) -> None:
        for name, samples in found.items():
            shares = np.linspace(0, 1, min(POINTS, len(samples)))
            axes.plot(np.quantile(samples, shares) / unit.seconds, shares, label=_short(name), **_style(places[name]))
        _spread(axes, low, high)
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
    base, starts, places = _medians(workload, baseline), _starts(workload), _places(workload)
    names = [row.case.id for row in _shown(workload) if row.case.id != baseline] + [baseline + CONTROL]
    lines = []
    for name in names:
        own = _medians(workload, name)
        common = [visit for visit in own if visit in base]
        if len(common) > 1:
            logs = np.array([math.log(own[visit] / base[visit]) for visit in common])
            off = 100 * np.expm1(logs - np.median(logs))
            lines.append((name, [starts[launch] + number for launch, number in common], off))
    if not lines:
        return None
    reach = max(1.0, float(np.quantile(np.abs(np.concatenate([off for _, _, off in lines])), 0.9))) * 1.3
    floor = 100 * (workload.noise_floor or 0.0)

    def draw(axes: Any) -> None:
        axes.axhspan(-floor, floor, color=GRID, alpha=0.5, linewidth=0)
        for name, numbers, off in lines:
            style = _style(places[name], True) if name in places else {"color": MUTED, "marker": "."}
            axes.plot(
                numbers,
                off,
                label=_name(name, baseline),
                markersize=3,
                **(style | {"linewidth": 0.7, "linestyle": "-"}),
            )
        for start in list(starts.values())[1:]:
            axes.axvline(start - 0.5, color=MUTED, linewidth=0.6, linestyle=":")
        axes.set_ylim(-reach, reach)
        axes.set_xlabel("round, launches divided by dotted lines")
        axes.set_ylabel("% off its median")
        axes.legend(ncols=2)

    worst = [f"{_name(name, baseline)} {significant(float(np.median(np.abs(off))), 2)} %" for name, _, off in lines]
    return Chart(
        key="rounds",
        title=f"Ratio to {shorten(clean(baseline), NAME_CHARACTERS)}, round by round",
        caption="Each case's time over the baseline's in the same round, as a distance from its own median: what "
        "wanders here is noise. The band is the noise floor; spikes may leave the picture.",
        summary=f"Half of the rounds lie within {'; '.join(worst)}",
        draw=draw,
    )


def _tradeoff(workload: WorkloadSummary) -> Chart | None:
    """Return speed against distance from the reference, with the Pareto line of what is sound."""
    found = [
        (row, row.compute.p50.value / 1e9, far)
        for row in workload.rows
        if row.compute and (far := distance(row)) is not None and math.isfinite(far)
    ]
    if len(found) < 2:
        return None
    unit = time_unit([seconds for _, seconds, _ in found])
    places = _places(workload)
    positive = [far for _, _, far in found if far > 0]
    floor = min(positive, default=1e-8) / 10
    line = list(_staircase([(s, max(far, floor)) for row, s, far in found if row.case.status == "ok"]))

    def draw(axes: Any) -> None:
        axes.step(
            [x / unit.seconds for x, _ in line], [y for _, y in line], where="post", color=MUTED, linewidth=1, zorder=1
        )
        for row, seconds, far in found:
            style = _style(places[row.case.id], True) | {"linestyle": ""}
            sound = row.case.status == "ok"
            marker = {"marker": style["marker"] if sound else "X"}
            name = _short(row.case.id) if sound else f"{_short(row.case.id)} ({row.case.status})"
            axes.plot([seconds / unit.seconds], [max(far, floor)], label=name, markersize=7, **(style | marker))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.42 / 2.4))
        _spread(axes, *_around([seconds / unit.seconds for _, seconds, _ in found]))
        axes.set_ylim(floor / 3, max(max(positive, default=floor), floor) * 10)
        axes.set_xlabel(f"p50 latency, {unit.name}")
        axes.set_ylabel("relative L2 distance")

    points = [f"{row.case.id} {duration(seconds)}, {scientific(far)}" for row, seconds, far in found]
    return Chart(
        key="tradeoff",
        title="Speed against distance from the reference",
        caption="Left is faster, down is nearer. The line joins what no other is better than in both; a cross did not "
        "pass its check; a distance of 0 lies at the lower edge.",
        summary="; ".join(points),
        draw=draw,
        height=2.4 + BELOW + 0.09 * len(found) + 0.1,
        below=BELOW + 0.09 * len(found),
    )


def _stages(workload: WorkloadSummary) -> Chart | None:
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
        axes.set_xlim(0, longest * 1.15)
        _name_rows(axes, rows)
        axes.set_xlabel("seconds")
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.42 / high))

    totals = [f"{row.case.id} {duration(sum(of.values()))}" for row, of in zip(rows, times, strict=True)]
    return Chart(
        key="stages",
        title="From nothing to a saved engine",
        caption="Each stage begins where the one before it ended, in a fresh process; what is too short to be seen is "
        "in the list of stages.",
        summary="; ".join(totals),
        draw=draw,
        height=high + BELOW + 0.4 + 0.1,
        beside=_room(rows),
        below=BELOW + 0.4,
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

    def draw(axes: Any) -> None:
        for index, (title, of) in enumerate(kinds):
            places = [place + (index - 1) * 0.27 for place in range(len(rows))]
            hatch = "//" if index == 1 else None
            axes.barh(
                places,
                [(of(row) or 0) / per for row in rows],
                height=0.25,
                color=COLORS[index],
                hatch=hatch,
                edgecolor=BACK,
                linewidth=0.4,
                label=title,
            )
        _name_rows(axes, rows)
        axes.set_xlabel(unit)
        axes.legend(loc="lower right")

    peaks = [f"{row.case.id} {size(row.peak_bytes)}" for row in rows if row.peak_bytes]
    return Chart(
        key="memory",
        title="Memory",
        caption="Largest resident memory of the process tree, and what was saved.",
        summary=f"While running: {'; '.join(peaks)}" if peaks else "Nothing ran.",
        draw=draw,
        height=0.9 + 0.4 * len(rows),
        beside=_room(rows),
    )


def _shown(workload: WorkloadSummary) -> list[CaseSummary]:
    measured = [row for row in workload.rows if row.compute]
    first = measured[:SERIES]
    rest = [row for row in measured[SERIES:] if row.is_baseline]
    return first[: SERIES - len(rest)] + rest


def _places(workload: WorkloadSummary) -> dict[str, int]:
    """Return the number by which every measured case is coloured."""
    return {row.case.id: index for index, row in enumerate(row for row in workload.rows if row.compute)}


def _samples_s(workload: WorkloadSummary, case: str) -> np.ndarray:
    windows = ratios.visits(workload.workload.launches, case, "compute").windows
    return np.sort(np.array([ns for _, window in windows for ns in window.samples_ns], dtype=np.float64)) / 1e9


def _medians(workload: WorkloadSummary, case: str) -> dict[tuple[int, int], float]:
    """Return (launch, round) -> median of the window, for one case."""
    windows = ratios.visits(workload.workload.launches, case, "compute").windows
    return {(launch, window.round): max(float(np.median(window.samples_ns)), 1.0) for launch, window in windows}


def _starts(workload: WorkloadSummary) -> dict[int, int]:
    """Return launch -> the number of its first round, counted through."""
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


def _spread(axes: Any, low: float, high: float) -> None:
    """Set the x axis, by logarithm where durations differ by much."""
    if low > 0 and high / low > 6:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * 1.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high / low < 30 and _is_step(value) else "")
    else:
        margin = (high - low) * 0.05 or high * 0.05
        axes.set_xlim(low - margin, high + margin)


def _is_step(value: float) -> bool:
    return round(value / 10 ** math.floor(math.log10(value))) in (2, 5)


def _around(values: Sequence[float]) -> tuple[float, float]:
    return min(values) * 0.95, max(values) * 1.05


def _name_rows(axes: Any, rows: Sequence[CaseSummary]) -> None:
    axes.set_yticks(range(len(rows)), [_short(row.case.id) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _room(rows: Sequence[CaseSummary]) -> float:
    """Return the inches that the names of rows take."""
    return 0.25 + 0.078 * max(len(_short(row.case.id)) for row in rows)


def _style(index: int, marked: bool = False) -> dict[str, Any]:
    style = {"color": COLORS[index % SERIES], "linestyle": DASHES[index // 2 % len(DASHES)]}
    return style | ({"marker": MARKERS[index % len(MARKERS)]} if marked else {})


def _short(name: str) -> str:
    return shorten(clean(name), NAME_CHARACTERS).lstrip("_") or "?"


def _name(case: str, baseline: str) -> str:
    return f"{_short(baseline)} again" if case == baseline + CONTROL else _short(case)
