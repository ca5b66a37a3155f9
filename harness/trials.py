"""`harness sensitivity`: tries what stays in float32 on the backend itself, then measures the few best side by side."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tabulate import tabulate

from harness import drift, protocol, ratios, sensitivity
from harness.artifact import Artifact, read_tensors
from harness.conversion import ensure_converted
from harness.errors import HarnessError, UnsupportedError
from harness.launcher import Launcher
from harness.measure import now_ns
from harness.plan import FP32
from harness.probing import Asked, Bench
from harness.records import CONTROL, Launch, OutputDrift, Workload
from harness.rounds import Schedule, Seat, conduct

if TYPE_CHECKING:
    from harness.summary import Estimate

ROUNDS, SLICE_S = 5, 0.1
"""As `harness compare --quick`."""
MOST_TRIALS = 200
NOTHING, ALL = "nothing", "everything"
INTERRUPTED = (
    "INTERRUPTED: this is what had been found by then. The graphs that were converted are kept: the same command "
    "converts none of them again."
)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of what stays in float32."""

    name: str
    nodes: list[str]
    relative_l2: float | None
    """Of the worst output over all sets of inputs; None where it is not finite or has no scale."""
    passed: bool
    p50_ms: float | None = None
    ratio: tuple[float, float, float] | None = None
    """Time over that of the graph with nothing kept: estimate and the ends of its interval."""
    efficient: bool = False
    """Whether no other choice has both less drift and less time."""
    reason: str = ""
    """Why it was not measured."""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What staying in float32 buys."""

    model: str
    backend: str
    version: str | None = None
    precision: str
    device: str
    narrow: int
    """Nodes that the conversion narrowed and that can be kept."""
    tried: int
    points: list[Point]
    notes: list[str] = []
    interrupted: bool = False
    """Whether the search or the measuring was cut short: the points are what was found by then."""


class Advising:
    """One search for what to keep in float32."""

    def __init__(
        self,
        asked: Asked,
        bench: Bench,
        source: Artifact,
        graph: Artifact,
        launcher: Launcher,
        *,
        weights: str,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._asked = asked
        self._bench = bench
        self._source = source
        self._graph = graph
        self._launcher = launcher
        self._weights = weights
        self._seed = seed
        self._say = say
        self._tried = 0
        self._rows: dict[tuple[str, ...], list[OutputDrift]] = {}

    def run(self, label: str, *, budget_s: float, top: int, scratch: Path) -> Advice:
        """Search until the budget is spent, then measure.

        Raises:
            HarnessError: The backend has no result for the graph as it was converted, or none of its nodes can be kept.
        """
        listed = self._narrow()
        names = [name for name, _ in listed.nodes]
        start = now_ns()
        self._say("drift with nothing kept in float32")
        self._rows[()] = self._judged(self._graph)
        once_s = (now_ns() - start) / 1e9
        base = _distance(self._rows[()])
        trials = max(sensitivity.STRETCHES, min(MOST_TRIALS, int(budget_s / max(once_s, 0.1))))

        def trial(keep: Sequence[str]) -> float | None:
            if (now_ns() - start) / 1e9 > budget_s:
                return None
            return self._drift(keep)

        notes = [f"{listed.nameless} nodes have no name, and stay as they are"] if listed.nameless else []
        points: list[Point] = []
        interrupted = False
        try:
            found = sensitivity.explore(names, base, trial, trials=trials)
            points = self._points(sensitivity.choices(found, top))
            if (now_ns() - start) / 1e9 > budget_s:
                notes.append(
                    f"the budget of {budget_s:g} s ended the search; the same command goes further, as the graphs that "
                    "were converted are kept, and --budget SECONDS allows more"
                )
            points, said, interrupted = self._measured(points, scratch)
            notes += said
        except KeyboardInterrupt:
            interrupted = True
            points = points or self._points(self._best(base, top))
        return Advice(
            model=label,
            backend=self._asked.variant.id,
            version=self._bench.version,
            precision=self._asked.precision,
            device=self._asked.device,
            narrow=len(names),
            tried=self._tried,
            points=points,
            notes=notes,
            interrupted=interrupted,
        )

    def _best(self, base: float, top: int) -> list[tuple[str, ...]]:
        """Return the stretches that gained most among all that were tried, each for itself."""
        tried = [sensitivity.tried(keep, _distance(rows), base) for keep, rows in self._rows.items() if keep]
        return [trial.nodes for trial in sensitivity.ranked(tried) if trial.gain > 0][:top]

    def _points(self, chosen: Sequence[tuple[str, ...]]) -> list[Point]:
        had = [keep for keep in chosen if keep in self._rows or self._drift(keep) is not None]
        return [self._point(NOTHING, ()), *(self._point(_few(keep), keep) for keep in had)]

    def _narrow(self) -> protocol.NarrowNodes:
        request = protocol.ListNarrow(source=str(self._source.folder), graph=str(self._graph.folder))
        with self._launcher.start("graph") as worker:
            listed = worker.call(request, protocol.NarrowNodes, timeout_s=self._launcher.timeout_s)
        if not listed.nodes:
            raise UnsupportedError("the conversion narrowed no node that has a name: nothing can be kept in float32")
        return listed

    def _converted(self, keep: Sequence[str]) -> Artifact:
        if not keep:
            return self._graph
        return ensure_converted(
            self._source,
            self._asked.precision,
            self._asked.calibration,
            self._launcher,
            weights=self._weights,
            on_progress=lambda _: None,
            keep=keep,
        )[0]

    def _drift(self, keep: Sequence[str]) -> float | None:
        self._say(f"trial {self._tried + 1}: {_few(keep)} in float32")
        try:
            rows = self._judged(self._converted(keep))
        except HarnessError:
            rows = None
        self._tried += 1
        if rows is None:
            return None
        self._rows[tuple(keep)] = rows
        return _distance(rows)

    def _judged(self, graph: Artifact) -> list[OutputDrift]:
        source = self._source
        outputs = self._bench.outputs(graph, source, source.manifest.input_sets)
        return [
            row
            for index, one in enumerate(outputs)
            for row in drift.judge(
                one,
                source.reference(index),
                source.golden(index),
                precision=self._asked.precision,
                input_set=index,
                task=source.manifest.task,
            )
        ]

    def _point(self, name: str, keep: tuple[str, ...]) -> Point:
        rows = self._rows[keep]
        distance = _distance(rows)
        return Point(
            name=name,
            nodes=list(keep),
            relative_l2=distance if math.isfinite(distance) else None,
            passed=drift.passed(rows),
        )

    # ---- what it costs

    def _measured(self, points: list[Point], scratch: Path) -> tuple[list[Point], list[str], bool]:
        """Measure the points, and all of it in float32, side by side in one launch.

        Returns:
            The points, what is to be noted, and whether Ctrl-C ended the launch.
        """
        seats, reasons = self._seats(points)
        if not seats or seats[0].case != _case(0):
            return points, [f"nothing was measured: {reasons[0]}"], False
        seats.insert(1, dataclasses.replace(seats[0], case=_case(0) + CONTROL))
        schedule = Schedule(rounds=ROUNDS, slice_s=SLICE_S, input_sets=self._source.manifest.input_sets)
        conducted = conduct(
            seats, schedule, self._launcher, index=0, group=0, outputs=scratch, seed=self._seed, say=self._say
        )
        outputs = conducted.outputs.get(_case(len(points)), {})
        if outputs or not conducted.interrupted:  # they are fetched last
            points = [*points, self._in_float32(outputs)]
        workload = Workload(
            key="sensitivity",
            model=self._source.manifest.model,
            dims={},
            batch=1,
            baseline=_case(0),
            launches=[conducted.launch],
        )
        compared = ratios.comparisons(*ratios.estimates(workload))
        middles = _middles(conducted.launch)
        out = []
        for index, point in enumerate(points):
            comparison = compared.get(_case(index))
            error = conducted.errors.get(_case(index))
            out.append(
                msgspec.structs.replace(
                    point,
                    p50_ms=middles.get(_case(index)),
                    ratio=_three(comparison.ratio) if comparison is not None else None,
                    reason=error.message if error is not None else reasons.get(index, ""),
                )
            )
        return _marked(out), [], conducted.interrupted

    def _seats(self, points: list[Point]) -> tuple[list[Seat], dict[int, str]]:
        """Compile the points, and the float32 graph after them; return also why some have no engine."""
        seats: list[Seat] = []
        reasons: dict[int, str] = {}
        for index in range(len(points) + 1):
            self._say(f"compiling {points[index].name if index < len(points) else ALL}")
            try:
                if index == len(points):
                    seats.append(self._bench.seat(_case(index), self._source, None, FP32))
                else:
                    graph = self._converted(points[index].nodes)
                    seats.append(self._bench.seat(_case(index), graph, self._source, self._asked.precision))
            except HarnessError as exc:
                reasons[index] = f"{exc.status.replace('_', ' ')}: {exc.message}"
        return seats, reasons

    def _in_float32(self, outputs: dict[int, Path]) -> Point:
        rows = [
            row
            for index, path in sorted(outputs.items())
            for row in drift.judge(
                read_tensors(path), self._source.reference(index), self._source.golden(index), input_set=index
            )
        ]
        distance = _distance(rows) if rows else math.inf
        return Point(
            name=ALL,
            nodes=[],
            relative_l2=distance if math.isfinite(distance) else None,
            passed=drift.passed(rows),
        )


def _case(index: int) -> str:
    return f"point-{index}"


def _middles(launch: Launch) -> dict[str, float]:
    """Return the median compute latency of each case in milliseconds."""
    samples = {
        sitting.case: [
            duration for window in sitting.windows if window.boundary == "compute" for duration in window.samples_ns
        ]
        for sitting in launch.sittings
    }
    return {case: statistics.median(durations) / 1e6 for case, durations in samples.items() if durations}


def _marked(points: list[Point]) -> list[Point]:
    known = [
        (index, (point.relative_l2, point.p50_ms))
        for index, point in enumerate(points)
        if point.relative_l2 is not None and point.p50_ms is not None
    ]
    marks = sensitivity.efficient([pair for _, pair in known])
    best = {index for (index, _), mark in zip(known, marks, strict=True) if mark}
    return [msgspec.structs.replace(point, efficient=index in best) for index, point in enumerate(points)]


def _three(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _distance(rows: Sequence[OutputDrift]) -> float:
    return max((math.inf if row.relative_l2 is None else row.relative_l2 for row in rows), default=math.inf)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def text(advice: Advice) -> str:
    """Return what a terminal shows, ending in a newline."""
    head = f"{advice.model} on {advice.backend}: {advice.precision}, {advice.device}"
    rows = [_row(point, advice) for point in advice.points]
    headers = ["in float32", "nodes", "rel. L2", "check", "p50 ms", "time ratio [99 %]", "drift bought a ms", "best"]
    about = (
        f"{advice.narrow} nodes compute in {advice.precision}; {advice.tried} choices of what stays in float32 were "
        "tried."
    )
    if any(point.ratio for point in advice.points):
        about += " One launch, so the ratios lack how processes differ."
    table = tabulate(rows, headers=headers, disable_numparse=True)
    parts = [head, *([INTERRUPTED] if advice.interrupted else []), table, about, *advice.notes]
    return "\n\n".join(parts) + "\n"


def _row(point: Point, advice: Advice) -> list[str]:
    plain = advice.points[0]
    count = str(advice.narrow if point.name == ALL else len(point.nodes))
    l2 = "-" if point.relative_l2 is None else f"{point.relative_l2:.3g}"
    time = point.reason[:40] or "-" if point.p50_ms is None else f"{point.p50_ms:.4g}"
    ratio = "-" if point.ratio is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*point.ratio)
    check = "pass" if point.passed else "drifted"
    mark = "*" if point.efficient else ""
    return [point.name, count, l2, check, time, ratio, _rate(plain, point), mark]


def _rate(plain: Point, point: Point) -> str:
    """Return by how much drift falls for a millisecond more; `free` where it costs no time."""
    pairs = plain.relative_l2, point.relative_l2, plain.p50_ms, point.p50_ms
    if point is plain or None in pairs:
        return "-"
    before, after, start, end = (float(value) for value in pairs if value is not None)
    if after >= before:
        return "-"
    return "free" if end <= start else f"{(before - after) / (end - start):.3g}"
