"""Where things live: the cache folder, and writing files so that no reader ever sees half of one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from harness.errors import StoreError

CACHE_VARIABLE = "HARNESS_CACHE"
FREE_SPACE = "free some disk space (harness cache clear), or choose another folder with --out and HARNESS_CACHE"


def cache_root() -> Path:
    """Return the cache folder: `HARNESS_CACHE`, or the platform's place for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("harness")


def users_path(text: str, root: Path | None = None) -> Path:
    """Return what the user means by a path: `~` is a home, and what is relative starts at `root`."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # the home of a user that there is not
        path = Path(text)
    return ((root or Path.cwd()) / path).absolute()


def make_folder(path: Path, what: str, *, hint: str | None = None) -> Path:
    """Create a folder and make sure that files can be written in it.

    `hint` says how to choose another where it is neither the output nor the cache folder.

    Raises:
        StoreError: It cannot be created or written; the message says which folder and why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}-{threading.get_ident()}"  # several threads may ask at once
        probe.write_bytes(b"")
        probe.unlink()
    except FileExistsError as exc:
        raise StoreError(f"{what} {path} is a file, not a folder", hint=hint or _hint(exc)) from exc
    except OSError as exc:
        raise StoreError(f"{what} {path} cannot be written: {exc.strerror}", hint=hint or _hint(exc)) from exc
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step: readers see the old or the new file, never a part.

    Raises:
        StoreError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as exc:
        raise StoreError(f"{path} cannot be written: {exc.strerror}", hint=_hint(exc)) from exc
    finally:
        with suppress(OSError):  # it is gone where all went well, and cannot be there where its folder is not
            part.unlink()


def folder_bytes(path: Path) -> int:
    """Return the size of all files below a folder; 0 where there is none."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _hint(exc: OSError) -> str:
    if exc.errno == errno.ENOSPC:
        return FREE_SPACE
    return "choose another folder with --out, or set HARNESS_CACHE"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where that cannot be.

    For files that are not written to again, such as those of engines and artifacts, which are as large as their model.
    """
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
