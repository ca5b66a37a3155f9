"""An artifact in another precision: the parent's half. Made once, cached, and read by all backends of its kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness import protocol
from harness.artifact import Artifact, Manifest, sha256
from harness.datasets import KINDS
from harness.derived import ensure_derived, named
from harness.environment import library_versions
from harness.errors import ExportError, HarnessError, OutOfMemory, StoreError, UnsupportedError, UsageError
from harness.launcher import Launcher, OnProgress
from harness.paths import FREE_SPACE
from harness.precisions import CALIBRATED, CONVERTERS, PRECISIONS, Source

WORKER_HALF = (
    "calibrating",
    "converter",
    "datasets",
    "domains",
    "halving",
    "inputs",
    "images",
    "masks",
    "narrowing",
    "quantising",
    "torch_quantising",
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
    source: Source = "onnx",
    keep: Sequence[str] = (),
) -> tuple[Artifact, bool]:
    """Return the artifact's graph, or its torch module, in another precision, and whether it was in the cache.

    It is an artifact of its own, with the inputs and references of its source and without the form that it was not
    made for. The nodes of the graph named in `keep` stay in float32.

    Raises:
        UnsupportedError: The graph cannot be had in this precision.
        UsageError: The calibration inputs do not fit the model, or it is quantised already.
        ExportError: The conversion failed.
        OutOfMemory: It took more than a worker may take.
        StoreError: The cache cannot be written.
    """
    assert precision in PRECISIONS
    form = "" if source == "onnx" else f"-{source}"
    folder = named(artifact, f"{precision}{form}-{_key(artifact, precision, calibration, keep)}")
    # Graphs that differ only in what they keep share their scales, and one calibration.
    shared = named(artifact, f"{_key(artifact, precision, calibration, ())}.ranges")
    ranges = str(shared) if keep and precision == "int8" else None

    def make(part: Path) -> Manifest:
        converted = _convert_into(
            part, artifact, precision, source, calibration, launcher, weights, keep, ranges, on_progress
        )
        return _manifest(artifact, precision, converted)

    return ensure_derived(artifact, folder, precision, make)


def _convert_into(
    part: Path,
    artifact: Artifact,
    precision: str,
    source: Source,
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
        source=source,
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


def _manifest(artifact: Artifact, precision: str, converted: protocol.Converted) -> Manifest:
    return msgspec.structs.replace(
        artifact.manifest,
        precision=precision,
        opset=converted.opset,
        export_s=converted.seconds,
        versions={**artifact.manifest.versions, **converted.versions},
        notes=converted.notes,
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
