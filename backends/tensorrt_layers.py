"""The layers of a built engine, as TensorRT's inspector lists them: `layers.json` beside the plan.

The inspector answers in JSON whose form depends on the version and on how the engine was built:

| | a layer | data type of a tensor |
|-|-|-|
| names only | its name | - |
| detailed, 10 | an object | at `Format/Datatype`: `Row major linear FP16 format`, later `Half` |
| detailed, 11 | an object | at `DataType` or `Datatype`, apart from `Format` |
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

LAYERS = "layers.json"

_PLACES = ("DataType", "Datatype", "Format/Datatype")
_TYPE = re.compile(
    r"\b(?:(FP32|Float)|(FP16|Half)|(BF16|BFloat16)|(FP8|E4M3\w*)|(FP4|E2M1\w*)"
    r"|(Int8)|(Int32)|(Int64)|(Int4)|(UInt8)|(Bool))\b",
    re.IGNORECASE,
)
_NAMES = (
    "float32", "float16", "bfloat16", "float8", "float4", "int8", "int32", "int64", "int4", "uint8", "bool",
)  # fmt: skip


class Layer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One layer after fusion."""

    name: str
    kind: str | None = None
    """TensorRT's word for it, such as `CaskConvolution`; None where it tells names only."""
    inputs: list[str] = []
    """Data types, one a tensor; `?` where it is not told."""
    outputs: list[str] = []
    origin: str = ""
    """TensorRT's words for the nodes that it was made of: `[ONNX Layer: /conv]`."""


def parse(information: str) -> list[Layer]:
    """Return the layers from the inspector's JSON, in its order; empty where it tells nothing or is no JSON."""
    try:
        told = json.loads(information, strict=False)  # separators in names are control characters, escaped or not
    except ValueError:
        return []
    layers = told.get("Layers") if isinstance(told, dict) else None
    return [_layer(entry) for entry in layers] if isinstance(layers, list) else []


def data_types(layers: list[Layer]) -> str:
    """Return how many layers compute into which data type, most first: `float16 52, float32 3`; empty if not told."""
    counts = Counter(layer.outputs[0] for layer in layers if layer.outputs)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common() if name != "?")


def write(folder: Path, layers: list[Layer]) -> None:
    """Write `layers.json`, one layer a line, so that two of them can be compared as text."""
    lines = ",\n".join(msgspec.json.encode(layer).decode() for layer in layers)
    (folder / LAYERS).write_text(f'{{"schema": 1, "layers": [\n{lines}\n]}}\n')


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(name=str(entry))
    kind = entry.get("LayerType")
    return Layer(
        name=str(entry.get("Name", "")),
        kind=None if kind is None else str(kind),
        inputs=[_data_type(tensor) for tensor in entry.get("Inputs") or []],
        outputs=[_data_type(tensor) for tensor in entry.get("Outputs") or []],
        origin=str(entry.get("Metadata") or ""),
    )


def _data_type(tensor: Any) -> str:
    told = next((str(tensor[place]) for place in _PLACES if place in tensor), "") if isinstance(tensor, dict) else ""
    found = _TYPE.search(told)
    return _NAMES[found.lastindex - 1] if found and found.lastindex else "?"
