"""From a recommended case to what is deployed: the lines that load its engine, and a folder with both.

DIR/manifest.json     what it is, where it came from, what was measured; a sha256 of every file
DIR/engine/           what the backend saved
DIR/load.py           loads it with its own runtime and defines `run(inputs)`
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from harness import __version__, registry
from harness.advice import Candidate, Recommendation
from harness.api import SavedEngine
from harness.artifact import TensorSpec, sha256
from harness.engines import where_now
from harness.errors import StoreError, UnsupportedError, UsageError
from harness.paths import FREE_SPACE, folder_bytes, make_folder, write_atomically
from harness.records import Case, Run, Workload

MANIFEST, ENGINE, LOADER = "manifest.json", "engine", "load.py"
SCHEMA = 1
_INPUT = re.compile(r"(?P<name>.*) (?P<dtype>\w+)\[(?P<shape>[\d, ]*)\]")


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` holds."""

    schema: int = SCHEMA
    harness: str
    run: str
    workload: str
    model: str
    weights: str
    weights_sha256: str | None
    case: str
    versions: dict[str, str]
    """Of the backend's libraries that built the engine; another version may not load it."""
    provider: str
    device: str
    machine: str
    """The CPU that it was built and measured on."""
    precision: str
    batch: int
    threads: int
    inputs: list[TensorSpec]
    """`run()` takes them by name, and returns the outputs in the order in which the model does."""
    built: str
    figures: dict[str, float]
    """What was measured: durations in seconds, sizes in bytes."""
    files: dict[str, str]
    """Path below this folder -> sha256."""


def snippet(case: Case, workload: Workload) -> str:
    """Return the lines that load a case's engine, without those that say where it lies.

    Raises:
        UnsupportedError: There is no engine that loads by itself.
        UsageError: There is no such backend here.
    """
    kind = registry.backend(case.backend)
    try:
        options = msgspec.convert(case.options, type=kind.Options)
    except msgspec.ValidationError as exc:
        raise UnsupportedError(
            f"{case.id} was made with options that this {case.backend} does not have: {exc}"
        ) from exc
    made = kind.snippet(
        SavedEngine(
            options=options,
            provider=case.provider or "",
            device=case.device,
            precision=case.precision,
            threads=case.threads,
            inputs=tuple(input_specs(workload)),
        )
    )
    if made is None:
        raise UnsupportedError(f"{case.backend} has no engine that loads without harness")
    return made


def input_specs(workload: Workload) -> list[TensorSpec]:
    """Return what the workload's engines take."""
    found = [_INPUT.fullmatch(text) for text in (workload.info.inputs if workload.info else [])]
    return [
        TensorSpec(
            name=one["name"], dtype=one["dtype"], shape=tuple(int(size) for size in one["shape"].split(",") if size)
        )
        for one in found
        if one is not None
    ]


def located(lines: str, engine: Path) -> str:
    """Return a snippet that finds its engine at a fixed place."""
    return f"from pathlib import Path\n\nENGINE = Path({str(engine)!r})\n\n{lines}"


def save(target: Path, found: Recommendation, workload: Workload, run: Run) -> Path:
    """Copy the recommended engine with its loader and its manifest into a new or empty folder, and return that.

    Raises:
        UsageError: The folder holds something.
        UnsupportedError: The recommended case has no engine that loads by itself.
        StoreError: The engine is gone, or the folder cannot be written.
    """
    case = next(one for one in workload.cases if one.id == found.case)
    candidate = next(one for one in found.candidates if one.case == found.case)
    lines = snippet(case, workload)
    engine = where_now(case)
    if engine is None:
        raise StoreError(
            f"the engine of {case.id} is gone: a later run built it anew, or the cache was cleared",
            hint=f"build it again: {case.reproduce}",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder", hint="choose another --save")
    make_folder(target, "the folder", hint="choose another --save")
    try:
        shutil.copytree(engine, target / ENGINE)
    except OSError as exc:  # `shutil.Error` is one too: its first reason says enough
        shutil.rmtree(target / ENGINE, ignore_errors=True)
        free = shutil.disk_usage(target).free
        hint = FREE_SPACE if free < folder_bytes(engine) else "choose another --save"
        raise StoreError(f"the engine cannot be copied to {target}: {exc}", hint=hint) from exc
    head = (
        f'"""Load the engine of {workload.key} by {case.backend} {case.version or ""}: run(inputs) -> outputs."""\n\n'
    )
    place = f'from pathlib import Path\n\nENGINE = Path(__file__).resolve().parent / "{ENGINE}"\n\n'
    write_atomically(target / LOADER, (_quiet(head) + place + lines).encode())
    manifest = _manifest(target, case, candidate, workload, run)
    write_atomically(target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return target


def folder_name(key: str) -> str:
    """Return a folder's name for a workload, where several are saved."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", key)[:80]


def _manifest(target: Path, case: Case, candidate: Candidate, workload: Workload, run: Run) -> Deployed:
    info = workload.info
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return Deployed(
        harness=__version__,
        run=run.id,
        workload=workload.key,
        model=workload.model.text,
        weights=info.weights if info else "",
        weights_sha256=info.weights_sha256 if info else None,
        case=case.id,
        versions=case.versions,
        provider=case.provider or "",
        device=case.device,
        machine=run.environment.cpu,
        precision=case.precision,
        batch=workload.batch,
        threads=case.threads,
        inputs=input_specs(workload),
        built=case.engine_created or "",
        figures=candidate.figures,
        files={path.relative_to(target).as_posix(): sha256(path) for path in files},
    )


def _quiet(head: str) -> str:
    # A name from outside must not end the docstring.
    return '"""' + head.strip().removeprefix('"""').removesuffix('"""').replace("\\", "/").replace('"', "'") + '"""\n\n'
