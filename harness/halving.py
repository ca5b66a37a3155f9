"""A graph in float16: the library's conversion, and what it leaves inconsistent mended. Imports onnx: workers only.

The library narrows what a Cast to float32 gives without telling the Cast, and lets nodes that read an output of the
graph read its float32 copy: either way a node gets operands of two types, which no backend takes. And an output that a
kept node gives is narrowed all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

HALF_MAX = 65504.0
"""The largest finite float16."""


def halved(model: Any, keep: Collection[str], *, infer_shapes: bool) -> Any:  # ModelProtos, which are not typed
    """Return the model in float16 with inputs and outputs in float32, the nodes named in `keep` in float32 too."""
    from onnxconverter_common import float16

    outputs = {value.name for value in model.graph.output if _is_float(value)}
    casts = {name for node in _casts_to_float(model.graph) for name in (node.name, *node.output) if name}
    half = float16.convert_float_to_float16(
        model,
        max_finite_val=HALF_MAX,
        keep_io_types=True,
        disable_shape_infer=not infer_shapes,
        node_block_list=list(keep),
    )
    _narrow_casts(half.graph, casts - set(keep), set(keep))
    _read_before_output(half.graph, set(keep))
    _widen_outputs(half.graph, outputs)
    return half


def beyond(model: Any) -> int:
    """Return how many constants of a model hold finite values that float16 cannot."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    tensors = [
        *graph.initializer,
        *(given.t for node in graph.node for given in node.attribute if given.name == "value"),
    ]
    arrays = (numpy_helper.to_array(one) for one in tensors if one.data_type == TensorProto.FLOAT)
    return sum(bool((np.isfinite(array) & (np.abs(array) > HALF_MAX)).any()) for array in arrays)


def _narrow_casts(graph: Any, casts: Collection[str], keep: Collection[str]) -> None:
    """Let the source's own Casts to float32 give float16; those that the conversion added stay as they are."""
    from onnx import TensorProto

    for node in _casts_to_float(graph):
        if node.name not in keep and (node.name in casts or node.output[0] in casts):
            node.attribute[0].i = TensorProto.FLOAT16


def _read_before_output(graph: Any, keep: Collection[str]) -> None:
    """Let nodes that read an output of the graph read what it was cast from; those that are kept want float32."""
    outputs = {value.name for value in graph.output}
    before = {node.output[0]: node.input[0] for node in _casts_to_float(graph) if node.output[0] in outputs}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in before and node.name not in keep:
                node.input[index] = before[name]


def _widen_outputs(graph: Any, names: Collection[str]) -> None:
    """Give outputs in float32 that a kept node computes so; what reads them reads the narrowed copy as before."""
    from onnx import TensorProto, helper

    for value in graph.output:
        if value.name not in names or _is_float(value):
            continue
        producer = next(node for node in graph.node if value.name in node.output)
        inner = f"{value.name}__narrow"
        for node in graph.node:
            for given in (node.input, node.output):
                for index, name in enumerate(given):
                    given[index] = inner if name == value.name else name
        wide = producer.input[0] if producer.op_type == "Cast" else inner
        cast = helper.make_node("Cast", [wide], [value.name], name=f"{value.name}__widened", to=TensorProto.FLOAT)
        graph.node.append(cast)
        value.type.tensor_type.elem_type = TensorProto.FLOAT


def _is_float(value: Any) -> bool:
    from onnx import TensorProto

    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _casts_to_float(graph: Any) -> Iterator[Any]:
    from onnx import TensorProto

    for node in graph.node:
        if node.op_type == "Cast" and any(one.name == "to" and one.i == TensorProto.FLOAT for one in node.attribute):
            yield node
