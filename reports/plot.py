"""Small plots in plain ASCII: throughput against size, a figure over runs. Drawn by plotext, imported here only."""

from __future__ import annotations

import math
import string
from typing import Any  # plotext has no types

from reports.blocks import Plot, Timeline
from reports.formatting import columns, shorten

MARKS = "ox*#@%&" + string.ascii_uppercase
"""None of them is part of the frame."""
LINE = "."
MEETING = "where marks meet, the first of these is shown"
MARGIN = " " * 4
HEIGHT = 14
WIDTH = 72
"""At most, and where the terminal's is not known."""
NARROWEST = 40
HEADROOM = 1.05
STEPS = 5
DATES = 5
"""At most this many runs are named below the axis."""
_ASCII = str.maketrans("┌┐└┘├┤┬┴┼─│", "+++++++++-|")


def draw_plot(plot: Plot, width: int | None) -> list[str]:
    """Return the plot's lines, then its legend's; none where there is nothing to draw or no room to draw it in.

    Sizes are spaced by their logarithm, since sweeps double; throughput starts at 0, so that heights compare as
    lengths do. Where two marks meet, the earlier series covers the later.
    """
    highest = max((value for _, values in plot.series for value in values if value is not None), default=0.0)
    if not math.isfinite(highest) or highest <= 0:
        return []
    known = [
        (case, [(math.log2(size), value) for size, value in zip(plot.sizes, values, strict=True) if value is not None])
        for case, values in plot.series
    ]
    heights = _round_steps(highest)
    return _chart(
        known,
        width,
        unit="items/s",
        below=plot.dim,
        places=[(math.log2(size), str(size)) for size in plot.sizes],
        heights=heights,
        limits=(0, max(highest * HEADROOM, heights[-1])),
    )


def draw_timeline(line: Timeline, width: int | None) -> list[str]:
    """Return a figure's lines over runs, then its legend's; none where there are not two runs to draw.

    The axis does not start at 0: what changed by some percent is to be seen.
    """
    known = [
        (case, [(float(index), value) for index, value in enumerate(values) if value is not None])
        for case, values in line.series
    ]
    found = [value for _, points in known for _, value in points if math.isfinite(value)]
    if len(line.runs) < 2 or not found:
        return []
    low, high = min(found), max(found)
    margin = (high - low) * (HEADROOM - 1) or abs(high) * 0.01 or 1.0
    every = max(1, -(-len(line.runs) // DATES))
    return _chart(
        known,
        width,
        unit=line.unit,
        below="",
        places=[(float(index), line.runs[index]) for index in range(0, len(line.runs), every)],
        heights=[low, (low + high) / 2, high] if high > low else [low],
        limits=(low - margin, high + margin),
    )


def _chart(
    known: list[tuple[str, list[tuple[float, float]]]],
    width: int | None,
    *,
    unit: str,
    below: str,
    places: list[tuple[float, str]],
    heights: list[float],
    limits: tuple[float, float],
) -> list[str]:
    room = min(WIDTH, width or WIDTH)
    if room < NARROWEST:
        return []
    try:
        import plotext
    except (ImportError, OSError):  # its core is a native library that may not fit this system; the table says it all
        return []
    figure: Any = plotext.figure
    plotext.terminal.limit(False, False)
    figure.clear()
    figure.plot_size(room, HEIGHT)
    figure.theme("colorless")
    for _, points in known:
        line = figure.signal(*_axes(points), marker=LINE)
        line.lines()
        figure.draw(line)
    for mark, (_, points) in reversed(list(zip(MARKS, known, strict=False))):  # after all lines: none covers a mark
        figure.draw(figure.signal(*_axes(points), marker=mark))
    figure.ruler("x").ticks([place for place, _ in places], [text for _, text in places])
    figure.ruler("y").lim(*limits)
    figure.ruler("y").ticks(heights, [f"{height:.4g}" if below == "" else f"{height:.10g}" for height in heights])
    figure.label(below, "x")
    text = str(figure.build().string(colorless=True)).translate(_ASCII)
    lines = [line.rstrip() for line in text.rstrip("\n").split("\n")]
    canvas = "".join(lines[: HEIGHT - 2])
    hidden = any(canvas.count(mark) < len(points) for mark, (_, points) in zip(MARKS, known, strict=False))
    legend = _legend([case for case, _ in known], room)
    return [unit, *lines, *legend, *([f"{MARGIN}{MEETING}"] if hidden else [])]


def _axes(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _round_steps(highest: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from 0 to at least the highest value, at most six."""
    power = 10.0 ** (math.floor(math.log10(highest)) - 1)
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if highest <= STEPS * factor * power)
    return [step * index for index in range(math.ceil(highest / step) + 1)]


def _legend(cases: list[str], room: int) -> list[str]:
    entries = [f"{mark} {shorten(case, room - 6)}" for mark, case in zip(MARKS, cases, strict=False)]
    lines: list[str] = []
    for entry in entries:
        if lines and columns(lines[-1]) + columns(entry) + 3 <= room:
            lines[-1] += f"   {entry}"
        else:
            lines.append(f"{MARGIN}{entry}")
    return lines
