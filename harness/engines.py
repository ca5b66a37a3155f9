"""Saved engines in the cache: one folder a run and case, found again by what they were built from.

<cache>/engines/<key>/<run id>/       engine files, and engine.json, written last
<cache>/engines/<run id>.lock         held while the run lives: its engines are not pruned
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from harness.errors import StoreError
from harness.paths import cache_root, make_folder, write_atomically
from harness.protocol import CaseSpec, Opened
from harness.records import Case, Record

FILES, MANIFEST = "engine", "manifest.json"


class Engine(Record, frozen=True, kw_only=True):
    """What is known of a saved engine: all that a case record takes from compiling it."""

    versions: dict[str, str]
    version: str | None
    hardware: str = ""
    """The GPU that it was built on and the driver; empty for the CPU, and for a target that need not be here."""
    stages: dict[str, float]
    opened: Opened
    engine_bytes: int | None
    peak_compile_bytes: int
    device_bytes: int = 0
    """Device memory of that worker after the second run; 0 where it takes none, or nobody can say."""
    resident_bytes: int
    """Memory of the worker that compiled it, after the second run: what measuring it will take at most."""
    created: str


def engines_root() -> Path:
    """Return the folder that holds all engines."""
    return cache_root() / "engines"


def backend_cache(backend: str, build: int = 0) -> Path:
    """Return the folder in which a backend keeps what makes a later compile warm.

    Independent builds have a folder each: from one tuning database or timing cache they would all come out the same.
    """
    folder = cache_root() / "backends" / backend
    return folder / f"build-{build}" if build else folder


class EngineStore:
    """The engines of one run. A context manager: while it is open, nobody prunes them."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._root = engines_root()
        self._lock: FileLock | None = None

    def __enter__(self) -> EngineStore:
        make_folder(self._root, "the cache folder")
        self._lock = FileLock(self._root / f"{self._run_id}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as exc:
            raise StoreError(f"run {self._run_id} is being measured by another process") from exc
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def folder(self, spec: CaseSpec, case_id: str, artifact_hash: str, machine: str) -> Path:
        """Return where a case's engine belongs. `machine` is what engines are specific to, such as the CPU."""
        parts = [artifact_hash, spec.backend, sorted(spec.options.items()), spec.device, spec.precision, spec.threads]
        if spec.target is not None:
            parts.append(spec.target)
        if spec.build:  # independent builds lie side by side
            parts.append(spec.build)
        key = hashlib.sha256(msgspec.json.encode([parts, machine, case_id])).hexdigest()[:20]
        return self._root / key / self._run_id

    @staticmethod
    def read(folder: Path) -> Engine | None:
        """Return what is known of an engine, or None where it is not complete."""
        try:
            return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Engine)
        except (OSError, msgspec.DecodeError):
            return None

    def earlier(self, folder: Path) -> Iterator[tuple[Path, Engine]]:
        """Yield complete engines of the same key from other runs, newest first."""
        found = [(path, engine) for path in folder.parent.glob("*") if (engine := self.read(path)) is not None]
        yield from sorted(found, key=lambda pair: pair[1].created, reverse=True)

    def write(self, folder: Path, engine: Engine) -> None:
        """Mark an engine as complete."""
        write_atomically(folder / MANIFEST, msgspec.json.encode(engine))

    def forget(self, folder: Path) -> None:
        """Take the mark of completeness from an engine: nobody starts from it any more."""
        (folder / MANIFEST).unlink(missing_ok=True)

    def prune(self, folder: Path) -> None:
        """Delete engines of the same key from runs that are over: the newest is enough."""
        for path in folder.parent.glob("*"):
            if path != folder:
                delete_unless_in_use(path)


def where_now(case: Case) -> Path | None:
    """Return the folder of a recorded case's engine, or None where it is gone.

    A later run of the same case starts from the engine, and the folder of the earlier run is deleted: the engine then
    lies beside it, known by when it was built.
    """
    if not case.engine:
        return None
    engine = Path(case.engine)
    if engine.is_dir():
        return engine
    for manifest in sorted(engine.parent.parent.glob(f"*/{MANIFEST}")):
        other = EngineStore.read(manifest.parent)
        if other and (other.created, other.versions) == (case.engine_created, case.versions):
            return manifest.parent / engine.name
    return None


def any_in_use() -> bool:
    """Return whether a living process measures any run."""
    return any(in_use(path.stem) for path in engines_root().glob("*.lock"))


def in_use(run_id: str) -> bool:
    """Return whether a living process measures this run."""
    path = engines_root() / f"{run_id}.lock"
    if not path.exists():
        return False
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def delete_unless_in_use(folder: Path) -> bool:
    """Delete an engine's folder unless a living run holds it; return whether it is gone."""
    lock = FileLock(engines_root() / f"{folder.name}.lock")
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        return False
    Path(lock.lock_file).unlink(missing_ok=True)
    return True
