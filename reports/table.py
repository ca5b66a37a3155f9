"""Tables without a format: columns with units, rows of typed cells. Every format shows these.

Text in cells is one line and free of control characters; what a format itself gives a meaning to, such as a
pipe in Markdown, is the format's to escape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.api import Scalar
from harness.summary import CaseSummary, Comparison, RunSummary, WorkloadSummary
from reports.formatting import (
    MISSING,
    SECONDS,
    Unit,
    agreed,
    clean,
    percent,
    points,
    ratio,
    scientific,
    shorten,
    significant,
    time_unit,
    verdict,
)
from reports.values import Values, least_agreement, values, worst

Emphasis = Literal["", "good", "bad", "muted"]

OF_STATUS: dict[str, Emphasis] = {"ok": "good", "compiled": "muted", "unavailable": "muted", "unsupported": "muted"}
OF_VERDICT: dict[str, Emphasis] = {"FASTER": "good", "SLOWER": "bad"}
NAME_CHARACTERS = 24
OF_TARGET = ("case", "version", "provider", "precision", "compile_s", "engine_bytes")
"""What there is to say of a case that was compiled for an absent device, beside its peak memory and its status."""
OF_TASK = ("agreement", "accuracy", "accuracy_difference")
"""What the task says of a case, where the model declares one and where there is labelled data."""
WHERE_APPLICABLE = (
    *OF_TASK, "device_p50_ns", "build_sd", "device_peak_bytes", "energy_mj", "limit_share", "bound_by",
)  # fmt: skip
"""Columns that are left out where no row has a value: on a CPU nothing of the kind exists."""
SPEED = (
    "p50_ns",
    "p95_ns",
    "p99_ns",
    "device_p50_ns",
    "host_to_host_p50_ns",
    "throughput_per_s",
    "limit_share",
    "bound_by",
    "ratio",
    "build_sd",
    "verdict",
    "status",
)
COST = (
    "version",
    "provider",
    "precision",
    "compile_s",
    "warm_load_s",
    "first_run_s",
    "engine_bytes",
    "peak_bytes",
    "device_peak_bytes",
    "energy_mj",
    "drift_relative_l2",
    "drift_cosine",
    "drift_passed",
    *OF_TASK,
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value at full precision and the text that shows it."""

    text: str = MISSING
    value: Scalar = None
    emphasis: Emphasis = ""
    link: str = ""
    """Where it leads on a page of a site, seen from that page; other formats have no use for it."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column; in a table of cases `key` names its value in `reports.values`."""

    key: str
    title: str
    unit: str = ""
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows; every row has one cell a column, and the first column names it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    themes: tuple[tuple[str, ...], ...]
    """Keys of all columns but the first, by what belongs together where the table must be split."""

    def select(self, keys: Sequence[str]) -> Table:
        """Return the table with only these columns, in this order."""
        places = {column.key: index for index, column in enumerate(self.columns)}
        chosen = [places[key] for key in keys]
        return Table(
            columns=tuple(self.columns[index] for index in chosen),
            rows=tuple(tuple(row[index] for index in chosen) for row in self.rows),
            themes=(tuple(keys[1:]),),
        )


Drawn = tuple[Column, list[Cell]]


def draw_table(workload: WorkloadSummary, summary: RunSummary) -> Table:
    """Return one row a case, one column a quantity; latencies in the unit that suits them, compilations in seconds."""
    flats = [values(row, workload, summary) for row in workload.rows]
    latency = time_unit(_seconds(flats, "p50_ns"))
    distance = distance_word(workload)
    rows = workload.rows
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
        _time("device_p50_ns", "device", flats, unit=latency, digits=4, of="p50 "),
        _time("host_to_host_p50_ns", "host-to-host", flats, unit=latency, digits=4, of="p50 "),
        _number("throughput_per_s", "throughput", "items/s", flats, digits=4),
        _drawn("limit_share", "of limit", "%", "right", rows, _limit_share),
        _drawn("bound_by", "bound by", "", "left", rows, _bound_by),
        _drawn("ratio", against_word(workload.baseline), "time ratio [99 %]", "right", rows, _ratio),
        _drawn("build_sd", "builds", "sd", "right", rows, _build_sd),
        _drawn("verdict", "verdict", "", "left", rows, _verdict),
        _drawn("drift_relative_l2", distance, "rel. L2", "right", rows, _relative_l2),
        _drawn("drift_cosine", distance, "cosine", "right", rows, _cosine),
        _drawn("drift_passed", distance, "check", "left", rows, _passed),
        _drawn("agreement", "task", "agreement", "left", rows, _agreement),
        _drawn("accuracy", "accuracy", _measure(rows), "right", rows, _accuracy),
        _drawn("accuracy_difference", against_word(workload.baseline), "points [99 %]", "right", rows, _difference),
        _number("engine_bytes", "engine", "MB", flats, per=1e6),
        _number("peak_bytes", "peak", "MB", flats, per=1e6),
        _number("device_peak_bytes", "device memory", "MB", flats, per=1e6),
        _number("energy_mj", "energy", "mJ", flats),
        _drawn("status", "status", "", "left", rows, _status),
    ]
    if workload.workload.target:
        peak = _number("peak_compile_bytes", "peak", "MB", flats, per=1e6)
        return assembled([*(one for one in drawn if one[0].key in OF_TARGET), peak, drawn[-1]])
    shown = [
        (column, cells)
        for column, cells in drawn
        if column.key not in WHERE_APPLICABLE or any(cell.value is not None for cell in cells)
    ]
    kept = {column.key for column, _ in shown}
    return assembled(shown, themes=tuple(tuple(key for key in theme if key in kept) for theme in (SPEED, COST)))


