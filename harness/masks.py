"""Where a graph hides positions with huge negative numbers: what no scale of 127 steps can hold beside ordinary values.

A mask adds the lowest float32 to attention scores before a softmax. A scale that covers it is 2.7e36, and every score
becomes 0: attention turns uniform without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HUGE = 1e30
CARRIES = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Identity", "Mul", "Reshape", "Slice", "Sub", "Transpose", "Unsqueeze", "Where"}
)
"""Operators whose result holds a huge element of an input still; a softmax ends it."""


def masking_nodes(path: Path) -> list[str]:
    """Return the names of the nodes in an ONNX file that read a mask, from its constant to the softmax that ends it."""
    import onnx

    graph = onnx.load(path).graph
    carried = {entry.name for entry in graph.initializer if _huge(entry)}
    found = []
    for node in graph.node:  # ONNX keeps them in an order in which they can be computed
        if node.op_type == "Constant" and any(_huge(given.t) for given in node.attribute if given.name == "value"):
            carried |= set(node.output)
        if carried.isdisjoint(node.input):
            continue
        found.append(str(node.name))
        if node.op_type in CARRIES:
            carried |= set(node.output)
    return [name for name in found if name]


def _huge(tensor: Any) -> bool:  # a TensorProto, which is not typed
    import numpy as np
    import onnx

    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return bool(values.size and np.abs(values).max() > HUGE)
