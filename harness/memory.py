"""What a model needs, before it is tried: memory to export it, and room for the export on the disk.

Estimates err to the low side: refusing a model that would have fitted is worse than a worker that its limit ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness import registry
from harness.api import InputSpec, ReferenceModel
from harness.modelspec import ModelSpec

GIB = 1 << 30
BYTES_A_PARAMETER = 4
"""Reference models are float32."""
FILE_COPIES = 2
"""Of an ONNX file: parsed, and as the session's own initialisers."""
EXPORT_COPIES = 2
"""Of the weights on the disk: for torch, and as the ONNX file's data, where linear layers lie transposed."""


def to_export(spec: ModelSpec, dims: Mapping[str, int]) -> int | None:
    """Return the memory in bytes that exporting a model takes at least, or None where nobody knows.

    Of a reference model: what was measured at its default sizes, and what its inputs have grown by since.
    """
    if spec.kind == "reference":
        model = reference(spec)
        grown = inputs_bytes(model.inputs, {**model.dims, **dims}) - inputs_bytes(model.inputs, model.dims)
        return int(model.memory_gib * GIB) + max(0, grown)
    return FILE_COPIES * _file_bytes(spec) or None


def on_disk(spec: ModelSpec) -> int:
    """Return the bytes that an export takes on the disk, as far as they are known."""
    if spec.kind == "reference":
        return EXPORT_COPIES * BYTES_A_PARAMETER * reference(spec).parameters
    return _file_bytes(spec)


def inputs_bytes(inputs: tuple[InputSpec, ...], dims: Mapping[str, int]) -> int:
    """Return the size of one set of inputs."""
    return sum(math.prod(spec.at(dims)) * np.dtype(spec.dtype).itemsize for spec in inputs)


def reference(spec: ModelSpec) -> ReferenceModel:
    """Return a reference model with its options, not built."""
    model = registry.model(spec)
    assert isinstance(model, ReferenceModel)
    return model


def _file_bytes(spec: ModelSpec) -> int:
    path = Path(spec.name)
    return path.stat().st_size if spec.kind in ("onnx", "exported") and path.is_file() else 0
