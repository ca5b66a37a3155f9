"""A connection to the history's database: opened, brought up to date, and what goes wrong with it in plain words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import NullPool

from harness.errors import StoreError
from harness.history.location import Location
from harness.history.schema import REVISION, VERSION_TABLE
from harness.paths import make_folder

BUSY_S = 30.0
"""How long a writer waits for another: a transaction takes milliseconds, on a slow disk perhaps a second."""
CONNECT_S = 5
"""How long a server may take to answer before its runs wait here for `harness sync`."""
MIGRATIONS = Path(__file__).parent / "migrations"
ELSEWHERE = "--store PATH names another, --store none does without"
_ONE_MIGRATION_AT_A_TIME = 0x68_61_72_6E  # any number that no other program locks


class UnreachableError(StoreError):
    """The server does not answer: a run can wait for it here."""


class Database:
    """One history's database. Every transaction has a connection of its own and is short."""

    def __init__(self, location: Location, *, create: bool = False) -> None:
        """Open it and bring its tables up to date; with `create` make it where there is none.

        Raises:
            UnreachableError: A server does not answer.
            StoreError: It is not there, cannot be read or written, is something else, or is of a newer harness.
        """
        self.location = location
        self._create = create
        self._frozen = False
        if location.path is not None and create:
            make_folder(location.path.parent, "the folder of the history", hint=ELSEWHERE)
        elif location.path is not None and not location.path.exists():
            raise _no_history(location)
        self._engine = self._connected()
        with self._translated():
            self._bring_up_to_date()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that only reads: it sees one state, whoever writes meanwhile."""
        with self._translated(), self._engine.connect() as connection:
            if self.location.path is not None:
                connection.exec_driver_sql("BEGIN")
            yield connection
            connection.rollback()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that is kept whole or not at all."""
        with self._translated(), self._engine.connect() as connection:
            if self.location.path is not None:
                # The lock at once: a reader that becomes a writer could not wait for another one.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def _connected(self) -> sa.Engine:
        path = self.location.path
        if path is None:
            return sa.create_engine(self.location.url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_S})

        def connect() -> sqlite3.Connection:
            mode = "mode=ro&immutable=1" if self._frozen else "mode=rwc" if self._create else "mode=rw"
            made = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_S, isolation_level=None)
            made.execute("PRAGMA foreign_keys = ON")
            return made

        return sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)

    # ---- the schema

    def _bring_up_to_date(self) -> None:
        found = self._revision()
        if found == REVISION:
            return
        if found is None and not self._create:
            raise _no_history(self.location)
        if self.location.path is None:
            with self.write() as connection:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ONE_MIGRATION_AT_A_TIME)))
                self._migrate(connection)
            return
        try:
            with FileLock(self.location.path.with_name(f".{self.location.path.name}.lock"), timeout=BUSY_S):
                if found is None:
                    self._make_concurrent()
                with self.write() as connection:
                    self._migrate(connection)
        except Timeout as exc:
            raise _busy(self.location) from exc

    def _revision(self) -> str | None:
        try:
            with self._engine.connect() as connection:
                return self._stated(connection)
        except sa_exc.OperationalError as exc:
            # In a folder that cannot be written there is no place for the file that readers and writers share. Such
            # a history can be read all the same while nobody writes to it.
            no_room = any(words in str(exc.orig) for words in ("unable to open", "readonly"))
            if self.location.path is None or self._has_journal() or not no_room:
                raise
            self._frozen = True
        with self._engine.connect() as connection:
            return self._stated(connection)

    def _has_journal(self) -> bool:
        path = self.location.path
        return path is not None and path.with_name(f"{path.name}-wal").exists()

    def _stated(self, connection: sa.Connection) -> str | None:
        tables = sa.inspect(connection).get_table_names()
        if VERSION_TABLE in tables:
            found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
            return str(found) if found is not None else None
        if tables and self.location.path is not None:
            raise StoreError(f"{self.location.shown} is a database of something else", hint=ELSEWHERE)
        return None

    def _make_concurrent(self) -> None:
        # Kept in the file. Readers then see the last state while one process writes. Where the file system cannot
        # do that, SQLite stays with its older way, in which they wait.
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    def _migrate(self, connection: sa.Connection) -> None:
        found = self._stated(connection)  # another process may have been quicker
        if found == REVISION:
            return
        if found is not None:
            _require_known(found, self.location)
        from alembic import command

        command.upgrade(_alembic(connection), "head")

    # ---- errors

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa_exc.DBAPIError as exc:
            raise _explained(exc, self.location) from exc
        except sqlite3.Error as exc:
            raise _explained(exc, self.location) from exc


def _alembic(connection: sa.Connection | None) -> Any:  # alembic.config.Config, imported where it is needed only
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _require_known(found: str, location: Location) -> None:
    from alembic.script import ScriptDirectory

    known = {step.revision for step in ScriptDirectory.from_config(_alembic(None)).walk_revisions()}
    if found not in known:
        raise StoreError(
            f"the history {location.shown} was written by a newer harness: its schema is {found}, and this one "
            f"knows {REVISION}",
            hint="update harness, or keep this one's runs elsewhere with --store PATH",
        )


def _explained(exc: sa_exc.DBAPIError | sqlite3.Error, location: Location) -> StoreError:
    """Return the error as a person understands it."""
    cause = exc.orig if isinstance(exc, sa_exc.DBAPIError) else exc
    said = " ".join(str(cause).split())
    where = f"the history {location.shown}"
    if location.path is None:
        lost = isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated
        if lost or isinstance(exc, sa_exc.OperationalError):
            return UnreachableError(f"{where} cannot be reached: {said}", hint="check the address and the server")
        return StoreError(f"{where} refuses: {said}", hint="the user needs the right to make and change tables")
    if "locked" in said or "busy" in said:
        return _busy(location)
    if "readonly" in said:
        return StoreError(
            f"{where} can be read only: its file or folder cannot be written",
            hint=f"give yourself the right to write there; {ELSEWHERE}",
        )
    if "disk is full" in said:
        return StoreError(f"{where} is as it was: the disk is full", hint=f"free some disk space; {ELSEWHERE}")
    if "not a database" in said or "malformed" in said:
        return StoreError(
            f"{location.shown} is damaged or no history: {said}",
            hint="move it away; harness import RESULTS/* fills a new one from run files",
        )
    return StoreError(f"{where} cannot be used: {said}", hint=ELSEWHERE)


def _busy(location: Location) -> StoreError:
    return StoreError(
        f"the history {location.shown} is locked: another process kept it busy for {BUSY_S:.0f} s",
        hint="try again when it has ended",
    )


def _no_history(location: Location) -> StoreError:
    return StoreError(
        f"there is no history in {location.shown}",
        hint="harness compare begins one; harness import RUN adds older runs",
    )
