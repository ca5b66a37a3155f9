"""An artifact's graph in another precision: the parent's half. Made once, cached, and read by all ONNX backends."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
from filelock import FileLock

from harness import protocol
from harness.artifact import MANIFEST, Artifact, sha256
from harness.datasets import KINDS
from harness.environment import library_versions
from harness.errors import ExportError, HarnessError, OutOfMemory, StoreError, UnsupportedError, UsageError
from harness.export import exports_root
from harness.launcher import Launcher, OnProgress
from harness.paths import FREE_SPACE, link_or_copy, make_folder, write_atomically
from harness.precisions import CALIBRATED, CONVERTERS, PRECISIONS

TENSORS = ("inputs-*.safetensors", "reference-*.safetensors", "golden-*.safetensors")
WORKER_HALF = (
    "calibrating",
    "converter",
    "datasets",
    "halving",
    "inputs",
    "images",
    "masks",
    "narrowing",
    "quantising",
    "weights",
)
"""Modules of ours on which every conversion depends."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the scales of a quantised graph are found."""

    source: str | None = None
    """The user's own calibration inputs, as `harness.sources` has them; None: drawn, from another seed."""
    samples: int = 64
    method: str = "minmax"


def ensure_converted(
    artifact: Artifact,
    precision: str,
    calibration: Calibration,
    launcher: Launcher,
    *,
    weights: str,
    on_progress: OnProgress,
    keep: Sequence[str] = (),
) -> tuple[Artifact, bool]:
    """Return the artifact's graph in another precision, and whether it was in the cache.

    It is an artifact of its own, with the inputs and references of its source and without its module. The nodes named
    in `keep` stay in float32.

    Raises:
        UnsupportedError: The graph cannot be had in this precision.
        UsageError: The calibration inputs do not fit the model, or it is quantised already.
        ExportError: The conversion failed.
        OutOfMemory: It took more than a worker may take.
        StoreError: The cache cannot be written.
    """
    assert precision in PRECISIONS
    root = make_folder(exports_root(), "the cache folder")
    folder = root / f"{artifact.folder.name[:60]}-{precision}-{_key(artifact, precision, calibration, keep)}"
    with FileLock(root / f"{folder.name}.lock"):
        if folder.exists():
            try:
                return Artifact.open(folder, verify=True), True
            except StoreError:
                shutil.rmtree(folder, ignore_errors=True)
        for stale in root.glob(f"{folder.name}.part-*"):
            shutil.rmtree(stale, ignore_errors=True)  # of a process that was killed: we hold the lock
        part = root / f"{folder.name}.part-{os.getpid()}"
        try:
            part.mkdir()
            # Graphs that differ only in what they keep share their scales, and one calibration.
            shared = root / f"{artifact.folder.name[:60]}-{_key(artifact, precision, calibration, ())}.ranges"
            ranges = str(shared) if keep and precision == "int8" else None
            converted = _convert_into(
                part, artifact, precision, calibration, launcher, weights, keep, ranges, on_progress
            )
            for file in TENSORS:
                for path in artifact.folder.glob(file):
                    link_or_copy(path, part / path.name)
            write_atomically(part / MANIFEST, msgspec.json.encode(_manifest(artifact, precision, converted, part)))
            part.rename(folder)
        except OSError as exc:
            raise StoreError(f"the {precision} graph cannot be written to {folder}: {exc.strerror}") from exc
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Artifact.open(folder), False


def _convert_into(
    part: Path,
    artifact: Artifact,
    precision: str,
    calibration: Calibration,
    launcher: Launcher,
    weights: str,
    keep: Sequence[str],
    ranges: str | None,
    on_progress: OnProgress,
) -> protocol.Converted:
    request = protocol.Convert(
        artifact=str(artifact.folder),
        precision=precision,
        calibration=calibration.source,
        samples=calibration.samples,
        method=calibration.method,
        weights=weights,
        keep=list(keep),
        ranges=ranges,
        folder=str(part),
    )
    log: str | None = None
    try:
        with launcher.start(f"convert-{precision}") as worker:
            log = str(worker.log)
            return worker.call(request, protocol.Converted, timeout_s=launcher.timeout_s, on_progress=on_progress)
    except (UsageError, UnsupportedError):
        raise
    except OutOfMemory as exc:
        exc.log = log
        raise
    except HarnessError as exc:
        if "No space left" in exc.message:
            raise StoreError(
                f"the {precision} graph cannot be written: No space left on device", hint=FREE_SPACE
            ) from exc
        failure = ExportError(exc.message, hint=exc.hint, log=log)
        failure.worker_traceback = exc.worker_traceback
        raise failure from exc


def _manifest(artifact: Artifact, precision: str, converted: protocol.Converted, part: Path) -> object:
    return msgspec.structs.replace(
        artifact.manifest,
        precision=precision,
        module=False,
        opset=converted.opset,
        export_s=converted.seconds,
        versions={**artifact.manifest.versions, **converted.versions},
        notes=converted.notes,
        files={path.name: sha256(path) for path in sorted(part.iterdir()) if path.is_file()},
    )


def _key(artifact: Artifact, precision: str, calibration: Calibration, keep: Sequence[str]) -> str:
    parts = [artifact.hash, precision, *map(str, library_versions(CONVERTERS).items())]
    parts += [f"keep {name}" for name in keep]
    if precision in CALIBRATED:
        parts += [calibration.method, str(calibration.samples), *_contents(calibration.source)]
    parts += [sha256(Path(__file__).with_name(f"{name}.py")) for name in WORKER_HALF]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _contents(source: str | None) -> list[str]:
    """Return the digests of the user's calibration files: one that changed makes another graph."""
    if source is None:
        return []
    kind, _, rest = source.partition(":")
    if kind not in KINDS:
        path = Path(source)
        files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
        return [source, *(f"{one.name} {sha256(one)}" for one in files)]
    # A data set may be all of ImageNet: the files of a folder are told by size and time, single ones by content.
    told = [source]
    for path in map(Path, rest.split(",")):
        told += map(_told, sorted(path.rglob("*"))) if path.is_dir() else [f"{path.name} {sha256(path)}"]
    return told


def _told(file: Path) -> str:
    status = file.stat()
    return f"{file} {status.st_size} {status.st_mtime_ns}"
