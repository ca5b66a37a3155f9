"""Export a model once: the parent's half. Artifacts are cached by what they are made from, for all backends."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from harness import protocol, registry
from harness.artifact import MANIFEST, Artifact, Manifest, TensorSpec, sha256
from harness.errors import ExportError, HarnessError, OutOfMemory, StoreError, UsageError
from harness.launcher import Launcher, OnProgress
from harness.memory import on_disk
from harness.modelspec import ModelSpec
from harness.paths import FREE_SPACE, cache_root, make_folder, write_atomically
from harness.sourcecode import source_files

DEFAULT_OPSET = 18
"""The newest that all ONNX backends here read well."""
INPUT_SETS = 4
LOCK_POLL_S = 0.2
LIBRARIES = ("torch", "onnx", "onnxscript", "transformers", "diffusers")
WORKER_HALF = (
    "checkpoints",
    "exporter",
    "flops",
    "graph_cost",
    "graph_reference",
    "images",
    "inputs",
    "pickles",
    "references",
    "shapes",
    "weights",
)
"""Modules of ours on which every export depends."""
DISK_FULL = ("No space left", "os error 28")
"""How Python and safetensors say ENOSPC."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact is made from."""

    model: ModelSpec
    dims: dict[str, int] = {}
    """Sizes of free dimensions, as far as the user set them."""
    shapes: dict[str, list[int]] = {}
    dynamic: dict[str, tuple[int, int]] = {}
    """Dimensions that stay free in the ONNX graph; `dims` holds their largest sizes."""
    weights: str = "seeded"
    inputs: str | None = None
    """Absolute path of the user's own inputs."""
    seed: int = 0
    opset: int = DEFAULT_OPSET
    input_sets: int = INPUT_SETS

    def key(self) -> str:
        """Return the cache key: the recipe, the source of model and exporter, and the exporting libraries.

        What the user's own files hold is not part of it: the manifest says which went into the artifact.
        """
        listing: list[str] = []
        if self.inputs is not None and Path(self.inputs).is_dir():
            listing = sorted(path.name for path in Path(self.inputs).iterdir())
        parts = [
            *listing,
            msgspec.json.encode(msgspec.structs.replace(self, model=self._what())).decode(),
            *(sha256(path) for path in self._code()),
            *(f"{name}=={_version(name)}" for name in LIBRARIES),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

    def _what(self) -> ModelSpec:
        # Sizes are the recipe's own; where the command was given matters to a factory only.
        root = self.model.root if self.model.kind == "factory" else ""
        return msgspec.structs.replace(self.model, dims={}, root=root)

    @property
    def slug(self) -> str:
        """Return a name for folders."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.model.label)[:60]

    def _code(self) -> list[Path]:
        """Return the source files that make the model, and those that export it."""
        half = (Path(__file__).with_name(f"{name}.py") for name in WORKER_HALF)
        return [*source_files(type(registry.model(self.model))), *half]


def exports_root() -> Path:
    """Return the folder that holds all artifacts."""
    return cache_root() / "exports"


def is_exported(recipe: Recipe) -> bool:
    """Return whether the cache has an artifact for a recipe; it may still turn out to be damaged."""
    return (exports_root() / f"{recipe.slug}-{recipe.key()}" / MANIFEST).is_file()


def still_exported(recipe: Recipe, digest: str) -> bool:
    """Return whether the cache has exactly this artifact for a recipe, and the user's files are still those of it."""
    try:
        artifact = Artifact.open(exports_root() / f"{recipe.slug}-{recipe.key()}")
    except StoreError:
        return False
    return artifact.hash == digest and _changed(artifact.manifest) is None


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
        OutOfMemory: Exporting it took more than a worker may take.
        UsageError: What the user asked for does not fit the model.
        StoreError: The cache cannot be written, or the disk is too small.
    """
    root = make_folder(exports_root(), "the cache folder")
    folder = root / f"{recipe.slug}-{recipe.key()}"
    with _locked(root / f"{folder.name}.lock", on_progress):
        if folder.exists() and not refresh:
            try:
                artifact = Artifact.open(folder, verify=True)
                if changed := _changed(artifact.manifest):
                    say(f"{changed} has changed since it was exported")
                else:
                    return artifact, True
            except StoreError as exc:
                say(f"the cached export is damaged and is made again: {exc.message}")
        for stale in root.glob(f"{folder.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed: we hold the lock
        _check_room(recipe, root)
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


def _changed(manifest: Manifest) -> str | None:
    """Return the first of the user's files that is no longer what the artifact was made from."""
    for name, digest in manifest.sources.items():
        path = Path(name)
        if not path.is_file() or sha256(path) != digest:
            return name
    return None


def _check_room(recipe: Recipe, root: Path) -> None:
    needed, free = on_disk(recipe.model), shutil.disk_usage(root).free
    if needed > free:
        raise StoreError(
            f"exporting {recipe.model.label} takes {needed / 1e9:.1f} GB in {root}, and {free / 1e9:.1f} GB are free",
            hint=FREE_SPACE,
        )


def _export_into(part: Path, recipe: Recipe, launcher: Launcher, on_progress: OnProgress) -> None:
    name = recipe.model.label
    log: str | None = None
    try:
        with launcher.start("export") as worker:
            log = str(worker.log)
            request = protocol.Export(
                model=recipe.model,
                dims=recipe.dims,
                shapes=recipe.shapes,
                dynamic=recipe.dynamic,
                weights=recipe.weights,
                inputs=recipe.inputs,
                seed=recipe.seed,
                opset=recipe.opset,
                input_sets=recipe.input_sets,
                threads=launcher.threads,
                folder=str(part),
            )
            exported = worker.call(request, protocol.Exported, timeout_s=launcher.timeout_s, on_progress=on_progress)
        max_abs = exported.onnx_max_abs
        if exported.module:
            on_progress(protocol.Progress(text="checking the ONNX file against eager"))
            with launcher.start("export-check") as worker:
                log = str(worker.log)
                check = protocol.Check(folder=str(part), input_sets=exported.input_sets, threads=launcher.threads)
                max_abs = worker.call(check, protocol.Checked, timeout_s=launcher.timeout_s).max_abs
    except (UsageError, StoreError, OutOfMemory) as exc:
        exc.log = exc.log or (log if isinstance(exc, OutOfMemory) else None)
        raise
    except HarnessError as exc:
        if any(sign in exc.message for sign in DISK_FULL):
            raise StoreError(
                f"the export of {name} cannot be written to {part.parent}: No space left on device", hint=FREE_SPACE
            ) from exc
        failure = ExportError(exc.message, hint=exc.hint, log=exc.log or log)
        failure.worker_traceback = exc.worker_traceback
        raise failure from exc
    manifest = _manifest(recipe, exported, max_abs, part)
    write_atomically(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))


def _manifest(recipe: Recipe, exported: protocol.Exported, max_abs: float | None, part: Path) -> Manifest:
    return Manifest(
        model=recipe.model,
        dims=exported.dims,
        axes=exported.axes,
        dynamic=recipe.dynamic,
        module=exported.module,
        reference=exported.reference,
        weights=exported.weights,
        weights_sha256=exported.weights_sha256,
        weights_bytes=exported.weights_bytes,
        gflop=exported.gflop,
        least_bytes=exported.least_bytes,
        seed=recipe.seed,
        opset=exported.opset,
        task=exported.task,
        inputs=_specs(exported.inputs),
        outputs=_specs(exported.outputs),
        input_sets=exported.input_sets,
        parameters=exported.parameters,
        deterministic=exported.deterministic,
        golden=exported.golden,
        export_s=exported.export_s,
        onnx_max_abs=max_abs,
        versions=exported.versions,
        notes=exported.notes,
        sources={name: sha256(Path(name)) for name in exported.sources},
        files={path.name: sha256(path) for path in sorted(part.iterdir()) if path.is_file()},
    )


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
