"""What is said of several workloads together: means and wins, composed figures, sweeps, the price of dynamic shapes."""

from __future__ import annotations

from collections.abc import Iterator

from harness.summary import Composed, Estimate, Point, Price, RunSummary, Series, Standing, Suite, Sweep
from reports.blocks import Block, Heading, Legend, Plot
from reports.formatting import MISSING, clean, counted, listed, ratio, shorten, significant, time_unit, verdict
from reports.table import (
    NAME_CHARACTERS,
    OF_STATUS,
    Cell,
    Column,
    Drawn,
    Emphasis,
    against_word,
    assembled,
    judgement,
)

WORKLOAD_CHARACTERS = 32
MENTIONED = 6
"""Workloads that a sentence names; of more it gives the number."""


def overview(summary: RunSummary) -> Iterator[Block]:
    """Yield the summary of a suite, composed figures, sweeps and the price of dynamic shapes: those that there are."""
    if summary.suite:
        yield from _suite(summary.suite)
    for figure in summary.composed:
        yield from _composed(figure)
    for sweep in summary.sweeps:
        yield from _sweep(sweep)
    if summary.prices:
        yield from _prices(summary.prices)


def _suite(suite: Suite) -> Iterator[Block]:
    count = len(suite.workloads)
    rows = suite.rows
    yield Heading(text=f"summary of {counted(count, 'workload', 'workloads')}")
    drawn = [
        _names("backend", [row.case for row in rows]),
        _column("ratio", against_word(suite.baseline), "geo. mean [99 %]", [_mean(row) for row in rows]),
        _column("over", "mean", "over", [_over(row, count) for row in rows]),
    ]
    if suite.contested:
        drawn += [
            _column(
                "wins", "wins", f"of {suite.contested}", [Cell(text=str(row.wins), value=row.wins) for row in rows]
            ),
            _column(
                "ties", "ties", f"of {suite.contested}", [Cell(text=str(row.ties), value=row.ties) for row in rows]
            ),
        ]
    drawn.append(_column("results", "results", "", [_results(row) for row in rows], left=True))
    yield assembled(drawn)
    yield Legend(texts=tuple(_suite_legend(suite)))


def _suite_legend(suite: Suite) -> Iterator[str]:
    count, baseline = len(suite.workloads), shorten(clean(suite.baseline), NAME_CHARACTERS)
    yield (
        f"geo. mean = geometric mean, over workloads, of the time over {baseline}'s time; its interval is that of "
        "measuring the same workloads again and says nothing about other models. Only what is ok is in it."
    )
    if any(0 < row.over < count for row in suite.rows):
        yield f"* = a mean over fewer than all {count} workloads: not to be compared with the others."
    if suite.rounds_only:
        yield "One launch: the intervals lack the spread between processes, so there are neither wins nor ties."
    if suite.contested:
        yield (
            "A win = fastest of the workload's ok cases, its interval clear of all others; a tie = none was faster for "
            "sure."
        )
    if suite.left_out:
        names = listed([clean(key) for key in suite.left_out], most=MENTIONED)
        yield f"Not in the means, because it was not compared with {baseline}: {names}."


def _mean(row: Standing) -> Cell:
    if row.is_baseline and row.ratio:
        return Cell(text="baseline", value=1.0, emphasis="muted")
    return Cell(text=ratio(row.ratio), value=row.ratio.value) if row.ratio else Cell()


def _over(row: Standing, count: int) -> Cell:
    if not row.over:
        return Cell()
    short = row.over < count
    return Cell(text=f"{row.over} of {count}{'*' if short else ''}", value=row.over, emphasis="bad" if short else "")


def _results(row: Standing) -> Cell:
    parts = [(row.ok, "ok"), (row.drifted, "drifted"), (row.compiled, "compiled"), (row.failed, "failed")]
    text = ", ".join(f"{number} {what}" for number, what in parts if number)
    return Cell(text=text or MISSING, value=text, emphasis="bad" if row.drifted else "")


def _composed(figure: Composed) -> Iterator[Block]:
    yield Heading(text=f"{clean(figure.name)}: composed, not measured")
    found = [row.seconds.value for row in figure.rows if row.seconds]
    unit = time_unit(found)
    lacks = [
        ", ".join(f"{clean(key)} {status}" for key, status in row.lacks.items()) if row.lacks else ""
        for row in figure.rows
    ]
    drawn = [
        _names("backend", [row.case for row in figure.rows]),
        _column(
            "seconds", "composed", f"{unit.name} [low, high]", [_span(row.seconds, unit.seconds) for row in figure.rows]
        ),
    ]
    if any(lacks):
        drawn.append(
            _column("lacks", "lacks", "", [Cell(text=text or MISSING, value=text) for text in lacks], left=True)
        )
    yield assembled(drawn)
    parts = " + ".join(f"{part.calls} x {clean(part.workload)}" for part in figure.parts)
    yield Legend(
        texts=(
            clean(figure.what),
            f"{parts}: the sum of calls times the p50 of compute. Nothing between the parts is in it. [low, high] adds "
            "up the ends of their intervals, so it is wider than that of the sum.",
        )
    )


