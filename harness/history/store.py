"""Runs in and out of the history: added whole or not at all, labelled, held against, thinned out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from harness.errors import StoreError
from harness.history import schema
from harness.history.database import Database
from harness.history.location import Location
from harness.history.points import Point, sortable
from harness.records import Launch, Run
from harness.store import decode_run, now_utc

KEEP_SAMPLES = "keep samples for days"
PRUNED = "its raw samples were removed from the history: what it shows of latency is gone"

Added = Literal["added", "updated", "unchanged"]


class History:
    """What is in one database. Every method is one short transaction."""

    def __init__(self, location: Location, *, create: bool = False) -> None:
        """Open it; see `Database`."""
        self.database = Database(location, create=create)

    # ---- runs

    def add(self, run: Run) -> Added:
        """Keep a run, all of it or nothing.

        A run that is there already is replaced where this is a later state of it, as after `--resume`; its labels
        stay.

        Raises:
            StoreError: The database cannot be written. It is as it was before.
        """
        # Here, since it brings scipy.stats: reading a history needs none of it.
        from harness.history.deriving import points_of

        points = points_of(run)
        bare = [msgspec.structs.replace(workload, launches=[]) for workload in run.workloads]
        document = _packed(msgspec.json.encode(msgspec.structs.replace(run, workloads=bare)))
        samples = [_packed(msgspec.json.encode(workload.launches)) for workload in run.workloads]
        with self.database.write() as connection:
            self._alone_with(connection, run.id)
            known = connection.execute(sa.select(schema.runs.c.wall_s).where(schema.runs.c.id == run.id)).scalar()
            if known is not None and known >= run.wall_s:
                self._put_labels(connection, run.id, run.labels)
                return "unchanged"
            if known is not None:
                for table in (schema.cases, schema.documents, schema.samples):
                    connection.execute(sa.delete(table).where(table.c.run == run.id))
                connection.execute(sa.update(schema.runs).where(schema.runs.c.id == run.id).values(_row(run)))
            else:
                connection.execute(sa.insert(schema.runs).values(id=run.id, **_row(run)))
            self._put_points(connection, points)
            connection.execute(sa.insert(schema.documents).values(run=run.id, data=document))
            for number, data in enumerate(samples):
                connection.execute(sa.insert(schema.samples).values(run=run.id, workload=number, data=data))
            self._put_labels(connection, run.id, run.labels)
            days = self._policy(connection)
            if days is not None:
                self._thin_out(connection, days)
        return "updated" if known is not None else "added"

    def load(self, run: str) -> Run:
        """Return a run as its file has it. Where its samples were removed it says so in its notes.

        Raises:
            StoreError: It is not there, or its file is of another version of harness.
        """
        with self.database.read() as connection:
            found = self._document(connection, run)
            rows = connection.execute(
                sa.select(schema.samples.c.workload, schema.samples.c.data).where(schema.samples.c.run == run)
            ).all()
            labels = self._labels(connection, run)
        with self._telling_of_damage(run):
            launches = {row.workload: _launches(row.data) for row in rows if row.data}
        workloads = [
            msgspec.structs.replace(workload, launches=launches.get(number, []))
            for number, workload in enumerate(found.workloads)
        ]
        notes = [*found.notes, *([PRUNED] if any(not row.data for row in rows) else [])]
        return msgspec.structs.replace(found, workloads=workloads, notes=notes, labels=labels)

    def outline(self, run: str) -> Run:
        """Return a run without its launches: what was asked for and what became of it, however much was measured.

        Raises:
            StoreError: As `load()`.
        """
        with self.database.read() as connection:
            return self._document(connection, run)

    def remove(self, run: str) -> None:
        """Forget a run, and that it is a baseline of anything."""
        with self.database.write() as connection:
            connection.execute(sa.delete(schema.runs).where(schema.runs.c.id == run))

    # ---- labels and baselines

    def label(self, run: str, labels: Iterable[str], *, remove: bool = False) -> None:
        """Give a run labels, or take them away."""
        with self.database.write() as connection:
            if remove:
                of_run = schema.labels.c.run == run
                connection.execute(sa.delete(schema.labels).where(of_run, schema.labels.c.label.in_(list(labels))))
            else:
                self._put_labels(connection, run, labels)

    def set_baseline(self, points: Iterable[Point]) -> None:
        """Make each of these cases what its series is held against."""
        now = now_utc()
        with self.database.write() as connection:
            for point in sorted(points, key=lambda each: each.series):
                of_series = schema.baselines.c.series == point.series
                connection.execute(sa.delete(schema.baselines).where(of_series))
                connection.execute(sa.insert(schema.baselines).values(series=point.series, run=point.run, set_at=now))

    def clear_baselines(self, series: Iterable[str]) -> int:
        """Hold these series against nothing any more; return how many were held."""
        with self.database.write() as connection:
            of_series = schema.baselines.c.series.in_(list(series))
            return connection.execute(sa.delete(schema.baselines).where(of_series)).rowcount

    # ---- what is kept

    def keep_samples(self, days: int | None) -> int:
        """Set for how many days raw samples are kept, None for good; return how many runs lost theirs now.

        Samples of baselines and of labelled runs are kept in any case. Figures are never removed.
        """
        with self.database.write() as connection:
            connection.execute(sa.delete(schema.policies).where(schema.policies.c.name == KEEP_SAMPLES))
            if days is None:
                return 0
            connection.execute(sa.insert(schema.policies).values(name=KEEP_SAMPLES, value=str(days)))
            return self._thin_out(connection, days)

    def kept_samples(self) -> int | None:
        """Return for how many days raw samples are kept; None: for good."""
        with self.database.read() as connection:
            return self._policy(connection)

    # ---- within a transaction

    def _alone_with(self, connection: sa.Connection, run: str) -> None:
        # SQLite has one writer at a time anyway. Two writers of one run would otherwise meet at its first row.
        if connection.dialect.name == "postgresql":
            number = int.from_bytes(hashlib.sha256(run.encode()).digest()[:8], "big", signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    def _document(self, connection: sa.Connection, run: str) -> Run:
        content = connection.execute(sa.select(schema.documents.c.data).where(schema.documents.c.run == run)).scalar()
        if content is None:
            raise StoreError(f"there is no {self._called(run)}")
        with self._telling_of_damage(run):
            return decode_run(zlib.decompress(content), self._called(run))

    def _called(self, run: str) -> str:
        return f"run {run} in {self.database.location.shown}"

    @contextmanager
    def _telling_of_damage(self, run: str) -> Iterator[None]:
        try:
            yield
        except (msgspec.DecodeError, zlib.error) as exc:
            raise StoreError(
                f"{self._called(run)} is damaged: {exc}", hint="harness import RUN brings it back from its file"
            ) from exc

    @staticmethod
    def _put_points(connection: sa.Connection, points: list[Point]) -> None:
        if not points:
            return
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        series = {
            point.series: {
                "id": point.series,
                "model": point.key.model,
                "backend": point.key.backend,
                "device": point.key.device,
            }
            for point in points
        }
        # In one order, so that two writers of the same new series cannot wait for each other.
        rows = [series[name] for name in sorted(series)]
        connection.execute(insert(schema.series).on_conflict_do_nothing(), rows)
        connection.execute(
            sa.insert(schema.cases),
            [
                {
                    "run": point.run,
                    "number": number,
                    "series": point.series,
                    "created": point.created,
                    "backend": point.key.backend,
                    "version": point.circumstances.version,
                    "status": point.status,
                    "latency_ns": point.latency_ns,
                    "detail": msgspec.json.encode(point).decode(),
                }
                for number, point in enumerate(points)
            ],
        )

    @staticmethod
    def _put_labels(connection: sa.Connection, run: str, labels: Iterable[str]) -> None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        if rows := [{"run": run, "label": label} for label in dict.fromkeys(labels)]:
            connection.execute(insert(schema.labels).on_conflict_do_nothing(), rows)

    @staticmethod
    def _labels(connection: sa.Connection, run: str) -> list[str]:
        of_run = schema.labels.c.run == run
        return list(connection.execute(sa.select(schema.labels.c.label).where(of_run).order_by("label")).scalars())

    @staticmethod
    def _policy(connection: sa.Connection) -> int | None:
        of_samples = schema.policies.c.name == KEEP_SAMPLES
        value = connection.execute(sa.select(schema.policies.c.value).where(of_samples)).scalar()
        return int(value) if value is not None else None

    @staticmethod
    def _thin_out(connection: sa.Connection, days: int) -> int:
        before = sortable((datetime.now(timezone.utc) - timedelta(days=days)).isoformat(timespec="seconds"))
        old = (
            sa.select(schema.runs.c.id)
            .where(schema.runs.c.created < before)
            .where(schema.runs.c.id.not_in(sa.select(schema.baselines.c.run)))
            .where(schema.runs.c.id.not_in(sa.select(schema.labels.c.run)))
        )
        full = sa.select(schema.samples.c.run).where(schema.samples.c.run.in_(old), schema.samples.c.data != b"")
        runs = set(connection.execute(full).scalars())
        # Emptied, not deleted: that there were samples once is worth knowing.
        emptied = sa.update(schema.samples).where(schema.samples.c.run.in_(old), schema.samples.c.data != b"")
        connection.execute(emptied.values(data=b""))
        return len(runs)


def _row(run: Run) -> dict[str, object]:
    project = run.project
    return {
        "created": sortable(run.created),
        "state": run.state,
        "harness": run.harness,
        "command": run.command,
        "hostname": run.environment.hostname,
        "commit": project.commit if project else "",
        "branch": project.branch or "" if project else "",
        "wall_s": run.wall_s,
    }


def _packed(content: bytes) -> bytes:
    return zlib.compress(content, 6)


def _launches(data: bytes) -> list[Launch]:
    return msgspec.json.decode(zlib.decompress(data), type=list[Launch])
