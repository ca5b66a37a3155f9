"""Charts as SVG to put into a page. Drawn by matplotlib, which is imported here only, and not before it is needed.

matplotlib because it is well kept and its pictures are plain SVG: they need no script and no network, they print, and a
reader of e-mail that runs no script shows them. Colours are drawn as placeholders and become CSS variables, so that one
picture suits light and dark pages.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any  # matplotlib has too many settings to name their types

from reports.charts import BACK, GRID, INK, MUTED, VARIABLES, Chart

_LONG = re.compile(r"(\d+\.\d\d)\d+")
"""A coordinate with more digits than a screen has."""
WIDTH = 5.8
"""Inches, of every picture."""
TOP, RIGHT = 0.1, 0.15


def is_available() -> bool:
    """Say whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def svg(chart: Chart, salt: str) -> str:
    """Return a picture to put into a page: colours as CSS variables, text as text, no ids that two pictures share."""
    text = _saved(chart, salt)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick|\w+Collection)_\d+"', "", text
    )
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', text, count=1
    )
    text = _LONG.sub(r"\1", text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.strip()


def _saved(chart: Chart, salt: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_settings(salt)), warnings.catch_warnings():
        # A name in a script that matplotlib's own font lacks: the reader's browser has it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # Margins are told, not found: finding them would draw everything twice.
        high = chart.height - chart.below - TOP
        place = (
            chart.beside / WIDTH,
            chart.below / chart.height,
            1 - (chart.beside + RIGHT) / WIDTH,
            high / chart.height,
        )
        figure = Figure(figsize=(WIDTH, chart.height))
        axes = figure.add_axes(place)
        axes.grid(visible=True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        chart.draw(axes)
        out = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", metadata=metadata, transparent=True)
    return out.getvalue()


def _settings(salt: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.facecolor": BACK,
        "axes.titlesize": 10,
        "figure.facecolor": BACK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
        "hatch.linewidth": 0.6,
    }
