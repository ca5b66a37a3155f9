"""One copy of large weights for torch and ONNX alike: the ONNX file's external data may lie in the safetensors file.

Both formats hold plain little-endian bytes, and ONNX names a file, an offset and a length for each tensor. A model of
several gigabytes is then on the disk once.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64
"""Of what stays in a file of its own, in bytes: vector loads want it."""


class Extent(NamedTuple):
    """A stretch of a file, in bytes."""

    start: int
    length: int


def share(model_path: Path, weights_path: Path) -> None:
    """Point an ONNX file's external tensors to a safetensors file, where that has the same bytes under the same name.

    What it lacks, such as constants that the exporter folded, stays in the file beside the model.
    """
    import onnx

    data_path = model_path.with_name(f"{model_path.name}.data")
    if not data_path.is_file():
        return
    model = onnx.load(model_path, load_external_data=False)
    known = extents(weights_path)
    data = np.memmap(data_path, mode="r", dtype=np.uint8)
    weights = np.memmap(weights_path, mode="r", dtype=np.uint8)
    rest: list[tuple[Any, Extent]] = []  # the tensor is protobuf's
    for tensor in model.graph.initializer:
        found = _external(tensor, data_path.name)
        if found is None:
            continue
        other = known.get(tensor.name)
        if (
            other is not None
            and other.length == found.length
            and np.array_equal(_cut(data, found), _cut(weights, other))
        ):
            _point(tensor, weights_path.name, other)
        else:
            rest.append((tensor, found))
    _keep(data_path, data, rest)
    onnx.save(model, model_path)


def extents(path: Path) -> dict[str, Extent]:
    """Return where the bytes of each tensor of a safetensors file lie: its header is JSON behind its own length."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    begin = 8 + length
    return {
        name: Extent(begin + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _external(tensor: Any, location: str) -> Extent | None:
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    where = {entry.key: entry.value for entry in tensor.external_data}
    if where.get("location") != location:
        return None
    return Extent(int(where.get("offset", 0)), int(where["length"]))


def _cut(content: np.ndarray, extent: Extent) -> np.ndarray:
    return content[extent.start : extent.start + extent.length]


def _point(tensor: Any, location: str, extent: Extent) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", extent.start), ("length", extent.length)):
        tensor.external_data.add(key=key, value=str(value))


def _keep(path: Path, content: np.ndarray, rest: list[tuple[Any, Extent]]) -> None:
    if not rest:
        path.unlink()
        return
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        for tensor, extent in rest:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            _point(tensor, path.name, Extent(file.tell(), extent.length))
            file.write(_cut(content, extent).data)
    os.replace(part, path)
