"""A graph in float16: the library's conversion, and what it leaves inconsistent mended. Imports onnx: workers only.

The library narrows what a Cast to float32 gives without telling the Cast, and lets nodes that read an output of the
graph read its float32 copy. Either way a node gets operands of two types, which no backend takes.
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

    casts = {name for node in _casts_to_float(model.graph) for name in (node.name, *node.output) if name}
    half = float16.convert_float_to_float16(
        model,
        max_finite_val=HALF_MAX,
        keep_io_types=True,
        disable_shape_infer=not infer_shapes,
        node_block_list=list(keep),
    )
    _narrow_casts(half.graph, casts - set(keep), set(keep))
    _read_before_output(half.graph)
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


def _read_before_output(graph: Any) -> None:
    """Let nodes that read an output of the graph read what it was cast from."""
    outputs = {value.name for value in graph.output}
    before = {node.output[0]: node.input[0] for node in _casts_to_float(graph) if node.output[0] in outputs}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in before:
                node.input[index] = before[name]


def _casts_to_float(graph: Any) -> Iterator[Any]:
    from onnx import TensorProto

    for node in graph.node:
        if node.op_type == "Cast" and any(one.name == "to" and one.i == TensorProto.FLOAT for one in node.attribute):
            yield node
