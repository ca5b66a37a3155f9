"""An artifact's graph for a library that is older than its opset or its file format: the parent's half.

The artifact is exported once, for the newest. What an older release cannot read is written again in the form that it
can; the arithmetic stays the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from harness import protocol
from harness.api import Backend, OnnxLimits
from harness.artifact import Artifact, Manifest, sha256
from harness.derived import ensure_derived, named
from harness.environment import library_versions
from harness.errors import HarnessError, OutOfMemory, StoreError, UnsupportedError
from harness.launcher import Launcher
from harness.plan import FP32
from harness.precisions import CONVERTERS

WORKER_HALF = ("lowerer", "domains")
"""Modules of ours on which the result depends."""
_IR_VERSION = 0x08
"""Tag of the first field of an ONNX file: number 1, a varint."""


def fits(graph: Artifact, limits: OnnxLimits) -> bool:
    """Say whether a library with these limits reads a graph as it is."""
    with graph.onnx_path.open("rb") as file:
        tag, version = file.read(2)
    # Below 128 a varint is one byte. A file that starts otherwise is looked at by the library that knows.
    known = tag == _IR_VERSION and version < 128
    return known and version <= limits.ir and graph.manifest.opset <= limits.opset


def readable(graph: Artifact, backend: type[Backend], release: str | None, launcher: Launcher) -> Artifact:
    """Return a graph in a form that a backend's release reads; without one, the graph itself.

    Raises:
        HarnessError: As `ensure_lowered()`.
    """
    limits = backend.reads(release) if release is not None else None
    return graph if limits is None else ensure_lowered(graph, limits, launcher)


def ensure_lowered(graph: Artifact, limits: OnnxLimits, launcher: Launcher) -> Artifact:
    """Return a graph in a form that a library with these limits reads: the graph itself where it is one already.

    Raises:
        UnsupportedError: It cannot be had in an older form.
        OutOfMemory: Rewriting it took more than a worker may take.
        StoreError: The cache cannot be written.
    """
    if fits(graph, limits):
        return graph
    libraries = map(str, library_versions(CONVERTERS).items())
    own = [sha256(Path(__file__).with_name(f"{name}.py")) for name in WORKER_HALF]
    key = hashlib.sha256("\n".join([graph.hash, *own, *libraries]).encode()).hexdigest()[:20]
    folder = named(graph, f"opset{limits.opset}-ir{limits.ir}-{key}")
    return ensure_derived(graph, folder, "older", lambda part: _lower_into(part, graph, limits, launcher))[0]


def _lower_into(part: Path, graph: Artifact, limits: OnnxLimits, launcher: Launcher) -> Manifest:
    request = protocol.Lower(artifact=str(graph.folder), opset=limits.opset, ir=limits.ir, folder=str(part))
    log: str | None = None
    try:
        with launcher.start("lower") as worker:
            log = str(worker.log)
            done = worker.call(request, protocol.Lowered, timeout_s=launcher.timeout_s)
        if done.opset != graph.manifest.opset and graph.manifest.precision == FP32:
            # Unlike a change of format, a change of opset replaces nodes.
            with launcher.start("lower-check") as worker:
                log = str(worker.log)
                check = protocol.Check(folder=str(part), input_sets=graph.manifest.input_sets, threads=launcher.threads)
                worker.call(check, protocol.Checked, timeout_s=launcher.timeout_s)
    except (UnsupportedError, OutOfMemory, StoreError) as exc:
        exc.log = exc.log or log
        raise
    except HarnessError as exc:
        failure = UnsupportedError(
            f"the graph cannot be written for opset {limits.opset}, which is the newest that this release reads: "
            f"{exc.message}",
            hint="export it in an older one: --opset N",
            log=log,
        )
        failure.worker_traceback = exc.worker_traceback
        raise failure from exc
    return msgspec.structs.replace(graph.manifest, opset=done.opset)
