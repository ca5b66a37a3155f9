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

from collections.abc import Collection
from pathlib import Path
from typing import Any

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = ("Gemm", "MatMul")
"""Their results stay in float32."""
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


def name_nodes(path: Path) -> None:
    """Give each node of an ONNX file that has no name one: quantisation is told by names what to leave alone."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    taken = {node.name for node in model.graph.node}
    nameless = [node for node in model.graph.node if not node.name]
    for number, node in enumerate(nameless):
        node.name = next(
            name for extra in range(len(taken) + 1) if (name := f"{node.op_type}_{number}" + "_" * extra) not in taken
        )
        taken.add(node.name)
    if nameless:
        onnx.save(model, path)


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