def _span(estimate: Estimate | None, per: float) -> Cell:
    if estimate is None:
        return Cell()
    value, low, high = (significant(one / per, 4) for one in (estimate.value, estimate.low, estimate.high))
    return Cell(text=f"{value} [{low}, {high}]", value=estimate.value)


def _sweep(sweep: Sweep) -> Iterator[Block]:
    yield Heading(text=_title(sweep))
    drawn = [_names("backend", [one.case for one in sweep.series])]
    for index, size in enumerate(sweep.sizes):
        cells = [_point(one.points[index]) for one in sweep.series]
        drawn.append(_column(str(size), f"{clean(sweep.dim)} {size}", "items/s", cells))
    yield assembled(drawn)
    yield _plot(sweep)


def sweep_plots(summary: RunSummary) -> Iterator[tuple[Sweep, Plot]]:
    """Yield the plots of all sweeps in which something can be drawn."""
    for sweep in summary.sweeps:
        plot = _plot(sweep)
        if plot.series:
            yield sweep, plot


def _plot(sweep: Sweep) -> Plot:
    series = tuple((clean(one.case), _sound(one)) for one in sweep.series)
    return Plot(
        title=_title(sweep),
        dim=clean(sweep.dim),
        sizes=tuple(sweep.sizes),
        series=tuple(one for one in series if sum(value is not None for value in one[1]) > 1),
    )


def _title(sweep: Sweep) -> str:
    fixed = [f"{name} {size}" for name, size in sweep.fixed.items()]
    return f"throughput of {clean(', '.join([sweep.model, *fixed]))} by {clean(sweep.dim)}"


def _sound(series: Series) -> tuple[float | None, ...]:
    """Return the throughputs of the points that are ok: the others are in the table, with their status."""
    return tuple(
        point.throughput.value if point and point.throughput and point.status == "ok" else None
        for point in series.points
    )


def _point(point: Point | None) -> Cell:
    if point is None:
        return Cell()
    if point.throughput is None:
        return Cell(text=point.status, value=point.status, emphasis=OF_STATUS.get(point.status, "bad"))
    text = significant(point.throughput.value, 4)
    if point.status != "ok":
        return Cell(text=f"{text} {point.status}", value=point.throughput.value, emphasis="bad")
    return Cell(text=text, value=point.throughput.value)


def _prices(prices: list[Price]) -> Iterator[Block]:
    yield Heading(text="price of dynamic shapes")
    ordered = sorted(prices, key=lambda one: [other.static for other in prices].index(one.static))
    workloads = [shorten(clean(one.workload), WORKLOAD_CHARACTERS) for one in ordered]
    yield assembled(
        [
            _names("backend", [one.static for one in ordered]),
            _column("workload", "workload", "", [Cell(text=key, value=key) for key in workloads], left=True),
            _column("ratio", "dynamic / static", "time ratio [99 %]", [_price(one) for one in ordered]),
            _column("verdict", "verdict", "", [_dearer(one) for one in ordered], left=True),
            _column("status", "static, dynamic", "", [_pair(one) for one in ordered], left=True),
        ]
    )
    yield Legend(
        texts=(
            "The same backend and options, one engine for every shape of the sweep against one for this shape only. "
            "SLOWER = the dynamic engine takes longer. Compared within the launches that ran both.",
        )
    )


def _price(price: Price) -> Cell:
    if price.comparison is None:
        return Cell()
    return Cell(text=ratio(price.comparison.ratio), value=price.comparison.ratio.value, emphasis=_of_price(price))


def _dearer(price: Price) -> Cell:
    if price.comparison is None:
        return Cell()
    return Cell(text=verdict(price.comparison), value=price.comparison.verdict, emphasis=_of_price(price))


def _of_price(price: Price) -> Emphasis:
    return judgement(price.comparison, sound=price.statuses == ("ok", "ok"))


def _pair(price: Price) -> Cell:
    text = ", ".join(price.statuses)
    return Cell(text=text, value=text, emphasis="good" if price.statuses == ("ok", "ok") else "bad")


def _names(title: str, names: list[str]) -> Drawn:
    return Column(key="case", title=title, align="left"), [Cell(text=clean(name), value=name) for name in names]


def _column(key: str, title: str, unit: str, cells: list[Cell], *, left: bool = False) -> Drawn:
    return Column(key=key, title=title, unit=unit, align="left" if left else "right"), cells
