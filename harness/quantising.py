"""Which nodes of a graph are quantised: those that multiply by weights, and what hands their results on as they are.

| node | its inputs | its result |
|---|---|---|
| Conv, ConvTranspose with constant weights | quantised | quantised: the next one takes it so |
| Gemm, MatMul with constant weights | quantised | stays float32: the int32 sums scaled once |
| pooling, Add, Concat and their like, of nothing but such results of convolutions | quantised | quantised |
| all else: softmax, normalisation, a product of two activations, a residual sum in a transformer | float32 | float32 |

So do the tools of the hardware's makers. Quantising all that has a kernel costs more than it saves: a scale for
attention weights of 1/128 turns them to zero, and the outliers of a transformer's residual sums take all steps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = ("Gemm", "MatMul")
"""Their results stay in float32."""
MADE = re.compile(r"_token_(\d+)$")
"""How names end that ONNX Runtime makes for tensors of its own."""
HANDS_ON = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "GlobalAveragePool",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Resize",
        "Split",
    }
    | {"Flatten", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose result has the scale of what they are given, or nearly so."""


def make_ready(path: Path) -> None:
    """Give each node of an ONNX file that has no name one, and each tensor that ONNX Runtime named another.

    Quantisation is told by names what to leave alone. And ONNX Runtime counts anew when it loads what it has written:
    it then makes `gemm_input_shape_token_0` once more, and refuses the graph that has it already.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        node.name = node.name or _free(node.op_type, taken)
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    _rename(model.graph, fixed)
    onnx.save(model, path)


def _rename(graph: Any, fixed: Collection[str]) -> None:  # a GraphProto, which is not typed
    def other(name: str) -> str:
        return name if name in fixed else MADE.sub(r"__made_\1", name)

    for entry in (*graph.initializer, *graph.value_info):
        entry.name = other(entry.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = map(other, list(names))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, fixed)


def _free(stem: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    name = next(name for number in itertools.count() if (name := f"{stem}_{number}") not in taken)
    taken.add(name)
    return name


def quantised_nodes(path: Path) -> list[str]:
    """Return the names of the nodes in an ONNX file that are to be quantised, in the order of the graph."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constant = {entry.name for entry in graph.initializer}
    constant |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    narrow: set[str] = set()
    found = []
    for node in graph.node:  # ONNX keeps them in an order in which they can be computed
        weighted = len(node.input) > 1 and node.input[1] in constant and node.input[0] not in constant
        if (weighted and node.op_type in CONVOLUTIONS) or _hands_on(node, constant, narrow):
            narrow |= set(node.output)
        elif not (weighted and node.op_type in PRODUCTS):
            continue
        found.append(str(node.name))
    return found


def _hands_on(node: Any, constant: Collection[str], narrow: Collection[str]) -> bool:  # a NodeProto, not typed
    given = [name for name in node.input if name and name not in constant]
    return node.op_type in HANDS_ON and bool(given) and all(name in narrow for name in given)
