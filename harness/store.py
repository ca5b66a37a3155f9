"""Runs on disk: one folder a run, with `run.json` and the logs. Saved after every finished step, never half written."""

from __future__ import annotations

import re
import secrets
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from harness.errors import StoreError
from harness.paths import make_folder, write_atomically
from harness.records import SCHEMA, Run

RUN_FILE = "run.json"


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, model: str) -> RunFolder:
        """Make a new folder below `out`, named after the time and the model, with a name that no other run has.

        Raises:
            StoreError: `out` cannot be written.
        """
        make_folder(out, "the output folder")
        when = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        # The name is also the run's id, by which its engines are found, whichever folder it lies in.
        path = out / f"{when}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-{secrets.token_hex(2)}"
        try:
            path.mkdir()
        except OSError as exc:
            raise StoreError(f"the run folder {path} cannot be made: {exc.strerror}") from exc
        return cls(path)

    @property
    def logs(self) -> Path:
        """What the libraries printed, a file a worker."""
        return self.path / "logs"

    def save(self, run: Run) -> None:
        """Replace `run.json`.

        Raises:
            StoreError: The disk is full or the folder is gone; the last saved state stays.
        """
        write_atomically(self.path / RUN_FILE, msgspec.json.encode(run))


def now_utc() -> str:
    """Return the time of day as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def find_run(name: str, out: Path, option: str = "--out") -> RunFolder:
    """Find a run by its folder, its `run.json`, its name below `out`, the start of that name, or `last`.

    Args:
        option: What names `out` on the command line, for the error.

    Raises:
        StoreError: No run, or more than one, answers to the name.
    """
    direct = Path(name)
    if direct.name == RUN_FILE and direct.is_file():
        return RunFolder(direct.parent)
    if (direct / RUN_FILE).is_file():
        return RunFolder(direct)
    runs = (
        sorted((path.parent for path in out.glob(f"*/{RUN_FILE}")), key=lambda path: path.name) if out.is_dir() else []
    )
    if name == "last" and runs:
        return RunFolder(max(runs, key=lambda path: (path / RUN_FILE).stat().st_mtime))
    # A second run of the same second is named after the first: the whole name goes before the start of one.
    found = [path for path in runs if path.name == name] or [path for path in runs if path.name.startswith(name)]
    if len(found) == 1:
        return RunFolder(found[0])
    if not runs:
        raise StoreError(
            f"no run '{name}': there are no runs in {out}",
            hint=f"harness compare makes one; {option} names the folder",
        )
    names = ", ".join(path.name for path in (found or runs)[-5:])
    raise StoreError(
        f"{'several runs match' if found else 'no run'} '{name}'", hint=f"runs in {out}: {names}; or: last"
    )


def load_run(folder: RunFolder) -> Run:
    """Read a run.

    Raises:
        StoreError: The file is missing, damaged, or was written by a newer harness.
    """
    path = folder.path / RUN_FILE
    try:
        return decode_run(path.read_bytes(), str(path))
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise StoreError(
            f"{path} is damaged: {exc}", hint=f"measure again: harness compare (logs are in {folder.logs})"
        ) from exc


def decode_run(content: bytes, name: str) -> Run:
    """Return the run of a `run.json`; `name` is what a message calls it.

    Raises:
        StoreError: It was written by a newer or an older harness.
        msgspec.DecodeError: It is damaged; UnicodeDecodeError likewise.
    """
    schema = msgspec.json.decode(content, type=_Versioned).schema
    if schema != SCHEMA:
        newer = schema > SCHEMA
        raise StoreError(
            f"{name} was written by {'a newer' if newer else 'an older'} harness: it has schema {schema}, and this "
            f"one reads {SCHEMA}",
            hint="update harness to read it" if newer else "measure again: harness compare",
        )
    return msgspec.json.decode(content, type=Run)


class _Versioned(msgspec.Struct):
    schema: int
