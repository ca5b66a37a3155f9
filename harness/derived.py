"""Artifacts made from an artifact: another form of its graph, with the inputs and references of the source.

Made once under a lock and found again by name, so the name must hold all that they depend on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock

from harness.artifact import MANIFEST, Artifact, Manifest, sha256
from harness.errors import StoreError
from harness.export import exports_root
from harness.paths import link_or_copy, make_folder, write_atomically

TENSORS = ("inputs-*.safetensors", "reference-*.safetensors", "golden-*.safetensors")


def named(artifact: Artifact, suffix: str) -> Path:
    """Return where a form of an artifact's graph belongs."""
    return make_folder(exports_root(), "the cache folder") / f"{artifact.folder.name[:60]}-{suffix}"


def ensure_derived(
    artifact: Artifact, folder: Path, what: str, make: Callable[[Path], Manifest]
) -> tuple[Artifact, bool]:
    """Return an artifact made from another one, and whether it was in the cache.

    `make` writes the graph into the folder that it is given, where the source's tensors lie already, and returns the
    manifest without the list of files; `what` names the graph in an error.

    Raises:
        StoreError: The cache cannot be written.
    """
    root = folder.parent
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
            for file in TENSORS:
                for path in artifact.folder.glob(file):
                    link_or_copy(path, part / path.name)
            manifest = make(part)
            files = {path.name: sha256(path) for path in sorted(part.iterdir()) if path.is_file()}
            manifest = msgspec.structs.replace(manifest, module=False, files=files)
            write_atomically(part / MANIFEST, msgspec.json.encode(manifest))
            part.rename(folder)
        except OSError as exc:
            raise StoreError(f"the {what} graph cannot be written to {folder}: {exc.strerror}") from exc
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Artifact.open(folder), False
