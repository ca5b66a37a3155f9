"""What bisects have measured, a file a pair in the cache, so that no pair is measured twice.

<cache>/bisects/<key>.json

The key holds all that a figure depends on; thresholds are no part of it. A pair whose measuring was interrupted is
remembered with its run, which goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.bisect.found import Measured
from harness.bisect.pairs import Figure
from harness.paths import cache_root, make_folder, write_atomically


def memory_root() -> Path:
    """Return the folder of what bisects have measured."""
    return cache_root() / "bisects"


class Memory:
    """What is known of the pairs of one bisect."""

    def __init__(self, subject: Sequence[str], figure: Figure) -> None:
        """Take what all pairs share: model, weights, shapes, backend, options, machine."""
        self._parts = [*subject, figure]

    def read(self, before: str, after: str) -> Measured | None:
        """Return what is known of a pair; None where that is nothing, or cannot be read any more."""
        try:
            return msgspec.json.decode(self._path(before, after).read_bytes(), type=Measured)
        except (OSError, msgspec.DecodeError):
            return None

    def write(self, before: str, after: str, measured: Measured) -> None:
        """Remember a pair.

        Raises:
            StoreError: The cache cannot be written.
        """
        make_folder(memory_root(), "the cache folder")
        write_atomically(self._path(before, after), msgspec.json.encode(measured))

    def _path(self, before: str, after: str) -> Path:
        key = hashlib.sha256(msgspec.json.encode([*self._parts, before, after])).hexdigest()[:24]
        return memory_root() / f"{key}.json"
