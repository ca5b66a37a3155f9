"""What a user means by one side of a comparison: a run, a label, or a version of a backend."""

from __future__ import annotations

from pathlib import Path

import msgspec
import sqlalchemy as sa

from harness import registry
from harness.errors import StoreError, UsageError
from harness.history import queries
from harness.history.asked import Asked, asked_of
from harness.history.diff import RUNS_AT_MOST, Side
from harness.history.location import Location, locate
from harness.history.points import Point
from harness.history.store import PRUNED, History
from harness.records import Run
from harness.store import RUN_FILE, RunFolder, load_run

AT = "@"
NEWEST = 2000
"""Cases of a label or a version that are looked at: enough for the newest runs of some hundred series."""


class Sides:
    """Finds sides, in run files and in the history; the history is opened only where it is needed."""

    def __init__(self, store: str | None) -> None:
        self._store = store
        self._history: History | None = None

    @property
    def history(self) -> History:
        """Return the history.

        Raises:
            UsageError: The user switched it off.
            StoreError: It is not there, or cannot be used.
        """
        if self._history is None:
            location = locate(self._store)
            if location is None:
                raise UsageError(
                    "there is no history: the store is switched off with 'none'",
                    hint="give --store PATH or URL, or run files",
                )
            self._history = History(location)
        return self._history

    @property
    def location(self) -> Location:
        """Return where the history is."""
        return self.history.database.location

    def side(self, name: str, *, as_stored: bool = False) -> Side:
        """Return what a name stands for, its figures computed from raw samples wherever these are kept.

        Args:
            as_stored: Take the figures that were computed when a run was stored: of many runs in no time.

        Raises:
            UsageError: Nothing answers to the name.
            StoreError: A run file is damaged, or several runs begin with the name.
        """
        folder = _run_folder(name)
        if folder is not None:
            return of_run(name, load_run(folder))
        with self.history.database.read() as connection:
            stored = self._stored(connection, name)
        return Side(name=name, points=stored) if as_stored else self._recomputed(name, stored)

    def asked(self, name: str, run: str) -> Asked | None:
        """Return what a run was asked for, that `name` stands for; None where its record can no longer be read."""
        folder = _run_folder(name)
        try:
            return asked_of(load_run(folder) if folder is not None else self.history.outline(run))
        except StoreError:  # of another version of harness: its figures are there all the same
            return None

    def _stored(self, connection: sa.Connection, name: str) -> list[Point]:
        backend, at, version = name.partition(AT)
        if at:
            found = queries.points(connection, queries.Filter(backend=backend, version=version), NEWEST)
            if not found:
                raise _no_version(backend, version, queries.versions(connection, backend))
            return found
        run = queries.find_run(connection, name)
        if run is not None:
            return queries.points_of_run(connection, run.id)
        found = queries.points(connection, queries.Filter(label=name), NEWEST)
        if not found:
            raise self._unknown(connection, name)
        return found

    def _unknown(self, connection: sa.Connection, name: str) -> UsageError:
        newest = ", ".join(run.id for run in queries.newest_runs(connection, 3)) or "none"
        labels = ", ".join(queries.labels(connection)) or "none"
        return UsageError(
            f"'{name}' is neither a run, nor a label, nor BACKEND@VERSION in {self.location.shown}",
            hint=f"newest runs: {newest}; or: last, last~1; labels: {labels}",
        )

    def _recomputed(self, name: str, stored: list[Point]) -> Side:
        """Return the side with what its raw samples say today: statistics may have become better since."""
        runs = list(dict.fromkeys(point.run for point in stored))[-RUNS_AT_MOST * 5 :]
        fresh: dict[tuple[str, str, str], Point] = {}
        notes = []
        for run in runs:
            try:
                loaded = self.history.load(run)
            except StoreError as exc:
                notes.append(f"{exc.message}: its figures are those that were kept then")
                continue
            if PRUNED in loaded.notes:
                notes.append(f"raw samples of {run} are gone by the policy of the history: its figures were kept")
                continue
            fresh |= {(run, point.workload, point.case): point for point in of_run(name, loaded).points}
        points = [
            msgspec.structs.replace(fresh.get((point.run, point.workload, point.case), point), labels=point.labels)
            for point in stored
            if point.run in runs
        ]
        return Side(name=name, points=points, notes=notes, of_version=AT in name)


def of_run(name: str, run: Run) -> Side:
    """Return a side that is one run."""
    from harness.history.deriving import points_of

    return Side(name=name, points=points_of(run))


def _run_folder(name: str) -> RunFolder | None:
    path = Path(name)
    if path.name == RUN_FILE and path.is_file():
        return RunFolder(path.parent)
    return RunFolder(path) if (path / RUN_FILE).is_file() else None


def _no_version(backend: str, version: str, known: list[str]) -> UsageError:
    if backend not in registry.backend_names() and not known:
        return registry.unknown("backend", backend, registry.backend_names())
    if not known:
        return UsageError(f"no run of {backend} is in the history", hint=f"harness compare --backends {backend}")
    error = registry.unknown(f"version of {backend} in the history", version, known)
    return UsageError(error.message)
