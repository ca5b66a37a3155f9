"""One release of a backend in an environment of its own: made once by uv, found again by what was asked for.

<cache>/environments/<backend>-<version>-<key>/              the environment; harness.json in it, written last
<cache>/environments/<backend>-<version>-<key>.lock          held while it is made
<cache>/environments/<backend>-<version>-<key>.part-<pid>/   being made, or what a killed process left
<cache>/environments/<backend>-<version>-<key>.log           what uv said

Wheels of a release say which dependencies they need, seldom which are too new for them: numpy 2 broke whatever had
been built for numpy 1. So dependencies are as they were when the release came out.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from harness import registry
from harness.api import BackendOptions
from harness.environments.index import Release, knows_all, releases, wheels
from harness.environments.installer import TIMEOUT_S, run_uv
from harness.environments.interpreters import CORE, USABLE, About, ask
from harness.errors import EnvironmentFailed, StoreError, UsageError
from harness.interpreter import Interpreter
from harness.measure import timed
from harness.paths import cache_root, make_folder, write_atomically
from harness.records import Record
from harness.store import now_utc

MANIFEST = "harness.json"
MARGIN = timedelta(days=7)
"""How much younger than a release its dependencies may be: some come out on the same day, an hour later."""
NEAREST = 5

Say = Callable[[str], None]


class Manifest(Record, frozen=True, kw_only=True):
    """What was asked for and what came of it."""

    schema: int = 1
    backend: str
    release: str
    requirements: list[str]
    until: str | None
    """Dependencies that came out later were left aside; None where the index gave no date."""
    base: str
    """The interpreter that it was made from."""
    python: str
    packages: dict[str, str]
    uv: str
    created: str
    seconds: float


def environments_root() -> Path:
    """Return the folder that holds all environments."""
    return cache_root() / "environments"


def distribution_of(backend: str, options: BackendOptions | None = None, kind: str = "cpu") -> str:
    """Return the distribution whose version is meant by `BACKEND@VERSION` on a kind of device.

    Raises:
        UsageError: There is no such backend, or it has no releases that could be chosen.
    """
    owner = registry.backend(backend)
    if (name := owner.distribution(options or owner.Options(), kind)) is None:
        raise UsageError(
            f"{backend} is no package of releases that could be chosen",
            hint=f"leave out the version, or name an interpreter that has it: --python {backend}=/path/to/python",
        )
    return name


def check_release(backend: str, version: str, options: BackendOptions | None = None, kind: str = "cpu") -> None:
    """Refuse a version that was never released. What the index does not tell is not refused.

    Raises:
        UsageError: There is no such release; the message names the nearest ones.
    """
    distribution = distribution_of(backend, options, kind)
    try:
        known = {wheel.version for wheel in wheels(distribution)}
        fitting = releases(distribution)
    except EnvironmentFailed:
        return  # making the environment will tell; one that was made before needs no index
    if Version(version) in known or not knows_all(distribution):
        return
    raise UsageError(
        f"{distribution} {version} was never released as a wheel",
        hint=f"nearest: {', '.join(nearest(version, fitting)) or 'none'}",
    )


def find(
    backend: str,
    version: str,
    *,
    options: BackendOptions | None = None,
    kind: str = "cpu",
    base: Path | None = None,
) -> Interpreter | None:
    """Return the interpreter of an environment that was made before; the arguments are those of `ensure()`."""
    return _found(environments_root() / _Wanted(backend, version, options, kind, base).name)


def nearest(version: str, known: list[Release]) -> list[str]:
    """Return the releases around a version, oldest first."""
    place = sum(Version(one.version) < Version(version) for one in known)
    start = max(0, min(place - NEAREST // 2, len(known) - NEAREST))
    return [one.version for one in known[start : start + NEAREST]]


def ensure(
    backend: str,
    version: str,
    *,
    options: BackendOptions | None = None,
    kind: str = "cpu",
    base: Path | None = None,
    say: Say = lambda _: None,
    log: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Interpreter:
    """Return the interpreter of an environment that holds one release of a backend, after making it if need be.

    `kind` is the kind of device that it is for, `base` the interpreter that it is made from: left out, the running
    one. `say` hears of what takes its time; `log` is where uv's words go. Safe to be called by several processes and
    threads at once: they make it once.

    Raises:
        EnvironmentFailed: It cannot be made: no wheel fits, the index does not answer, uv failed. Nothing half made is
            left; the error has the log.
        StoreError: The cache cannot be written.
        UsageError: The backend has no releases that could be chosen, or this is no version.
    """
    wanted = _Wanted(backend, version, options, kind, base)
    root = make_folder(environments_root(), "the cache folder")
    folder = root / wanted.name
    if (found := _found(folder)) is not None:
        return found
    lock = FileLock(root / f"{wanted.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that makes the environment of {wanted.text}")
        lock.acquire()
    try:
        if (found := _found(folder)) is not None:  # made while we waited
            return found
        shutil.rmtree(folder, ignore_errors=True)
        for stale in root.glob(f"{wanted.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed: we hold the lock
        return _make(wanted, folder, say, log or root / f"{wanted.name}.log", timeout_s)
    finally:
        lock.release()


class _Wanted:
    """What was asked for, and the name under which it is found again."""

    def __init__(
        self, backend: str, version: str, options: BackendOptions | None, kind: str, base: Path | None
    ) -> None:
        owner = registry.backend(backend)
        distribution = distribution_of(backend, options, kind)
        self.backend = backend
        self.release = canonical(version)
        self.base: About = ask(base or Path(sys.executable))
        chosen = options if options is not None else owner.Options()
        beside = owner.companions(self.release, chosen, kind)
        self.distribution = distribution
        self.requirements = sorted({f"{distribution}=={self.release}", *CORE, *beside})
        self.text = f"{backend}@{self.release}"
        parts = [*self.requirements, self.base.version, self.base.platform]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
        self.name = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{backend}-{self.release}-{key}")


def canonical(version: str) -> str:
    """Return a version as its packages spell it.

    Raises:
        UsageError: It is none.
    """
    try:
        return str(Version(version))
    except InvalidVersion as exc:
        raise UsageError(f"'{version}' is not a version", hint="such as 1.24.4") from exc


def read(folder: Path) -> Manifest | None:
    """Return what is known of an environment, or None where it is not complete."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def python_of(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def _found(folder: Path) -> Interpreter | None:
    known = read(folder)
    python = python_of(folder)
    if known is None or not os.access(python, os.X_OK):  # the interpreter that it was made from may be gone
        return None
    return Interpreter(executable=str(python), packages=known.packages, version=known.python, until=known.until)


