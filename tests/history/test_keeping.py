"""A run on its way into the history: from a real comparison, and from a process that is killed in the middle."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa

import harness.history.deriving
from harness.errors import StoreError
from harness.history import queries
from harness.history.location import Location
from harness.history.store import History
from harness.records import Run
from tests.example_history import a_run
from tests.support import Cli

IMPORTED_ONCE = (alembic.command, harness.history.deriving)
"""Here, for all the processes that are forked from one that has imported this module."""
QUICK = ["compare", "--model", "tiny", "--backends", "fake-ok", "--quick"]
KILLS = 50
KILLS_OF_A_CLIENT = 20
"""A server goes on living: less can go wrong."""
FRESH = 10
"""How many of them meet a history that is not there yet."""
RUNS = 4


# ---- from a comparison


@pytest.mark.usefixtures("tiny")
def test_comparison_is_kept_with_its_label_and_commit(cli: Cli, tmp_path: Path) -> None:
    for command in ("init -q -b trunk", "config user.email a@b", "config user.name n", "commit -q --allow-empty -m x"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True, timeout=60)
    done = cli(*QUICK, "--store", "h.sqlite", "--label", "v1", "--label", "best")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    history = History(Location(path=tmp_path / "h.sqlite"))
    with history.database.read() as connection:
        (point,) = queries.points(connection, queries.Filter())
    run = history.load(point.run)
    assert run.project is not None
    assert (run.project.branch, run.project.dirty, len(run.project.commit)) == ("trunk", False, 40)
    assert run.state == "finished"
    assert point.labels == ["best", "v1"]
    assert point.latency_ns is not None and point.circumstances.commit == run.project.commit[:12]
    # A run that goes on is the same run.
    more = cli("compare", "--resume", "last", "--launches", "2", "--store", "h.sqlite", "--label", "longer")
    assert more.returncode == 0, more.stderr
    again = history.load(point.run)
    assert (len(again.workloads[0].launches), again.labels) == (2, ["best", "longer", "v1"])


@pytest.mark.usefixtures("tiny")
def test_store_that_cannot_be_written_costs_a_warning_and_no_result(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine, and longer than the header of a database would ever be: " * 4)
    done = cli(*QUICK, "--json", environment={"HARNESS_STORE": "file"})
    assert done.returncode == 0, done.stderr
    assert '"fake-ok"' in done.stdout
    (run,) = (tmp_path / "results").iterdir()
    assert "warning: the run is not in the history: " in done.stderr
    assert f"later: harness import results/{run.name}" in done.stderr


def test_place_that_cannot_be_is_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    done = cli(*QUICK, "--store", "mysql://h/db")
    assert done.returncode == 2
    assert "'mysql' is no kind of database" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- killed


def test_killed_at_random_points_nothing_is_half_written_and_nothing_finished_is_lost(location: Location) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance = random.Random(7)
    cut_off = 0
    kills = KILLS if location.path is not None else KILLS_OF_A_CLIENT
    for kill in range(kills):
        if kill < FRESH:
            forget_everything(location)
        mine, theirs = context.Pipe(duplex=False)
        # Half of them before a statement, half of them whenever it happens: inside of one, or of a commit.
        statement = chance.randint(1, 70) if kill % 2 else None
        child = context.Process(target=_store, args=(location, kill, statement, theirs))
        child.start()
        theirs.close()
        finished = reports(mine, None if statement else chance.uniform(0.0, 0.15), child.pid)
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        cut_off += child.exitcode != 0
        check(location, kill, finished)
    assert cut_off >= kills // 3, "most were killed in the middle"


def forget_everything(location: Location) -> None:
    if location.path is not None:
        for path in location.path.parent.glob("*"):
            path.unlink()
        return
    with sa.create_engine(location.url).begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))


def reports(pipe: Connection, kill_after_s: float | None, pid: int | None) -> list[str]:
    """Return the runs that the process reported as finished, until its end; kill it some time after its start."""
    finished: list[str] = []
    assert pipe.recv() == "started"
    if kill_after_s is not None and pid is not None:
        time.sleep(kill_after_s)
        with contextlib.suppress(ProcessLookupError):  # a quick machine has finished by then
            os.kill(pid, signal.SIGKILL)
    while True:
        try:
            finished.append(pipe.recv())
        except EOFError:
            return finished


def check(location: Location, kill: int, finished: list[str]) -> None:
    try:
        history = History(location)
    except StoreError as exc:
        assert "there is no history" in str(exc)  # killed before it was made
        assert not finished
        return
    with history.database.read() as connection:
        kept = {row.id for row in queries.newest_runs(connection, 1000)}
        points = queries.points(connection, queries.Filter())
    assert set(finished) <= kept
    for index in range(RUNS):
        name = f"run-{kill}-{index}"
        of_run = [point for point in points if point.run == name]
        assert len(of_run) == (2 if name in kept else 0)
        if name in kept:
            assert history.load(name) == _run(kill, index)


def _run(kill: int, index: int) -> Run:
    return a_run(f"run-{kill}-{index}", seed=kill, model=f"model{index}", launches=2, rounds=2, labels=["x"])


def _store(location: Location, kill: int, statement: int | None, pipe: Connection) -> None:
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    pipe.send("started")
    history = History(location, create=True)
    for index in range(RUNS):
        history.add(_run(kill, index))
        pipe.send(f"run-{kill}-{index}")
