"""The roofline: how near each case came to what its device can do at most, by S. Williams, A. Waterman and D. Patterson
(2009, doi:10.1145/1498765.1498785). Formulas are those of `harness.roofline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # matplotlib's axes: it is not imported here

from harness.records import Ceiling
from harness.roofline import Spot, spot
from harness.summary import CaseSummary, WorkloadSummary
from reports.charting import BELOW, DASHES, INK, LEGEND_ROW, SERIES, Chart, legend_below, places, short, style
from reports.formatting import clean, listed, shorten, significant

GIGA = 1e9
BESIDE = 6.0
"""The picture reaches so many times beyond what is in it."""
SOURCE_CHARACTERS = 160


def roofline(workload: WorkloadSummary, ceilings: Sequence[Ceiling]) -> Chart | None:
    """Return the chart; None where the ceilings of its device, the model's operations or its bytes are not known."""
    measured = [row for row in workload.rows if row.compute][: 2 * SERIES]
    found = [(row, at) for row in measured if (at := spot(row, workload, ceilings))]
    if not found:
        return None
    numbers, roofs = places(workload), _roofs([at for _, at in found])

    def draw(axes: Any) -> None:
        left, right = _reach(found, roofs)
        for index, (name, roof) in enumerate(roofs.items()):
            _draw_roof(axes, name, roof, left, right, DASHES[index % len(DASHES)])
        for row, at in found:
            drawn = style(numbers[row.case.id], True) | {"linestyle": ""}
            drawn |= {"marker": "X", "markersize": 10} if at.share > 1 else {"markersize": 7}
            axes.plot([at.intensity], [at.rate / GIGA], label=_label(row, at), zorder=3, **drawn)
        axes.set_xscale("log", subs=())  # no small ticks: each takes time
        axes.set_yscale("log", subs=())
        axes.set_xlim(left, right)
        rates = [at.rate for _, at in found] + [roof.peak for roof in roofs.values()]
        axes.set_ylim(min(rates) / GIGA / 3, max(rates) / GIGA * 4)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("operations per byte that must be moved")
        axes.set_ylabel("GFLOP/s")
        legend_below(axes, 1)

    sources = list(dict.fromkeys(clean(at.ceiling.source) for _, at in found))
    below = BELOW + LEGEND_ROW * len(found) + 0.05
    return Chart(
        key="roofline",
        title="Roofline",
        caption="The line is the most that the device can do: its rate of moving memory on the slope, of multiplying "
        f"matrices on the flat; {shorten(listed(sources), SOURCE_CHARACTERS)}. {_warning(found)}",
        summary="; ".join(_label(row, at) for row, at in found),
        draw=draw,
        height=2.3 + below + 0.1,
        below=below,
    )


def _roofs(spots: Sequence[Spot]) -> dict[str, Spot]:
    """Return the different roofs by what they are called."""
    return {_name(at): at for at in reversed(spots)}


def _name(at: Spot) -> str:
    return f"{at.peak_of} on {at.ceiling.device}: {significant(at.peak / GIGA)} GFLOP/s{_slope(at)}"


def _slope(at: Spot) -> str:
    return f", {significant(at.bandwidth / GIGA)} GB/s" if at.bandwidth else ""


def _draw_roof(axes: Any, name: str, roof: Spot, left: float, right: float, dashes: str) -> None:
    ridge = roof.peak / roof.bandwidth if roof.bandwidth else left
    corners = [left, *([ridge] if left < ridge < right else []), right]
    heights = [min(roof.peak, x * roof.bandwidth) if roof.bandwidth else roof.peak for x in corners]
    axes.plot(corners, [y / GIGA for y in heights], color=INK, linewidth=1.2, linestyle=dashes, zorder=2)
    axes.annotate(
        name,
        (right, roof.peak / GIGA),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7.5,
    )


def _reach(found: Sequence[tuple[CaseSummary, Spot]], roofs: dict[str, Spot]) -> tuple[float, float]:
    places_ = [at.intensity for _, at in found]
    places_ += [roof.peak / roof.bandwidth for roof in roofs.values() if roof.bandwidth]
    return min(places_) / BESIDE, max(places_) * BESIDE


def _label(row: CaseSummary, at: Spot) -> str:
    share = f"{100 * at.share:.3g} % of its {at.by} limit"
    return f"{short(row.case.id)}: {share}" + (", above the line" if at.share > 1 else "")


def _warning(found: Sequence[tuple[CaseSummary, Spot]]) -> str:
    above = sum(at.share > 1 for _, at in found)
    if not above:
        return "A case above it would be marked by a cross."
    which = "a case lies" if above == 1 else f"{above} cases lie"
    return (
        f"Something is wrong, {which} above it (a cross): the line is too low, or the engine needs fewer operations "
        "than the model counts, as fast convolutions do."
    )
