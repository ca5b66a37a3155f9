"""The interpreters of a comparison: one for each release that was asked for, and the user's own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness import devices, registry
from harness.environments.building import canonical, check_release, ensure, find
from harness.environments.interpreters import CORE, ask
from harness.errors import EnvironmentFailed, UsageError
from harness.interpreter import Interpreter
from harness.paths import users_path, write_atomically
from harness.plan import AT, Variant, chosen_for
from harness.progress import Narrator, brief
from harness.records import Settings

RUNS = "runs.txt"
RUNS_KEPT = 50

Interpreters = Mapping[str, Interpreter | EnvironmentFailed]
"""Case -> what its workers run in, or why there is no such thing. A case that is not here runs in that of harness."""


def parse_pythons(texts: Iterable[str]) -> dict[str, str]:
    """Parse the values of `--python`: backend, or one release of it, -> path of an interpreter.

    Raises:
        UsageError: Not of the form NAME=PATH, an unknown backend, or no interpreter.
    """
    out: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--python {text}: BACKEND=/path/to/python is wanted")
        backend, at, version = name.partition(AT)
        registry.backend(backend)
        name = f"{backend}{AT}{canonical(version)}" if at else name
        if name in out:
            raise UsageError(f"--python: {name} is given twice")
        out[name] = str(ask(_interpreter(path)).python)
    return out


def _interpreter(text: str) -> Path:
    path = users_path(text)
    if path.is_dir():  # a virtual environment
        path = path / "bin" / "python"
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"--python {text}: there is no interpreter", hint="give the path of its python")
    return path


def check(variants: Sequence[Variant], settings: Settings) -> None:
    """Refuse releases that there are not, and interpreters in which a worker cannot run, before anything is done.

    Raises:
        UsageError: The message says what to choose or to install.
    """
    for name, path in settings.pythons.items():
        own = [variant for variant in variants if name in (variant.backend, variant.item)]
        if not own:
            raise UsageError(f"--python {name}={path}: {name} is not among the cases", hint=f"--backends {name}")
        if plain := [variant for variant in own if variant.release is None]:
            _check_python(name, Path(path), [_distribution(variant, settings) for variant in plain])
    for variant in {variant.item: variant for variant in variants if variant.release is not None}.values():
        check_variant(variant, _kind(settings), chosen_for(variant, settings.pythons))


def check_variant(variant: Variant, kind: str, base: str | None) -> None:
    """Refuse a release that there is not. What was installed before is not looked up again.

    Raises:
        UsageError: The message names the nearest ones.
    """
    assert variant.release is not None
    options = variant.parsed()
    there = find(variant.backend, variant.release, options=options, kind=kind, base=Path(base) if base else None)
    if there is None:
        check_release(variant.backend, variant.release, options, kind)


def _check_python(name: str, path: Path, distributions: Sequence[str | None]) -> None:
    about = ask(path)
    needed = [*CORE, *sorted({one for one in distributions if one is not None})]
    if lacking := about.lacks(needed):
        command = shlex.join([str(path), "-m", "pip", "install", *lacking])
        raise UsageError(f"--python {name}={path} lacks what a worker needs: {', '.join(lacking)}", hint=command)


def _distribution(variant: Variant, settings: Settings) -> str | None:
    return registry.backend(variant.backend).distribution(variant.parsed(), _kind(settings))


def _kind(settings: Settings) -> str:
    """Return the kind of device that an environment is for: one for a GPU serves the CPU too."""
    return next((kind for kind in map(devices.kind, settings.devices) if kind != devices.CPU), devices.CPU)


def runs_of(folder: Path) -> list[str]:
    """Return the comparisons that an environment was used in, newest last."""
    try:
        return (folder / RUNS).read_text().split()
    except OSError:
        return []


def _note_use(interpreter: Interpreter, run: str) -> None:
    folder = interpreter.python.parent.parent
    if run not in (known := runs_of(folder)):
        write_atomically(folder / RUNS, "\n".join([*known, run][-RUNS_KEPT:]).encode())


def prepare(variants: Sequence[Variant], settings: Settings, run: str, logs: Path, narrator: Narrator) -> Interpreters:
    """Make the environments that are not there yet, and return the interpreter of each case that has one of its own.

    `run` is noted in each of them: what a living run uses is not deleted.

    Raises:
        StoreError: The cache cannot be written.
        UsageError: The user's interpreter is gone.
    """
    found: dict[str, Interpreter | EnvironmentFailed] = {}
    for variant in variants:
        base = chosen_for(variant, settings.pythons)
        if variant.release is not None:
            try:
                made = ensure_variant(
                    variant, _kind(settings), base, narrator, logs / f"environment-{variant.slug}.log"
                )
                _note_use(made, run)
                found[variant.id] = made
            except EnvironmentFailed as exc:
                narrator.done(f"{variant.item}: no environment: {brief(exc.message)}")
                found[variant.id] = exc
        elif base is not None:
            about = ask(Path(base))
            found[variant.id] = Interpreter(executable=base, version=about.version, packages=about.packages)
    return found


def ensure_variant(
    variant: Variant, kind: str, base: str | None, narrator: Narrator, log: Path | None = None
) -> Interpreter:
    """Return the interpreter of a variant's release, after making its environment if need be.

    Raises:
        EnvironmentFailed: It cannot be made.
        StoreError: The cache cannot be written.
        UsageError: The interpreter that it is to be made from is gone.
    """
    assert variant.release is not None
    narrator.doing(f"environment of {variant.item}")
    return ensure(
        variant.backend,
        variant.release,
        options=variant.parsed(),
        kind=kind,
        base=Path(base) if base else None,
        say=narrator.done,
        log=log,
    )


def release_in(variant: Variant, interpreter: Interpreter | None, kind: str) -> str | None:
    """Return the release that a case runs, where it is not simply the one beside harness."""
    if variant.release is not None or interpreter is None:
        return variant.release
    owner = registry.backend(variant.backend)
    return interpreter.packages.get(owner.distribution(variant.parsed(), kind) or "")
