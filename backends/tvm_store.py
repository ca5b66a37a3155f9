"""A tuning database in a folder: resumable, safe against kills, used by one process at a time.

Its files: MetaSchedule's workloads and records, one JSON value a line, and the ledger of what was spent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

LEDGER = "ledger.json"
RECORDS = "database_tuning_record.json"
WORKLOADS = "database_workload.json"
TRUSTED = "tuner-works.txt"
DEFAULTS = "defaults"
"""Folder of a second database: how long kernels take on the schedules that they have without tuning."""


class Ledger(msgspec.Struct, kw_only=True):
    """What was spent on a database so far, over all compiles."""

    seconds: float = 0.0
    trials: int = 0
    failed_trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be spent on a database in all, earlier compiles included."""

    seconds: float
    trials: int | None = None

    def exhausted_by(self, ledger: Ledger) -> bool:
        """Say whether nothing is left to spend."""
        return ledger.seconds >= self.seconds or (self.trials is not None and ledger.trials >= self.trials)


class Store:
    """The database and its ledger. Use `open_store()`, which holds the lock.

    A record is on disk when `add()` returns; `save_ledger()` follows every step of the tuner. A kill
    between the two leaves records that the ledger does not count, never the other way round.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        repair(folder)
        repair(folder / DEFAULTS)
        self.ledger = _read_ledger(folder)

    @cached_property
    def database(self) -> Any:
        """Return MetaSchedule's database. Opened on first use: with broken libraries that is a segfault."""
        from tvm.s_tir import meta_schedule as ms

        return ms.database.JSONDatabase(work_dir=str(self._folder))

    @cached_property
    def defaults(self) -> Any:
        """Return the database of default schedules. It is apart, so that no search takes them for its own."""
        from tvm.s_tir import meta_schedule as ms

        (self._folder / DEFAULTS).mkdir(exist_ok=True)
        return ms.database.JSONDatabase(work_dir=str(self._folder / DEFAULTS))

    @property
    def trusted(self) -> bool:
        """Say whether a child process has tried the tuner with the libraries installed now."""
        path = self._folder / TRUSTED
        return path.exists() and path.read_text() == _libraries()

    def trust(self) -> None:
        """Note that the tuner works with the libraries installed now."""
        _replace(self._folder / TRUSTED, _libraries().encode())

    def __len__(self) -> int:
        return len(self.database)

    def records(self, module: Any) -> list[Any]:
        """Return all records of a kernel."""
        return list(self.database.get_top_k(self.database.commit_workload(module), 1 << 20))

    def default(self, module: Any) -> Any:
        """Return the record of a kernel on its default schedule, or None."""
        found = self.defaults.get_top_k(self.defaults.commit_workload(module), 1)
        return found[0] if found else None

    def save_ledger(self) -> None:
        """Write the ledger so that a kill at any time leaves the old one or the new one."""
        _replace(self._folder / LEDGER, msgspec.json.encode(self.ledger))


@contextmanager
def open_store(folder: Path, waiting: Callable[[], None]) -> Iterator[Store]:
    """Open a database for this process alone; `waiting` is called when another process holds it."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield Store(folder)
    finally:
        lock.release()


def repair(folder: Path) -> None:
    """Drop what a kill left half-written, so that the database opens.

    Records name their workload by line number: the workload table is cut at its first damaged line, and
    records that point beyond it go too.
    """
    workloads: list[bytes] = []
    for line in _lines(folder / WORKLOADS):
        if _parsed(line) is None:
            break
        workloads.append(line)
    records = [line for line in _lines(folder / RECORDS) if _names_workload(_parsed(line), len(workloads))]
    for name, kept in ((WORKLOADS, workloads), (RECORDS, records)):
        path = folder / name
        text = b"".join(line + b"\n" for line in kept)
        if path.exists() and path.read_bytes() != text:
            _replace(path, text)


def mean(values: Any) -> float:
    """Return the mean of TVM's array of floats."""
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)


def _names_workload(record: object, workloads: int) -> bool:
    if not isinstance(record, list) or len(record) != 2:
        return False
    return isinstance(record[0], int) and 0 <= record[0] < workloads


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _libraries() -> str:
    return "".join(f"{name} {version(name)}\n" for name in ("apache-tvm", "apache-tvm-ffi"))


def _read_ledger(folder: Path) -> Ledger:
    try:
        return msgspec.json.decode((folder / LEDGER).read_bytes(), type=Ledger)
    except (OSError, msgspec.DecodeError):
        return Ledger()


def _replace(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