def _make(wanted: _Wanted, folder: Path, say: Say, log: Path, timeout_s: float) -> Interpreter:
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    until = _until(wanted, say)
    try:
        packages, seconds = timed(lambda: _install(wanted, part, until, log, timeout_s))
        manifest = Manifest(
            backend=wanted.backend,
            release=wanted.release,
            requirements=wanted.requirements,
            until=until,
            base=str(wanted.base.python),
            python=wanted.base.version,
            packages=packages,
            uv=run_uv(["--version"], log=log).strip(),
            created=now_utc(),
            seconds=seconds,
        )
        write_atomically(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        part.rename(folder)
    except EnvironmentFailed as exc:
        exc.log = str(log)
        raise
    except OSError as exc:
        raise StoreError(f"the environment of {wanted.text} cannot be written: {exc.strerror}") from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say(f"made the environment of {wanted.text}: {len(packages)} packages in {seconds:.1f} s")
    return Interpreter(executable=str(python_of(folder)), packages=packages, version=wanted.base.version, until=until)


def _install(wanted: _Wanted, part: Path, until: str | None, log: Path, timeout_s: float) -> dict[str, str]:
    python = str(python_of(part))
    run_uv(["venv", "--quiet", "--python", str(wanted.base.python), str(part)], log=log, timeout_s=timeout_s)
    arguments = ["pip", "install", "--python", python, "--link-mode", "hardlink"]
    arguments += ["--only-binary", wanted.distribution]  # an old release without a wheel is not to be built for hours
    if until is not None:
        arguments += ["--exclude-newer", until]
        for name in _undated(wanted.requirements):
            arguments += ["--exclude-newer-package", f"{name}=false"]
    run_uv([*arguments, *wanted.requirements], log=log, timeout_s=timeout_s)
    listed = run_uv(["pip", "list", "--format", "json", "--python", python], log=log)
    return {one["name"]: one["version"] for one in msgspec.json.decode(listed, type=list[dict[str, str]])}


def _undated(requirements: Sequence[str]) -> list[str]:
    """Return what may be of any date: what is pinned, and what our own side needs, which knows no releases."""
    parsed = [Requirement(text) for text in requirements]
    return [
        one.name
        for one in parsed
        if any(clause.operator == "==" for clause in one.specifier) or (str(one) in CORE and one.specifier)
    ]


def _until(wanted: _Wanted, say: Say) -> str | None:
    """Return the day on which dependencies must have been there, as the index knows it.

    Raises:
        EnvironmentFailed: There is such a release, and none of its wheels fits the interpreter.
    """
    python = wanted.base.minor
    try:
        of_release = [wheel for wheel in wheels(wanted.distribution) if wheel.version == Version(wanted.release)]
    except EnvironmentFailed as exc:
        say(f"{exc.message}; the dependencies of {wanted.text} are today's newest")
        return None
    fitting = [wheel for wheel in of_release if wheel.fits(python)]
    if of_release and not fitting:
        able = sorted({tag.interpreter for wheel in of_release for tag in wheel.tags})
        others = [one.version for one in releases(wanted.distribution, python)]
        hints = [f"releases that fit: {others[0]} to {others[-1]}"] if others else []
        if any(wheel.fits(minor) for wheel in of_release for minor in USABLE):
            hints.append(f"make it from another interpreter: --python {wanted.text}=/path/to/python")
        raise EnvironmentFailed(
            f"no wheel of {wanted.distribution} {wanted.release} fits Python {wanted.base.version} on this machine; "
            f"it has wheels for {', '.join(able)}",
            hint="; or ".join(hints) or None,
        )
    dates = [wheel.uploaded for wheel in fitting if wheel.uploaded is not None]
    if not dates:
        say(f"the index does not say when {wanted.text} came out: its dependencies are today's newest")
        return None
    return (min(dates) + MARGIN).strftime("%Y-%m-%dT%H:%M:%SZ")
