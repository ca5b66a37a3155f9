"""The cases of the history: a table, newest last, and one figure over the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.history.points import Listing, Metric, Point, titles
from reports.blocks import Block, Legend, Timeline
from reports.formatting import MISSING, clean, counted, significant, time_unit
from reports.page import Page
from reports.plot import MARKS
from reports.table import OF_STATUS, Cell, Column, Drawn, assembled

SERIES_DRAWN = 7
"""More lines than that cannot be told apart."""
MB = 1e6
ALWAYS, WHERE_THEY_DIFFER = ("run", "status"), ("machine", "threads")
"""Columns. All others are there where something is in them."""


def draw_listing(found: Listing) -> Page:
    """Return the page of a part of the history."""
    blocks: list[Block] = [assembled(_columns(found.points))]
    timeline = draw_timeline(found.points, found.metric)
    if timeline is not None:
        blocks.append(timeline)
    elif len({point.series for point in found.points}) > SERIES_DRAWN:
        blocks.append(
            Legend(texts=(f"To see a figure over time, choose at most {SERIES_DRAWN} series: --model, --backend.",))
        )
    shown = len(found.points)
    of = f"the newest {shown} of {found.total} cases" if found.total > shown else counted(shown, "case", "cases")
    return Page(title=f"history: {of}, newest last", blocks=tuple(blocks), closing="")


def draw_timeline(points: Sequence[Point], metric: Metric) -> Timeline | None:
    """Return a figure over runs; None where there are too many series, or no two runs of one."""
    series: dict[str, dict[str, float]] = {}
    names = titles(points)
    for point in points:
        value = point.value(metric)
        if value is not None:
            series.setdefault(point.series, {})[point.run] = value
    runs = {point.run: point.created for point in points if any(point.run in one for one in series.values())}
    if not 1 <= len(series) <= min(SERIES_DRAWN, len(MARKS)) or all(len(one) < 2 for one in series.values()):
        return None
    scale, unit = unit_of(metric, [value for one in series.values() for value in one.values()])
    return Timeline(
        unit=f"{metric} {unit}".strip(),
        runs=tuple(created[5:10] for created in runs.values()),
        series=tuple(
            (clean(names[name]), tuple(one[run] / scale if run in one else None for run in runs))
            for name, one in series.items()
        ),
    )


def _columns(points: Sequence[Point]) -> list[Drawn]:
    latency = time_unit([point.latency_ns * 1e-9 for point in points if point.latency_ns])

    def drawn(key: str, title: str, show: Callable[[Point], Cell], unit: str = "", *, left: bool = False) -> Drawn:
        return Column(key=key, title=title, unit=unit, align="left" if left else "right"), [show(one) for one in points]

    columns = [
        drawn("run", "run", lambda one: _text(one.run), left=True),
        drawn("labels", "labels", lambda one: _text(" ".join(one.labels)), left=True),
        drawn("commit", "commit", lambda one: _text(one.circumstances.commit), left=True),
        drawn("workload", "workload", lambda one: _text(one.workload), left=True),
        drawn("case", "case", lambda one: _text(one.case), left=True),
        drawn("device", "device", lambda one: _text(one.key.device), left=True),
        drawn("machine", "machine", lambda one: _text(one.key.machine), left=True),
        drawn("threads", "threads", lambda one: _text(one.key.threads), left=True),
        drawn("version", "version", lambda one: _text(one.circumstances.version or ""), left=True),
        drawn("p50", "p50", lambda one: _number(one.latency_ns, latency.seconds * 1e9, 4), latency.name),
        drawn("compile", "compile", lambda one: _number(one.value("compile"), 1.0), "s"),
        drawn("memory", "peak", lambda one: _number(one.memory_bytes, MB), "MB"),
        drawn("device-memory", "device memory", lambda one: _number(one.device_memory_bytes, MB), "MB"),
        drawn("engine", "engine", lambda one: _number(one.engine_bytes, MB), "MB"),
        drawn("drift", "drift", lambda one: Cell() if one.drift is None else Cell(text=f"{one.drift:.1e}"), "rel. L2"),
        drawn("status", "status", _status, left=True),
    ]
    return [column for column in columns if _tells(*column)]


def _tells(column: Column, cells: Sequence[Cell]) -> bool:
    texts = {cell.text for cell in cells}
    return column.key in ALWAYS or (len(texts) > 1 if column.key in WHERE_THEY_DIFFER else texts != {MISSING})


def _text(text: str) -> Cell:
    return Cell(text=clean(text) or MISSING, value=text)


def _number(value: float | None, per: float, digits: int = 3) -> Cell:
    return Cell() if value is None else Cell(text=significant(value / per, digits), value=value)


def _status(point: Point) -> Cell:
    return Cell(text=point.status, value=point.status, emphasis=OF_STATUS.get(point.status, "bad"))


def unit_of(metric: Metric, values: Sequence[float]) -> tuple[float, str]:
    """Return what a figure is divided by to be shown, and the name of its unit then."""
    if metric == "latency":
        unit = time_unit([value * 1e-9 for value in values])
        return unit.seconds * 1e9, unit.name
    return {"compile": (1.0, "s"), "drift": (1.0, "rel. L2")}.get(metric, (MB, "MB"))
