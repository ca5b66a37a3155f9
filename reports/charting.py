"""What all charts share: what a chart is, its colours by name, how cases are told apart, axes of durations.

A chart draws on matplotlib's axes, which are passed in. Its colours are places in matplotlib's colour cycle, which
`reports.pictures` fills: with placeholders for a page, with real colours for a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any  # matplotlib's axes: it is not imported here

from harness.summary import CaseSummary, WorkloadSummary
from reports.formatting import clean, shorten

INSTALL = "pip install 'harness[plots]'"
SERIES = 8
"""Cases that a chart of lines shows: the fastest, and always the baseline."""
NAME_CHARACTERS = 28
BELOW = 0.55
"""Inches for the numbers and the title of an axis."""
LEGEND_ROW = 0.19
"""Inches that a line of a legend takes."""
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"

VARIABLES = ("--ink", "--muted", "--grid", "--back", *(f"--s{index}" for index in range(1, SERIES + 1)))
"""CSS variables with the colours of the cycle, in its order."""
INK, MUTED, GRID, BACK, *COLORS = (f"C{index}" for index in range(len(VARIABLES)))


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
    height: float = 3.0
    """In inches; all are as wide as each other."""
    beside: float = 0.65
    """Room in inches at the left of the axes."""
    below: float = 0.5
    """And below them."""


def shown(workload: WorkloadSummary) -> list[CaseSummary]:
    """Return the cases that a chart of lines shows."""
    measured = [row for row in workload.rows if row.compute]
    first = measured[:SERIES]
    rest = [row for row in measured[SERIES:] if row.is_baseline]
    return first[: SERIES - len(rest)] + rest


def places(workload: WorkloadSummary) -> dict[str, int]:
    """Return the number by which every measured case is coloured, the same in all charts of a workload."""
    return {row.case.id: index for index, row in enumerate(row for row in workload.rows if row.compute)}


def style(index: int, marked: bool = False) -> dict[str, Any]:
    """Return how a case is drawn: dashes and markers tell it apart where colours do not."""
    drawn = {"color": COLORS[index % SERIES], "linestyle": DASHES[index // 2 % len(DASHES)]}
    return drawn | ({"marker": MARKERS[index % len(MARKERS)]} if marked else {})


def short(name: str) -> str:
    """Return a name for a legend, which takes a leading underscore as a wish not to be shown."""
    return shorten(clean(name), NAME_CHARACTERS).lstrip("_") or "?"


def spread(axes: Any, low: float, high: float) -> None:
    """Set the x axis, by logarithm where durations differ by much."""
    if low > 0 and high / low > 6:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * 1.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high / low < 30 and _is_step(value) else "")
    else:
        margin = (high - low) * 0.05 or high * 0.05
        axes.set_xlim(low - margin, high + margin)


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return limits with some room beside the outermost values."""
    return min(values) * 0.95, max(values) * 1.05


def name_rows(axes: Any, rows: Sequence[CaseSummary]) -> None:
    """Name the rows of a chart of bars after their cases, the first one at the top."""
    axes.set_yticks(range(len(rows)), [short(row.case.id) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def room(rows: Sequence[CaseSummary]) -> float:
    """Return the inches that the names of rows take."""
    return 0.25 + 0.085 * max(len(short(row.case.id)) for row in rows)


def legend_below(axes: Any, columns: int) -> None:
    """Put the legend at the lower edge of the picture, where a chart has left room `below` its axes."""
    axes.legend(
        ncols=columns,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.figure.transFigure,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _is_step(value: float) -> bool:
    return round(value / 10 ** math.floor(math.log10(value))) in (2, 5)
