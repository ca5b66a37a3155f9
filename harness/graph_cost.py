"""What a graph costs at least: its floating-point operations and the bytes that must move. Imports onnx: for workers.

Operations are those of matrix products and convolutions, a multiply-add counted as two; everything else is small beside
them. Bytes are the least that any engine must move from and to memory: every weight read once, of a table that is only
looked up in the rows that are looked up, every input read and every output written once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # onnx' messages are not typed

Shape = tuple[int, ...]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one forward pass; None where shapes are not known."""

    gflop: float | None
    least_bytes: int | None


def cost(path: Path) -> Cost:
    """Return what the graph in a file costs; weights that lie beside it are not read."""
    import onnx
    from onnx import inliner, shape_inference

    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            model = inliner.inline_local_functions(model)
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = _shapes(graph)
        return Cost(gflop=_gflop(graph, shapes), least_bytes=_least_bytes(graph, shapes))
    except Exception:  # a figure for the report is not worth a failed export
        return Cost(gflop=None, least_bytes=None)


def _shapes(graph: Any) -> dict[str, tuple[int, Shape]]:
    """Return the element type and the shape of every tensor whose sizes are all known."""
    found = {one.name: (one.data_type, tuple(one.dims)) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            sizes = kind.shape.dim
            if all(size.HasField("dim_value") for size in sizes):
                found[value.name] = (kind.elem_type, tuple(size.dim_value for size in sizes))
    for node in graph.node:  # a constant is a weight too
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = (attribute.t.data_type, tuple(attribute.t.dims))
    return found


def _gflop(graph: Any, shapes: Mapping[str, tuple[int, Shape]]) -> float | None:
    total = 0
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return None  # how often a loop runs, and which branch, is not in the graph
        count = _COUNTS.get(node.op_type)
        if count is None:
            continue
        try:
            total += 2 * count(node, [shapes[name][1] if name else () for name in (*node.input, *node.output)])
        except KeyError:
            return None
    return total / 1e9


def _matrix_product(node: Any, shapes: list[Shape]) -> int:
    left = shapes[0]
    return math.prod(shapes[_output(node)]) * left[-1]


def _gemm(node: Any, shapes: list[Shape]) -> int:
    turned = _attribute(node, "transA", 0)
    return math.prod(shapes[_output(node)]) * shapes[0][0 if turned else 1]


def _convolution(node: Any, shapes: list[Shape]) -> int:
    kernel = shapes[_WEIGHTS.get(node.op_type, 1)]  # (out channels, in channels / groups, *window)
    return math.prod(shapes[_output(node)]) * math.prod(kernel[1:])


def _transposed_convolution(node: Any, shapes: list[Shape]) -> int:
    return math.prod(shapes[0]) * math.prod(shapes[1][1:])  # (in channels, out channels / groups, *window)


def _quantised_product(node: Any, shapes: list[Shape]) -> int:
    return math.prod(shapes[_output(node)]) * shapes[0][-1]


def _einsum(node: Any, shapes: list[Shape]) -> int:
    terms = _attribute(node, "equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):  # the output's shape comes last, and has no term here
        sizes |= dict(zip(term, shape, strict=True))
    return math.prod(sizes.values())


def _attention(node: Any, shapes: list[Shape]) -> int:
    query, key, value = shapes[:3]  # (batch, heads, length, width) each
    if len(query) != 4:
        raise KeyError("heads")  # they are in the attributes then; nothing here exports that form
    return math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _recurrent(node: Any, shapes: list[Shape]) -> int:
    steps, batch, _ = shapes[0]
    directions, gated, width = shapes[1]
    return steps * batch * directions * gated * (width + gated // GATES[node.op_type])


_WEIGHTS = {"QLinearConv": 3}
_COUNTS = {
    "MatMul": _matrix_product,
    "MatMulInteger": _quantised_product,
    "QLinearMatMul": _quantised_product,
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(GATES, _recurrent),
}


def _output(node: Any) -> int:
    """Return where the first output's shape is among those of inputs and outputs."""
    return len(node.input)


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _least_bytes(graph: Any, shapes: Mapping[str, tuple[int, Shape]]) -> int | None:
    weights = {one.name for one in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outside = [one.name for one in (*graph.input, *graph.output) if one.name not in weights]
    try:
        moved = sum(_bytes(shapes[name]) for name in outside)
        return moved + sum(_read(name, readers[name], shapes) for name in weights if name in readers)
    except KeyError:
        return None


def _read(name: str, readers: list[Any], shapes: Mapping[str, tuple[int, Shape]]) -> int:
    """Return the bytes that are read of a weight."""
    whole = _bytes(shapes[name])
    looked_up = [node for node in readers if node.op_type == "Gather" and node.input[0] == name]
    if len(looked_up) < len(readers) or any(_attribute(node, "axis", 0) for node in looked_up):
        return whole
    rows = sum(math.prod(shapes[node.input[1]][1]) for node in looked_up)
    return min(whole, rows * whole // max(shapes[name][1][0], 1))


def _bytes(of: tuple[int, Shape]) -> int:
    import onnx

    kind, shape = of
    return math.prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
