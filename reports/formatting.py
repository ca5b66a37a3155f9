"""Numbers and foreign text as people read them: significant digits, one unit a column, no control characters."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from harness.api import Scalar
from harness.records import Agreement, Paired
from harness.summary import Comparison, Estimate

MISSING = "-"

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system command: titles, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control and other strings
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # colours, cursor movement, two-character escapes
)
# Format characters can reverse or hide text; surrogates cannot be encoded.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs"})


@dataclass(frozen=True)
class Unit:
    """A unit of time and its length in seconds."""

    name: str
    seconds: float


SECONDS = Unit("s", 1.0)
MILLISECONDS = Unit("ms", 1e-3)
MICROSECONDS = Unit("µs", 1e-6)


def clean(text: str) -> str:
    """Return text from outside as one line: no escape sequences, control or invisible format characters."""
    if text.isascii() and text.isprintable():  # nearly all text is, and reports hold tens of thousands of pieces
        return " ".join(text.split())
    visible = (" " if char.isspace() else char for char in _ESCAPE_SEQUENCE.sub("", text))
    return " ".join("".join(char for char in visible if unicodedata.category(char) not in _UNPRINTABLE).split())


def clean_lines(text: str, *, last: int) -> list[str]:
    """Return the last lines of a log that are not blank, each cleaned but with its indentation.

    Of a line that a progress bar has redrawn only the final state is kept.
    """
    lines = []
    for line in text.split("\n"):
        final = line.rstrip("\r ").rsplit("\r", 1)[-1].expandtabs(4)
        indent = len(final) - len(final.lstrip(" "))
        body = clean(final)
        if body:
            lines.append(" " * indent + body)
    return lines[-last:]


def columns(text: str) -> int:
    """Return how many columns of a terminal a line of text takes: two for a wide character, none for an accent."""
    return cell_len(text)


def shorten(text: str, limit: int) -> str:
    """Return text cut to `limit` characters, the last of them an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def listed(items: Sequence[str], *, most: int = 0) -> str:
    """Return `a, b and c`; of more than `most`, where it is given, how many there are besides."""
    shown = list(items)
    if most and len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the noun that it counts."""
    return f"{number} {one if number == 1 else many}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits; whole parts stay whole, tiny ones get an exponent."""
    if value == 0 or not math.isfinite(value):
        return scientific(value)
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def scientific(value: float) -> str:
    """Return a distance as `1.2e-06`: its magnitude matters more than its digits."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return "0" if value == 0 else f"{value:.1e}"


def time_unit(durations_s: Iterable[float]) -> Unit:
    """Return the unit in which most of a column's durations, given in seconds, read well: that of the lower median."""
    ordered = sorted(durations_s)
    if not ordered:
        return MILLISECONDS
    middle = ordered[(len(ordered) - 1) // 2]
    if middle >= 1:
        return SECONDS
    return MILLISECONDS if middle >= 1e-4 else MICROSECONDS


def duration(seconds: float) -> str:
    """Return a duration with a unit of its own, for running text."""
    unit = time_unit([seconds])
    return f"{significant(seconds / unit.seconds)} {unit.name}"


def percent(share: float) -> str:
    """Return a share such as 0.013 as `1.3 %`."""
    return f"{significant(100 * share, 2)} %"


def ratio(estimate: Estimate) -> str:
    """Return `0.43x [0.42, 0.44]`, with no more decimals than the interval can carry, but never a bare zero."""
    half_width = (estimate.high - estimate.low) / 2
    if not math.isfinite(half_width) or half_width <= 0:
        decimals = 3
    else:
        smaller = min(half_width, estimate.value) if estimate.value > 0 else half_width
        decimals = min(4, max(2, -math.floor(math.log10(smaller))))
    return f"{estimate.value:.{decimals}f}x [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def verdict(comparison: Comparison) -> str:
    """Return the verdict, marked where the interval is wider than the precision that was asked for."""
    return f"{comparison.verdict} (noisy)" if comparison.noisy else comparison.verdict


def agreed(agreement: Agreement) -> str:
    """Return `top-1 0.9870` or `PSNR 41.3 dB`; what is not quite 1 never reads as 1."""
    name = agreement.figure.removesuffix(" dB")
    if agreement.value is None:
        return f"{name} exact"
    if name != agreement.figure:
        return f"{name} {significant(agreement.value)} dB"
    text = f"{agreement.value:.4f}"
    return f"{name} >0.9999" if float(text) == 1 and agreement.value < 1 else f"{name} {text}"


def points(paired: Paired) -> str:
    """Return a difference of two shares with its interval in points, each a hundredth: `-0.20 [-0.81, +0.41]`."""
    difference, low, high = (f"{100 * value:+.2f}" for value in (paired.difference, paired.low, paired.high))
    return f"{difference} [{low}, {high}]"


def size(count: int) -> str:
    """Return a number of bytes in decimal units."""
    if count >= 1e9:
        return f"{significant(count / 1e9)} GB"
    return f"{significant(count / 1e6)} MB"


def word(value: Scalar) -> str:
    """Return a fact's value as a word of running text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return significant(value, 4) if isinstance(value, float) else clean(str(value))
