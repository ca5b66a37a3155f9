"""What the history is asked. Functions of an open transaction: see `Database.read()`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from harness.errors import StoreError
from harness.history import schema
from harness.history.points import Point
from harness.records import Record

LAST = "last"
_Select = sa.Select[Any]  # what the columns of a select are is written otherwise in SQLAlchemy 2.0 and 2.1
_BACK = re.compile(rf"{LAST}(?:~(\d{{1,6}}))?")
_AT_ONCE = 500
"""Values in one `IN`: databases have a limit."""
AGAIN = "harness check "
"""How the command of a run begins that measured cases of another one again, whose id follows. No run of its own right:
`last` is another one, and it is no earlier run of its cases."""
_MEASURED_AGAIN = (
    sa.select(schema.runs.c.id)
    .where(schema.runs.c.id == schema.cases.c.run, schema.runs.c.command.startswith(AGAIN))
    .exists()
)
_USABLE = ("ok", "compiled", "drifted")


class Filter(Record, frozen=True, kw_only=True):
    """Which cases: all that is not None must fit."""

    model: str | None = None
    """As in the table; `*` stands for any text."""
    backend: str | None = None
    """Its name: with all its options."""
    version: str | None = None
    device: str | None = None
    label: str | None = None
    since: str | None = None
    """ISO 8601, UTC."""
    measured: bool = False
    """Only those with a latency."""


class RunRow(Record, frozen=True, kw_only=True):
    """A run as a line."""

    id: str
    created: str
    state: str
    hostname: str
    commit: str
    branch: str


class RunState(Record, frozen=True, kw_only=True):
    """A run as a line, with what tells whether it is still the same."""

    row: RunRow
    wall_s: float
    harness: str
    bytes: int
    """Of all that is kept of it."""
    labels: list[str]


def find_run(connection: sa.Connection, name: str) -> RunRow | None:
    """Return the run of this id, or the only one whose id begins so; None where there is none.

    `last` is the newest, `last~1` the one before it; those that only measured cases of another one again do not count.

    Raises:
        StoreError: Several runs begin so.
    """
    wanted = sa.select(*_run_columns()).order_by(schema.runs.c.created.desc(), schema.runs.c.id.desc())
    if back := _BACK.fullmatch(name):
        own = wanted.where(~schema.runs.c.command.startswith(AGAIN))
        row = connection.execute(own.offset(int(back[1] or 0)).limit(1)).mappings().first()
        return _run_row(row) if row else None
    row = connection.execute(wanted.where(schema.runs.c.id == name)).mappings().first()
    if row is not None:
        return _run_row(row)
    starts = schema.runs.c.id.startswith(name, autoescape=True)
    rows = connection.execute(wanted.where(starts).limit(6)).mappings().all()
    if len(rows) > 1:
        names = ", ".join(each["id"] for each in rows[:5])
        raise StoreError(f"several runs match '{name}'", hint=f"{names}{', ...' if len(rows) > 5 else ''}; or: {LAST}")
    return _run_row(rows[0]) if rows else None


def newest_runs(connection: sa.Connection, most: int) -> list[RunRow]:
    """Return the newest runs, newest first."""
    order = sa.select(*_run_columns()).order_by(schema.runs.c.created.desc(), schema.runs.c.id.desc())
    return [_run_row(row) for row in connection.execute(order.limit(most)).mappings()]


def run_states(connection: sa.Connection, since: str | None = None) -> list[RunState]:
    """Return all runs, newest first; of those since a time, ISO 8601 in UTC, where one is given."""
    runs = schema.runs
    kept = [
        sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(table.c.data)), 0))
        .where(table.c.run == runs.c.id)
        .scalar_subquery()
        for table in (schema.documents, schema.samples)
    ]
    columns = [*_run_columns(), runs.c.wall_s, runs.c.harness, (kept[0] + kept[1]).label("bytes")]
    wanted = sa.select(*columns).order_by(runs.c.created.desc(), runs.c.id.desc())
    if since is not None:
        wanted = wanted.where(runs.c.created >= since)
    labels: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(schema.labels).order_by(schema.labels.c.label)):
        labels.setdefault(row.run, []).append(row.label)
    return [
        RunState(
            row=RunRow(**{name: row[name] for name in RunRow.__struct_fields__}),
            wall_s=row["wall_s"],
            harness=row["harness"],
            bytes=int(row["bytes"]),  # a Decimal by PostgreSQL
            labels=labels.get(row["id"], []),
        )
        for row in connection.execute(wanted).mappings()
    ]


def points(connection: sa.Connection, filter_: Filter, most: int | None = None) -> list[Point]:
    """Return the newest cases that fit, oldest first."""
    wanted = _newest(_filtered(filter_), most)
    return _points(connection, wanted)


def count(connection: sa.Connection, filter_: Filter) -> int:
    """Return how many cases fit."""
    return connection.execute(sa.select(sa.func.count()).select_from(_filtered(filter_).subquery())).scalar_one()


def points_of_run(connection: sa.Connection, run: str) -> list[Point]:
    """Return the cases of a run, in its order."""
    wanted = sa.select(schema.cases.c.detail).where(schema.cases.c.run == run).order_by(schema.cases.c.number)
    return _with_labels(connection, [_point(detail) for detail in connection.execute(wanted).scalars()])


def series(connection: sa.Connection, filter_: Filter) -> list[str]:
    """Return the series of the cases that fit, those of one model together."""
    fitting = _filtered(filter_).with_only_columns(schema.cases.c.series).distinct().subquery()
    order = (schema.series.c.model, schema.series.c.backend, schema.series.c.id)
    wanted = sa.select(schema.series.c.id).where(schema.series.c.id.in_(sa.select(fitting.c.series))).order_by(*order)
    return list(connection.execute(wanted).scalars())


def newest_of_series(connection: sa.Connection, series: str, most: int) -> list[Point]:
    """Return the newest cases of a series, oldest first, whether they were measured, only compiled, or failed.

    What was measured again for a gate is left out: it was chosen by its result.
    """
    wanted = sa.select(schema.cases.c.detail).where(schema.cases.c.series == series, ~_MEASURED_AGAIN)
    return _points(connection, _newest(wanted, most))


def earlier(connection: sa.Connection, series: Iterable[str], *, most: int, before: str) -> dict[str, list[Point]]:
    """Return the newest cases of each series that have a result, oldest first, of runs that began before a time.

    What was measured again for a gate is left out: it was chosen by its result.
    """
    found: dict[str, list[Point]] = {}
    for name in series:
        wanted = sa.select(schema.cases.c.detail).where(
            schema.cases.c.series == name,
            schema.cases.c.created < before,
            schema.cases.c.status.in_(_USABLE),
            ~_MEASURED_AGAIN,
        )
        if points_ := [_point(detail) for detail in connection.execute(_newest(wanted, most)).scalars()]:
            found[name] = points_[::-1]
    return found


def measured_again(connection: sa.Connection, run: str) -> list[Point]:
    """Return the cases of a run that were measured again and finished, oldest first."""
    runs = sa.select(schema.runs.c.id).where(
        schema.runs.c.command == f"{AGAIN}{run}", schema.runs.c.state == "finished"
    )
    return _points(connection, _newest(sa.select(schema.cases.c.detail).where(schema.cases.c.run.in_(runs)), None))


def baselines_of_models(connection: sa.Connection, names: Iterable[str]) -> list[Point]:
    """Return what the series of these models are held against."""
    joined = sa.and_(schema.cases.c.series == schema.baselines.c.series, schema.cases.c.run == schema.baselines.c.run)
    wanted = (
        sa.select(schema.cases.c.detail)
        .join(schema.baselines, joined)
        .join(schema.series, schema.series.c.id == schema.cases.c.series)
        .order_by(schema.cases.c.created.desc(), schema.cases.c.number.desc())
    )
    return [
        point
        for part in _parts(sorted(set(names)))
        for point in _points(connection, wanted.where(schema.series.c.model.in_(part)))
    ]


def baselines(connection: sa.Connection, series: Iterable[str] | None = None) -> dict[str, Point]:
    """Return what these series, or all, are held against: series -> case."""
    joined = sa.and_(schema.cases.c.series == schema.baselines.c.series, schema.cases.c.run == schema.baselines.c.run)
    wanted = sa.select(schema.cases.c.detail).join(schema.baselines, joined).order_by(schema.cases.c.created)
    if series is None:
        found = _points(connection, wanted)
    else:
        found = [
            point
            for part in _parts(sorted(set(series)))
            for point in _points(connection, wanted.where(schema.cases.c.series.in_(part)))
        ]
    return {point.series: point for point in found}


def versions(connection: sa.Connection, backend: str | None) -> list[str]:
    """Return the versions of a backend, or of all, that were measured; that of the newest run last."""
    newest = sa.func.max(schema.cases.c.created)
    wanted = sa.select(schema.cases.c.version).where(schema.cases.c.version.is_not(None))
    if backend is not None:
        wanted = wanted.where(schema.cases.c.backend == backend)
    wanted = wanted.group_by(schema.cases.c.version).order_by(newest)
    return list(connection.execute(wanted).scalars())


def models(connection: sa.Connection) -> list[str]:
    """Return every model that is in the history."""
    return list(connection.execute(sa.select(schema.series.c.model).distinct().order_by("model")).scalars())


def backends(connection: sa.Connection) -> list[str]:
    """Return every backend that is in the history."""
    return list(connection.execute(sa.select(schema.series.c.backend).distinct().order_by("backend")).scalars())


def labels(connection: sa.Connection) -> list[str]:
    """Return every label that a run has."""
    return list(connection.execute(sa.select(schema.labels.c.label).distinct().order_by("label")).scalars())


def _filtered(filter_: Filter) -> _Select:
    cases, series = schema.cases, schema.series
    wanted = sa.select(cases.c.detail)
    if filter_.model is not None or filter_.device is not None:
        wanted = wanted.join(series, series.c.id == cases.c.series)
    if filter_.model is not None:
        pattern = filter_.model.translate({ord(char): f"\\{char}" for char in "\\%_"}).replace("*", "%")
        wanted = wanted.where(series.c.model.like(pattern, escape="\\"))
    if filter_.device is not None:
        wanted = wanted.where(series.c.device == filter_.device)
    if filter_.label is not None:
        labelled = sa.select(schema.labels.c.run).where(schema.labels.c.label == filter_.label)
        wanted = wanted.where(cases.c.run.in_(labelled))
    for column, value in ((cases.c.backend, filter_.backend), (cases.c.version, filter_.version)):
        if value is not None:
            wanted = wanted.where(column == value)
    if filter_.since is not None:
        wanted = wanted.where(cases.c.created >= filter_.since)
    return wanted.where(cases.c.latency_ns.is_not(None)) if filter_.measured else wanted


def _newest(wanted: _Select, most: int | None) -> _Select:
    cases = schema.cases
    ordered = wanted.order_by(cases.c.created.desc(), cases.c.run.desc(), cases.c.number.desc())
    return ordered if most is None else ordered.limit(most)


def _points(connection: sa.Connection, wanted: _Select) -> list[Point]:
    found = [_point(detail) for detail in connection.execute(wanted).scalars()]
    return _with_labels(connection, found[::-1])


def _with_labels(connection: sa.Connection, found: list[Point]) -> list[Point]:
    of_run: dict[str, list[str]] = {}
    for part in _parts(sorted({point.run for point in found})):
        wanted = sa.select(schema.labels).where(schema.labels.c.run.in_(part)).order_by(schema.labels.c.label)
        for row in connection.execute(wanted):
            of_run.setdefault(row.run, []).append(row.label)
    return [msgspec.structs.replace(point, labels=of_run.get(point.run, [])) for point in found]


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


def _point(detail: str) -> Point:
    return msgspec.json.decode(detail, type=Point)


def _run_columns() -> list[sa.ColumnElement[object]]:
    return [schema.runs.c[name] for name in RunRow.__struct_fields__]


def _run_row(row: sa.RowMapping) -> RunRow:
    return RunRow(**row)
