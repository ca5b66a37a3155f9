"""Histories that cannot be written, read or understood: every command says so and ends with 2, and nothing is lost."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from harness.errors import StoreError
from harness.history import database, keeping, queries, schema
from harness.history.database import Database
from harness.history.location import Location
from harness.history.store import History
from harness.store import RunFolder, load_run
from tests.example_history import a_run
from tests.history.conftest import Harness, put_run
from tests.support import RUN_CLI

READING = [
    "history",
    "trends",
    "diff last~1 last",
    "check last --against last~1 --no-remeasure",
    "baseline show",
    "history export last --to out",
]
WRITING = [
    "baseline set last",
    "import results/new",
    "sync",
    "history label last best",
    "history keep 1",
    "history remove last",
]
DROP_BOUNDING, OVERRIDE, SEARCH = 24, 1, 2
"""Of prctl(2) and capabilities(7)."""


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history of two runs."""
    path = tmp_path_factory.mktemp("two") / "history.sqlite"
    history = History(Location(path=path), create=True)
    for day in (1, 2):
        history.add(a_run(f"run-{day}", created=f"2026-03-0{day}T00:00:00Z", launches=2, rounds=2, seed=day))
    return path


@pytest.fixture
def location(harness: Harness, two_runs: Path) -> Location:
    """Return a copy of it, with a run on disk and one that waits to be sent."""
    path = Path(os.environ["HARNESS_STORE"])
    shutil.copy(two_runs, path)
    put_run(a_run("new", launches=2, rounds=2))
    found = Location(path=path)
    keeping.wait(a_run("waiting", launches=2, rounds=2), found)
    return found


def content(location: Location) -> list[Any]:
    with Database(location).read() as connection:
        return [
            queries.points(connection, queries.Filter()),
            queries.baselines(connection),
            *(connection.execute(sa.select(table)).all() for table in (schema.policies, schema.samples)),
        ]


@contextmanager
def locked(location: Location) -> Iterator[None]:
    """Hold the lock of a writer."""
    holder = sqlite3.connect(str(location.path), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.close()


@contextmanager
def full(location: Location) -> Iterator[None]:
    """Let the file grow by no page: to SQLite that is a full disk."""
    with sqlite3.connect(str(location.path)) as connection:
        connection.execute("CREATE TABLE filler (x)")  # labels and baselines would find room in what is there
        connection.execute("INSERT INTO filler VALUES (zeroblob(10000))")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()

    def limit(made: sqlite3.Connection, _: object) -> None:
        made.execute(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(sa.Pool, "connect", limit)
    try:
        yield
    finally:
        sa.event.remove(sa.Pool, "connect", limit)


@contextmanager
def newer(location: Location) -> Iterator[None]:
    """Make it one of a later harness."""
    state(location, "9999")
    yield
    state(location, schema.REVISION)


def state(location: Location, revision: str) -> None:
    with sqlite3.connect(str(location.path)) as connection:
        connection.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'")
    connection.close()


Fault = Callable[[Location], Any]


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize(("fault", "said"), [(locked, "is locked: another process"), (newer, "by a newer")])
def test_writing(
    fault: Fault, said: str, command: str, location: Location, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    refused(fault, said, command, location, harness)


@pytest.mark.parametrize("command", ["import results/new", "sync"])
def test_writing_on_a_full_disk(command: str, location: Location, harness: Harness) -> None:
    refused(full, "is as it was: the disk is full", command, location, harness)


def refused(fault: Fault, said: str, command: str, location: Location, harness: Harness) -> None:
    with fault(location):
        before = content(location) if fault is not newer else None
        done = harness(*command.split())
        assert done.returncode == 2, done.stdout
        assert said in done.stderr and done.stderr.count("error: ") == 1
        assert "hint: " in done.stderr and "Traceback" not in done.stderr
    if before is not None:
        assert content(location) == before
    assert {point.run for point in content(location)[0]} == {"run-1", "run-2"}
    assert load_run(RunFolder(Path("results/new"))).id == "new"
    assert [folder.path.name for folder in keeping.waiting(location)] == ["waiting"]
    done = harness(*command.split())
    assert done.returncode == 0, "once the fault is gone it works"


@pytest.mark.parametrize("command", READING)
def test_reading(command: str, location: Location, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    with newer(location):
        done = harness(*command.split())
        assert (done.returncode, done.stdout) == (2, "")
        assert "was written by a newer harness: its schema is 9999" in done.stderr and "update harness" in done.stderr
        assert not Path("out").exists()
    with ExitStack() as stack:
        for fault in (full, locked):
            stack.enter_context(fault(location))
        done = harness(*command.split())
        assert done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize("fault", [locked, full, newer])
def test_finished_comparison_is_not_lost(
    fault: Fault, location: Location, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    folder = RunFolder(Path("results/new"))
    with fault(location):
        keeping.keep(load_run(folder), folder, location)
    told = capsys.readouterr().err
    assert told.startswith("warning: the run is not in the history: ")
    assert "  later: harness import results/new\n" in told
    History(location).add(load_run(folder))
    assert "new" in {point.run for point in content(location)[0]}


def test_what_may_only_be_read_is_read(location: Location, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    kept = folder / "history.sqlite"
    assert location.path is not None
    shutil.copy(location.path, kept)
    kept.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert as_a_user("history", "--store", str(kept)).returncode == 0
        for command in ("baseline set last", "import results/new"):
            done = as_a_user(*command.split(), "--store", str(kept))
            assert (done.returncode, done.stdout) == (2, "")
            assert "cannot be written" in done.stderr and "--store PATH names another" in done.stderr
    finally:
        folder.chmod(0o755)
    assert os.listdir(folder) == ["history.sqlite"]


def as_a_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command without the right of root to write anywhere."""

    def give_up() -> None:
        for capability in (OVERRIDE, SEARCH):
            ctypes.CDLL(None).prctl(DROP_BOUNDING, capability, 0, 0, 0)

    command = [sys.executable, str(RUN_CLI), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=give_up)


def test_words_of_a_read_only_database(location: Location) -> None:
    def refuse(made: sqlite3.Connection, _: object) -> None:
        made.execute("PRAGMA query_only = ON")

    sa.event.listen(sa.Pool, "connect", refuse)
    try:
        with pytest.raises(StoreError, match="can be read only: its file or folder cannot be written"):
            History(location).label("run-1", ["best"])
        assert len(content(location)[0]) == 4
    finally:
        sa.event.remove(sa.Pool, "connect", refuse)
