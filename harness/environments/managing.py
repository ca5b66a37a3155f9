"""What `harness env` does: which environments there are, what is in them, and deleting them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import msgspec
from filelock import FileLock, Timeout
from packaging.version import Version
from tabulate import tabulate

from harness import registry
from harness.engines import in_use
from harness.environments.building import MANIFEST, Manifest, environments_root, read
from harness.environments.preparing import check_variant, ensure_variant, parse_pythons, runs_of
from harness.errors import EnvironmentFailed, StoreError, UsageError
from harness.paths import folder_bytes
from harness.plan import AT, chosen_for, parse_variants
from harness.progress import Narrator
from harness.records import Record

MIB = 2**20


class Entry(Record, frozen=True, kw_only=True):
    """One environment, as `--json` shows it."""

    name: str
    """`BACKEND@VERSION`."""
    folder: str
    bytes: int
    own_bytes: int
    """Of files that have no other name: the rest is shared with the installer's cache by hard links."""
    runs: list[str]
    """Comparisons that it was used in, newest last."""
    manifest: Manifest


def entries() -> list[Entry]:
    """Return all finished environments by name, older releases first."""
    folders = [path for path in environments_root().glob("*/") if ".part-" not in path.name]
    found = [_entry(folder, made) for folder in folders if (made := read(folder)) is not None]
    return sorted(found, key=lambda one: (one.manifest.backend, Version(one.manifest.release), one.folder))


def _entry(folder: Path, manifest: Manifest) -> Entry:
    return Entry(
        name=f"{manifest.backend}{AT}{manifest.release}",
        folder=str(folder),
        bytes=folder_bytes(folder),
        own_bytes=_own_bytes(folder),
        runs=runs_of(folder),
        manifest=manifest,
    )


def _own_bytes(folder: Path) -> int:
    sizes = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(one.st_size for one in sizes if one.st_nlink == 1)


def chosen(names: Sequence[str]) -> list[Entry]:
    """Return the environments of these names, `BACKEND@VERSION` or that of the folder.

    Raises:
        UsageError: There is none of a name; the message suggests one.
    """
    known = entries()
    out: list[Entry] = []
    for name in names:
        found = [one for one in known if name in (one.name, Path(one.folder).name)]
        if not found:
            raise registry.unknown("environment", name, sorted({one.name for one in known}))
        out += [one for one in found if one not in out]
    return out


def run_list(*, as_json: bool) -> None:
    """Carry out `harness env list`."""
    found = entries()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    if not found:
        click.echo(f"no environments in {environments_root()}; harness env create BACKEND@VERSION makes one")
        return
    rows = [
        (
            one.name,
            one.manifest.python,
            len(one.manifest.packages),
            f"{one.bytes / MIB:.1f}",
            f"{one.own_bytes / MIB:.1f}",
            one.manifest.created,
            one.runs[-1] if one.runs else "-",
        )
        for one in found
    ]
    headers = ["environment", "Python", "packages", "MiB", "own MiB", "made", "last used by"]
    click.echo(tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "left", *["right"] * 3)))
    click.echo(f"\nin {environments_root()}; what is not its own is shared with the installer's cache by hard links")


def run_show(names: Sequence[str], *, as_json: bool) -> None:
    """Carry out `harness env show`."""
    found = chosen(names)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    click.echo("\n\n".join(map(_text, found)))


def _text(one: Entry) -> str:
    made = one.manifest
    facts = [
        ("folder", one.folder),
        ("size", f"{one.bytes / MIB:.1f} MiB, of which its own {one.own_bytes / MIB:.1f} MiB"),
        ("made", f"{made.created} in {made.seconds:.1f} s by {made.uv}"),
        ("Python", f"{made.python} of {made.base}"),
        ("asked for", ", ".join(made.requirements)),
        ("dependencies", f"none newer than {made.until}" if made.until else "today's newest: the index gave no dates"),
        ("used by", ", ".join(one.runs) or "no comparison yet"),
        ("packages", "\n".join(f"{name} {version}" for name, version in sorted(made.packages.items()))),
    ]
    return f"{one.name}\n" + tabulate(facts, tablefmt="plain", disable_numparse=True)


def run_create(items: Sequence[str], pythons: Sequence[str], *, kind: str, quiet: bool) -> bool:
    """Carry out `harness env create`; return whether all of them are there now."""
    variants = parse_variants(list(items))
    bases = parse_pythons(pythons)
    for variant in variants:
        if variant.release is None:
            raise UsageError(f"'{variant.id}' names no version", hint=f"such as {variant.backend}{AT}1.2.3")
        check_variant(variant, kind, chosen_for(variant, bases))
    sound = True
    with Narrator(quiet=quiet) as narrator:
        for variant in variants:
            try:
                made = ensure_variant(variant, kind, chosen_for(variant, bases), narrator)
            except EnvironmentFailed as exc:
                sound = False
                for line in exc.lines():
                    click.echo(line, err=True)
                continue
            click.echo(f"{variant.item} {made.executable}")
    return sound


def run_clear(names: Sequence[str], *, yes: bool) -> None:
    """Carry out `harness env clear`."""
    found = chosen(names) if names else entries()
    if not names and not yes and found:
        click.confirm(f"delete all {len(found)} environments in {environments_root()}?", abort=True, err=True)
    kept = [one.name for one in found if not delete(Path(one.folder))]
    if not names:
        _delete_remains()
    gone = len(found) - len(kept)
    click.echo(f"deleted {gone} environment(s)" + (f"; kept {', '.join(kept)}: in use" if kept else ""))


def delete(folder: Path) -> bool:
    """Delete an environment unless it is being made or a living comparison runs in it; return whether it is gone.

    Raises:
        StoreError: It cannot be deleted.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        with lock.acquire(timeout=0):
            if any(in_use(run) for run in runs_of(folder)):
                return False
            with suppress(FileNotFoundError):
                (folder / MANIFEST).unlink()  # first: what is half deleted is no environment
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.log").unlink(missing_ok=True)
    except Timeout:
        return False
    except OSError as exc:
        raise StoreError(f"{folder} cannot be deleted: {exc.strerror}", hint="it may not be yours") from exc
    if folder.exists():
        raise StoreError(f"{folder} cannot be deleted", hint="it may be in use, or not yours")
    return True


def _delete_remains() -> None:
    """Delete what killed processes and failed tries left."""
    for path in environments_root().glob("*.part-*"):
        lock = FileLock(str(path).partition(".part-")[0] + ".lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(path, ignore_errors=True)
    for path in environments_root().glob("*.log"):
        if not path.with_suffix("").is_dir():
            path.unlink(missing_ok=True)


def clear_all() -> int:
    """Delete all environments that are not in use; return how many were kept."""
    kept = sum(not delete(Path(one.folder)) for one in entries())
    _delete_remains()
    return kept
