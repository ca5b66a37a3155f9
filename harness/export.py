"""Export a model once: the parent's half. Artifacts are cached by what they are made from, for all backends."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from harness import protocol, registry
from harness.artifact import MANIFEST, Artifact, Manifest, TensorSpec, sha256
from harness.errors import ExportError, HarnessError, StoreError
from harness.launcher import Launcher, OnProgress
from harness.paths import FREE_SPACE, cache_root, make_folder, write_atomically

DEFAULT_OPSET = 18
"""The newest that all ONNX backends here read well."""
INPUT_SETS = 4
LOCK_POLL_S = 0.2
DISK_FULL = ("No space left", "os error 28")
"""How Python and safetensors say ENOSPC."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an artifact is made from."""

    model: str
    batch: int = 1
    seed: int = 0
    opset: int = DEFAULT_OPSET
    input_sets: int = INPUT_SETS

    def key(self) -> str:
        """Return the cache key: the recipe, the model's and the exporter's source, and the exporting libraries."""
        source = inspect.getsourcefile(type(registry.model(self.model)))
        parts = [
            repr(self),
            sha256(Path(source)) if source else "",
            sha256(Path(__file__).with_name("exporter.py")),
            *(f"{name}=={_version(name)}" for name in ("torch", "onnx", "onnxscript")),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def exports_root() -> Path:
    """Return the folder that holds all artifacts."""
    return cache_root() / "exports"


def ensure_artifact(
    recipe: Recipe,
    launcher: Launcher,
    *,
    on_progress: OnProgress,
    say: Callable[[str], None] = lambda _: None,
    refresh: bool = False,
) -> tuple[Artifact, bool]:
    """Return the artifact for a recipe and whether it was in the cache.

    A second process that wants the same artifact waits for the first. A damaged cache entry is made anew; `say` is
    told so.

    Raises:
        ExportError: The model cannot be exported, or its export does not equal eager.
        StoreError: The cache cannot be written.
    """
    root = make_folder(exports_root(), "the cache folder")
    folder = root / f"{recipe.model}-{recipe.key()}"
    with _locked(root / f"{folder.name}.lock", on_progress):
        if folder.exists() and not refresh:
            try:
                return Artifact.open(folder, verify=True), True
            except StoreError as exc:
                say(f"the cached export is damaged and is made again: {exc.message}")
        for stale in root.glob(f"{folder.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed: we hold the lock
        part = root / f"{folder.name}.part-{os.getpid()}"
        try:
            part.mkdir()
            _export_into(part, recipe, launcher, on_progress)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except OSError as exc:
            raise StoreError(f"the export cannot be written to {folder}: {exc.strerror}") from exc
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Artifact.open(folder), False


def _export_into(part: Path, recipe: Recipe, launcher: Launcher, on_progress: OnProgress) -> None:
    try:
        with launcher.start("export") as worker:
            request = protocol.Export(
                model=recipe.model,
                batch=recipe.batch,
                seed=recipe.seed,
                opset=recipe.opset,
                input_sets=recipe.input_sets,
                threads=launcher.threads,
                folder=str(part),
            )
            exported = worker.call(request, protocol.Exported, timeout_s=launcher.timeout_s, on_progress=on_progress)
        on_progress(protocol.Progress(text="checking the ONNX file against eager"))
        with launcher.start("export-check") as worker:
            checked = worker.call(
                protocol.Check(folder=str(part), input_sets=recipe.input_sets),
                protocol.Checked,
                timeout_s=launcher.timeout_s,
            )
    except HarnessError as exc:
        if any(sign in exc.message for sign in DISK_FULL):
            raise StoreError(
                f"the export of {recipe.model} cannot be written to {part.parent}: No space left on device",
                hint=FREE_SPACE,
            ) from exc
        failure = ExportError(exc.message, hint=exc.hint, log=exc.log or str(worker.log))
        failure.worker_traceback = exc.worker_traceback
        raise failure from exc
    manifest = Manifest(
        model=recipe.model,
        weights="seeded",
        seed=recipe.seed,
        batch=recipe.batch,
        opset=recipe.opset,
        task=exported.task,
        inputs=_specs(exported.inputs),
        outputs=_specs(exported.outputs),
        input_sets=recipe.input_sets,
        parameters=exported.parameters,
        deterministic=exported.deterministic,
        golden=exported.golden,
        export_s=exported.export_s,
        onnx_max_abs=checked.max_abs,
        versions=exported.versions,
        files={path.name: sha256(path) for path in sorted(part.iterdir()) if path.is_file()},
    )
    write_atomically(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))


class _locked:
    """Hold a file lock; say so when another process has it."""

    def __init__(self, path: Path, on_progress: OnProgress) -> None:
        self._lock = FileLock(path)
        self._on_progress = on_progress

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._on_progress(protocol.Progress(text="waiting for another process that exports the same model"))
            self._lock.acquire(poll_interval=LOCK_POLL_S)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _specs(rows: list[tuple[str, str, list[int]]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in rows)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
