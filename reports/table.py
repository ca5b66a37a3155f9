"""The table without a format: columns with units, rows of typed cells. Every format shows this one.

Text in cells is one line and free of control characters; what a format itself gives a meaning to, such as a
pipe in Markdown, is the format's to escape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.api import Scalar
from harness.summary import CaseSummary, RunSummary
from reports.formatting import (
    MISSING,
    SECONDS,
    Unit,
    clean,
    ratio,
    scientific,
    shorten,
    significant,
    time_unit,
    verdict,
)
from reports.values import Values, values, worst

Emphasis = Literal["", "good", "bad", "muted"]

OF_STATUS: dict[str, Emphasis] = {"ok": "good", "compiled": "muted", "unavailable": "muted", "unsupported": "muted"}
OF_VERDICT: dict[str, Emphasis] = {"FASTER": "good", "SLOWER": "bad"}
NAME_CHARACTERS = 24


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value at full precision and the text that shows it."""

    text: str = MISSING
    value: Scalar = None
    emphasis: Emphasis = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; `key` names its value in `reports.values`."""

    key: str
    title: str
    unit: str = ""
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows; every row has one cell a column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def select(self, keys: Sequence[str]) -> Table:
        """Return the table with only these columns, in this order."""
        places = {column.key: index for index, column in enumerate(self.columns)}
        chosen = [places[key] for key in keys]
        return Table(
            columns=tuple(self.columns[index] for index in chosen),
            rows=tuple(tuple(row[index] for index in chosen) for row in self.rows),
        )


Drawn = tuple[Column, list[Cell]]


def draw_table(summary: RunSummary) -> Table:
    """Return one row a case, one column a quantity; latencies in the unit that suits them, compilations in seconds."""
    flats = [values(row, summary) for row in summary.rows]
    latency = time_unit(_seconds(flats, "p50_ns"))
    drawn = [
        _text("case", "backend", flats),
        _text("version", "version", flats),
        _text("provider", "provider", flats),
        _text("precision", "precision", flats),
        _time("compile_s", "compile", flats, unit=SECONDS),
        _time("warm_load_s", "warm load", flats, unit=SECONDS),
        _time("first_run_s", "first run", flats),
        _time("p50_ns", "p50", flats, unit=latency, digits=4),
        _time("p95_ns", "p95", flats, unit=latency, digits=4),
        _time("p99_ns", "p99", flats, unit=latency, digits=4),
        _time("host_to_host_p50_ns", "host-to-host", flats, unit=latency, digits=4, of="p50 "),
        _number("throughput_per_s", "throughput", "items/s", flats, digits=4),
        _ratios(summary),
        _drawn("verdict", "verdict", "", "left", summary, _verdict),
        _drawn("drift_relative_l2", "drift", "rel. L2", "right", summary, _relative_l2),
        _drawn("drift_cosine", "drift", "cosine", "right", summary, _cosine),
        _drawn("drift_passed", "drift", "check", "left", summary, _passed),
        _number("engine_bytes", "engine", "MB", flats, per=1e6),
        _number("peak_bytes", "peak", "MB", flats, per=1e6),
        _drawn("status", "status", "", "left", summary, _status),
    ]
    return Table(
        columns=tuple(column for column, _ in drawn),
        rows=tuple(tuple(cells[index] for _, cells in drawn) for index in range(len(flats))),
    )


def _text(key: str, title: str, flats: Sequence[Values]) -> Drawn:
    cells = [Cell(text=str(flat[key] or MISSING), value=flat[key]) for flat in flats]
    return Column(key=key, title=title, align="left"), cells


def _number(key: str, title: str, unit: str, flats: Sequence[Values], *, per: float = 1.0, digits: int = 3) -> Drawn:
    cells = [
        Cell(text=significant(value / per, digits), value=value)
        if isinstance(value := flat[key], (int, float))
        else Cell()
        for flat in flats
    ]
    return Column(key=key, title=title, unit=unit), cells


def _time(
    key: str, title: str, flats: Sequence[Values], *, unit: Unit | None = None, digits: int = 3, of: str = ""
) -> Drawn:
    chosen = unit or time_unit(_seconds(flats, key))
    per = chosen.seconds * (1e9 if key.endswith("_ns") else 1.0)
    return _number(key, title, of + chosen.name, flats, per=per, digits=digits)


def _seconds(flats: Sequence[Values], key: str) -> list[float]:
    length = 1e-9 if key.endswith("_ns") else 1.0
    return [value * length for flat in flats if isinstance(value := flat[key], (int, float))]


def _drawn(
    key: str,
    title: str,
    unit: str,
    align: Literal["left", "right"],
    summary: RunSummary,
    show: Callable[[CaseSummary], Cell],
) -> Drawn:
    return Column(key=key, title=title, unit=unit, align=align), [show(row) for row in summary.rows]


def _ratios(summary: RunSummary) -> Drawn:
    title = f"vs {shorten(clean(summary.baseline or 'baseline'), NAME_CHARACTERS)}"
    return _drawn("ratio", title, "time ratio [99 %]", "right", summary, _ratio)


def _ratio(row: CaseSummary) -> Cell:
    if row.is_baseline and row.compute:
        return Cell(text="baseline", value=1.0, emphasis="muted")
    if row.comparison is None:
        return Cell()
    return Cell(text=ratio(row.comparison.ratio), value=row.comparison.ratio.value, emphasis=_judgement(row))


def _verdict(row: CaseSummary) -> Cell:
    if row.comparison is None:
        return Cell()
    return Cell(text=verdict(row.comparison), value=row.comparison.verdict, emphasis=_judgement(row))


def _judgement(row: CaseSummary) -> Emphasis:
    # Being fast is no merit of an engine whose outputs are wrong.
    if row.comparison is None or row.case.status != "ok":
        return "muted"
    return OF_VERDICT.get(row.comparison.verdict, "")


def _relative_l2(row: CaseSummary) -> Cell:
    drift = worst(row)
    value: float | None = drift.relative_l2 if drift else None
    if value is None:
        return Cell()
    return Cell(text=scientific(value), value=value)


def _cosine(row: CaseSummary) -> Cell:
    drift = worst(row)
    value: float | None = drift.cosine if drift else None
    if value is None:
        return Cell()
    return Cell(text=f"{value:.6f}" if math.isfinite(value) else scientific(value), value=value)


def _passed(row: CaseSummary) -> Cell:
    if not row.case.drift:
        return Cell()
    passed = all(drift.passed for drift in row.case.drift)
    return Cell(text="pass" if passed else "FAIL", value=passed, emphasis="good" if passed else "bad")


def _status(row: CaseSummary) -> Cell:
    status = row.case.status
    return Cell(text=status, value=status, emphasis=OF_STATUS.get(status, "bad"))
