"""What every kind of export writes and says alike: references beside their inputs, specs, a library's failure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.artifact import write_tensors
from harness.errors import ExportError

NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
MESSAGE_CHARACTERS = 600


def write_set(folder: Path, index: int, tensors: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Write a set of inputs and the reference's outputs for it.

    Raises:
        ExportError: An output holds NaN or infinite values: nothing can be compared with those.
    """
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ExportError(
                f"the reference output '{name}' holds NaN or infinite values (input set {index})",
                hint="give the model inputs that it was made for: --inputs FILE.npz",
            )
    write_tensors(folder / f"inputs-{index}.safetensors", dict(tensors))
    write_tensors(folder / f"reference-{index}.safetensors", dict(outputs))


def specs(tensors: Mapping[str, np.ndarray]) -> list[tuple[str, str, list[int]]]:
    """Return name, dtype and shape of each tensor."""
    return [(name, str(array.dtype), list(array.shape)) for name, array in tensors.items()]


def failed(what: str, exc: Exception, *, hint: str | None = None) -> Exception:
    """Return the error for a library's exception: its root cause in a few words, or itself where memory ran out."""
    root: BaseException = exc
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(root).strip()
    if isinstance(root, MemoryError) or any(sign in text for sign in NO_MEMORY):
        return MemoryError(text)
    text = text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS].rstrip() + " ..."
    return ExportError(f"{what}: {type(root).__name__}: {text}", hint=hint)
