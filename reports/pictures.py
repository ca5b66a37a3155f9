"""Charts as SVG to put into a page. Drawn by matplotlib, which is imported here only, and not before it is needed.

matplotlib because it is well kept and its pictures are plain SVG: they need no script and no network, they print, and a
reader of e-mail that runs no script shows them. Colours are drawn as placeholders and become CSS variables, so that one
picture suits light and dark pages; a file of its own has the colours of a light page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # matplotlib has too many settings to name their types

from reports.charting import VARIABLES, Chart

STYLE = Path(__file__).with_name("templates") / "report.css"
PLACEHOLDERS = {variable: f"#0101{index:02x}" for index, variable in enumerate(VARIABLES, 1)}
"""CSS variable -> the colour that is drawn in its place."""
WIDTH = 4.8
"""Inches, of every picture."""
TOP, RIGHT = 0.1, 0.15
HEADING = 0.5
"""Inches for the title of a picture that stands alone."""
DOTS_PER_INCH = 200
_LONG = re.compile(r"(\d+\.\d\d)\d+")
"""A coordinate with more digits than a screen has."""
_IDS = re.compile(r' id="(?:figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick|\w+Collection)_\d+"')


def is_available() -> bool:
    """Say whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def svg(chart: Chart, salt: str) -> str:
    """Return a picture to put into a page: colours as CSS variables, text as text, no ids that two pictures share."""
    text = _drawn(chart, PLACEHOLDERS, salt, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = _IDS.sub("", text)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', text, count=1
    )
    text = _LONG.sub(r"\1", text)
    for variable, placeholder in PLACEHOLDERS.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.strip()


def file(chart: Chart, subject: str, format_: str) -> bytes:
    """Return a picture that stands alone, `svg`, `png` or `pdf`: on white, with its title and what it is of."""
    return _drawn(chart, light(), chart.key, format_, heading=(chart.title, subject))


def light() -> dict[str, str]:
    """Return CSS variable -> colour of a light page."""
    first, _, _ = STYLE.read_text(encoding="utf-8").partition("}")
    return {name: value for name, value in re.findall(r"(--\w+): (#\w{6})", first) if name in VARIABLES}


def _drawn(
    chart: Chart, colors: Mapping[str, str], salt: str, format_: str, heading: tuple[str, str] | None = None
) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_settings(colors, salt)), warnings.catch_warnings():
        # A name in a script that matplotlib's own font lacks: the reader's browser has it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # Margins are told, not found: finding them would draw everything twice.
        height = chart.height + (HEADING if heading else 0.0)
        place = (
            chart.beside / WIDTH,
            chart.below / height,
            1 - (chart.beside + RIGHT) / WIDTH,
            (chart.height - chart.below - TOP) / height,
        )
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes(place)
        axes.grid(visible=True, color=colors["--grid"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        chart.draw(axes)
        if heading is not None:
            title, subject = heading
            figure.text(0.1 / WIDTH, 1 - 0.1 / height, title, fontsize=10, fontweight="bold", va="top")
            figure.text(0.1 / WIDTH, 1 - 0.32 / height, subject, fontsize=7.5, va="top", color=colors["--muted"])
        out = io.BytesIO()
        figure.savefig(out, format=format_, metadata=_NOTHING[format_], transparent=heading is None, dpi=DOTS_PER_INCH)
    return out.getvalue()


_NOTHING: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Format -> what is left out of the file, so that the same chart is the same file."""


def _settings(colors: Mapping[str, str], salt: str) -> dict[str, Any]:
    from cycler import cycler

    ink, muted, back = colors["--ink"], colors["--muted"], colors["--back"]
    return {
        "axes.prop_cycle": cycler(color=[colors[variable] for variable in VARIABLES]),
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.family": "sans-serif",
        "font.size": 9.5,
        "text.color": ink,
        "axes.edgecolor": muted,
        "axes.labelcolor": ink,
        "axes.facecolor": back,
        "figure.facecolor": back,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
        "hatch.linewidth": 0.6,
    }
