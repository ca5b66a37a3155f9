"""A history of its own for each test, on both kinds of database. PostgreSQL is a throwaway cluster of the test run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from harness.cli import main
from harness.history.location import Location, locate
from harness.records import Run
from harness.store import RunFolder

REQUIRED = "postgres" in os.environ.get("HARNESS_REQUIRE", "").split(",")


class Server:
    """A PostgreSQL cluster in a folder, reached through a socket in it."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        # PostgreSQL refuses to run as root.
        self._as: dict[str, str] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}

    def start(self) -> None:
        """Make the cluster where there is none, and start it."""
        if not (self._folder / "data").exists():
            if self._as:
                shutil.chown(self._folder, **self._as)
            self._run("initdb", "-D", "data", "-A", "trust", "-U", "harness", "--no-sync", "-E", "UTF8", "--no-locale")
        options = f"-c fsync=off -c listen_addresses='' -c unix_socket_directories='{self._folder}'"
        self._run("pg_ctl", "-D", "data", "-w", "-o", options, "-l", "log", "start")

    def stop(self) -> None:
        """End it, whoever is connected."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def database(self) -> Location:
        """Empty the database, and return where it is."""
        found = locate(f"postgresql://harness@/postgres?host={self._folder}")
        assert found is not None
        with psycopg.connect(f"postgresql://harness@/postgres?host={self._folder}") as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return found

    def _run(self, tool: str, *arguments: str) -> None:
        command = [str(self._binaries / tool), *arguments]
        # Not captured: the server inherits the pipes of the tool that starts it, and would keep them open.
        with (self._folder / "tools.log").open("ab") as log:
            done = subprocess.run(  # type: ignore[call-overload]
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120, **self._as
            )
        assert done.returncode == 0, (command, (self._folder / "tools.log").read_text())


@contextmanager
def cluster() -> Iterator[Server]:
    """Run a cluster for the length of a block; skip where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    if not found:
        reason = "PostgreSQL is not installed: apt-get install postgresql"
        if REQUIRED:
            pytest.fail(f"{reason} (HARNESS_REQUIRE names postgres)")
        pytest.skip(reason)
    # Below the system's own folder: pytest's is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="harness-pg-"))
    server = Server(found[-1].parent, folder)
    try:
        server.start()
        yield server
    finally:
        with suppress(AssertionError):  # a test stopped it
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One cluster for all tests that need one."""
    with cluster() as server:
        yield server


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Location:
    """Return a file that is not there yet, in a folder that is not there yet."""
    return Location(path=tmp_path / "kept" / "history.sqlite")


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest) -> Location:
    """Return an empty place, once of each kind."""
    if request.param == "sqlite":
        found: Location = request.getfixturevalue("sqlite_file")
        return found
    server: Server = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own data out of the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("HARNESS_STORE", raising=False)
    return tmp_path / "data" / "harness"


Harness = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """Run a command in this process, in a folder of its own, on a history of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "history.sqlite"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        told = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(arguments, left.value.code, told.out, told.err)

    return run


def put_run(run: Run, folder: Path = Path("results")) -> Path:
    """Write a run file as a comparison leaves it, below the working folder; return its folder."""
    (folder / run.id).mkdir(parents=True)
    RunFolder(folder / run.id).save(run)
    return folder / run.id