def assembled(drawn: Sequence[Drawn], themes: tuple[tuple[str, ...], ...] | None = None) -> Table:
    """Return a table from its columns; without themes all columns belong together."""
    heads = tuple(column for column, _ in drawn)
    return Table(
        columns=heads,
        rows=tuple(zip(*(cells for _, cells in drawn), strict=True)),
        themes=themes or (tuple(column.key for column in heads[1:]),),
    )


def distance_word(workload: WorkloadSummary) -> str:
    """Return what the distance from the reference is called: with random weights it is no drift of any accuracy."""
    return "agreement" if workload.seeded else "drift"


def against_word(baseline: str | None) -> str:
    """Return the title of a column of ratios to the baseline."""
    return f"vs {shorten(clean(baseline or 'baseline'), NAME_CHARACTERS)}"


def judgement(comparison: Comparison | None, *, sound: bool) -> Emphasis:
    """Return the colour of a comparison; being fast is no merit of an engine whose outputs are wrong."""
    if comparison is None or not sound:
        return "muted"
    return OF_VERDICT.get(comparison.verdict, "")


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
    rows: Sequence[CaseSummary],
    show: Callable[[CaseSummary], Cell],
) -> Drawn:
    return Column(key=key, title=title, unit=unit, align=align), [show(row) for row in rows]


def _limit_share(row: CaseSummary) -> Cell:
    if row.limit_share is None:
        return Cell()
    text = significant(100 * row.limit_share, 2)
    if row.limit_share > 1:
        return Cell(text=f"{text} (wrong)", value=row.limit_share, emphasis="bad")
    return Cell(text=text, value=row.limit_share)


def _bound_by(row: CaseSummary) -> Cell:
    return Cell() if row.bound_by is None else Cell(text=row.bound_by, value=row.bound_by)


def _ratio(row: CaseSummary) -> Cell:
    if row.is_baseline and row.compute:
        return Cell(text="baseline", value=1.0, emphasis="muted")
    if row.comparison is None:
        return Cell()
    return Cell(text=ratio(row.comparison.ratio), value=row.comparison.ratio.value, emphasis=_judgement(row))


def _build_sd(row: CaseSummary) -> Cell:
    spread = row.comparison.build_sd if row.comparison else None
    return Cell() if spread is None else Cell(text=percent(spread), value=spread)


def _verdict(row: CaseSummary) -> Cell:
    if row.comparison is None:
        return Cell()
    return Cell(text=verdict(row.comparison), value=row.comparison.verdict, emphasis=_judgement(row))


def _judgement(row: CaseSummary) -> Emphasis:
    return judgement(row.comparison, sound=row.case.status == "ok")


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


def _agreement(row: CaseSummary) -> Cell:
    leading = least_agreement(row.case.agreement)
    return Cell(text=agreed(leading), value=leading.figure) if leading else Cell()


def _measure(rows: Sequence[CaseSummary]) -> str:
    """Return the name of the leading metric of the data set, which is the same for all rows."""
    return next((name for row in rows if row.case.accuracy for name in row.case.accuracy.metrics), "")


def _accuracy(row: CaseSummary) -> Cell:
    found = row.case.accuracy
    if found is None:
        return Cell()
    value = next(iter(found.metrics.values()), None)
    return Cell(text="failed", emphasis="bad") if value is None else Cell(text=f"{value:.4f}", value=value)


def _difference(row: CaseSummary) -> Cell:
    paired = row.case.accuracy.paired if row.case.accuracy else None
    if paired is None:
        return Cell()
    emphasis: Emphasis = ("good" if paired.difference > 0 else "bad") if paired.decided else ""
    return Cell(text=points(paired), value=paired.difference, emphasis=emphasis)


def _status(row: CaseSummary) -> Cell:
    status = row.case.status
    return Cell(text=status, value=status, emphasis=OF_STATUS.get(status, "bad"))
