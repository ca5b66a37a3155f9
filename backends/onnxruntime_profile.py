"""ONNX Runtime's own profile: its trace, and the nodes of the exported graph that each node of the optimised one does.

An optimised node is found again by what it computes: most fusions keep the name of the tensor that they end in. Others
are named after a node or a tensor: `relu_3_nchwc` computes `relu_3` in another layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # a trace is JSON

from harness.graph_nodes import GraphNode, NodeGraph, adopt, cover
from harness.operators import OperatorTime, Profile

CLOCK = "ONNX Runtime's profiler"
WARM_UP = 2
"""Runs before those that count: the profiled session is another one than the measured one, and starts cold."""
LAYOUT = ("ReorderInput", "ReorderOutput")
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast")
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Gelu")
_BLOCKED = re.compile(r"(.*)_nchwc(?:_token_\d+)?")
_BIASED = "/MatMulAddFusion"
_END = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A node of the optimised graph over all counted runs."""

    index: int
    """As ONNX Runtime numbers the nodes of the loaded graph."""
    name: str
    op: str
    calls: int
    total_ns: int


def timed(trace: Sequence[Mapping[str, Any]], *, skip: int = WARM_UP) -> list[Timed]:
    """Return what a trace says of each node, in order of execution, without the first runs.

    A node that runs a graph of its own, such as a loop, holds the time of the nodes in it.
    """
    runs = sorted((one["ts"], one["ts"] + one["dur"]) for one in trace if one.get("name") == "model_run")[skip:]
    events = [one for one in trace if one.get("cat") == "Node" and str(one["name"]).endswith(_END)]
    found: dict[tuple[int, str], list[int]] = {}
    kinds: dict[tuple[int, str], str] = {}
    end = -1
    for event in sorted(events, key=lambda one: (one["ts"], -one["dur"])):
        if event["ts"] < end or not any(start <= event["ts"] <= stop for start, stop in runs):
            continue
        end = event["ts"] + event["dur"]
        key = int(event["args"].get("node_index", -1)), str(event["name"]).removesuffix(_END)
        found.setdefault(key, []).append(event["dur"])
        kinds[key] = str(event["args"].get("op_name", "?"))
    return [
        Timed(index=index, name=name, op=kinds[index, name], calls=len(took), total_ns=1000 * sum(took))
        for (index, name), took in found.items()
    ]


def profile(trace: Sequence[Mapping[str, Any]], exported: NodeGraph, optimised: NodeGraph) -> Profile:
    """Return a trace as a profile, with the nodes of the exported graph."""
    nodes = timed(trace)
    own = [_of(node, optimised) for node in nodes]
    covered, eliminated = cover(exported, anchors(own, exported))
    moves = {index for index, node in enumerate(own) if node is None or node.op in (*LAYOUT, *MOVES)}
    covered = adopt(covered, _readers(own), moves)
    return Profile(
        clock=CLOCK,
        operators=[
            OperatorTime(name=node.name, kind=node.op, nodes=names, calls=node.calls, total_ns=node.total_ns)
            for node, names in zip(nodes, covered, strict=True)
        ],
        eliminated=eliminated,
    )


def _of(node: Timed, optimised: NodeGraph) -> GraphNode | None:
    if 0 <= node.index < len(optimised.nodes):
        found = optimised.nodes[node.index]
        if node.name in (found.name, "") and found.op == node.op:
            return found
    return next((one for one in optimised.nodes if one.name == node.name and one.op == node.op), None)


def anchors(nodes: Iterable[GraphNode | None], exported: NodeGraph) -> list[set[int]]:
    """Return for each node of the optimised graph the nodes of the exported one that it certainly does."""
    maker, readers = exported.maker(), exported.readers()
    named = {node.name: position for position, node in enumerate(exported.nodes)}
    out: list[set[int]] = []
    for node in nodes:
        if node is None or node.op in LAYOUT:
            out.append(set())
            continue
        kept = {maker[name] for name in node.outputs if name in maker}
        if node.op in MOVES and all(exported.nodes[position].op != node.op for position in kept):
            kept = set()  # put in by the optimiser, behind what computes the tensor
        if not kept and (begin := _begin(node.name, named, maker)) is not None:
            kept = _onwards(begin, node, exported, readers)
        out.append(kept)
    return out


def _begin(name: str, named: Mapping[str, int], maker: Mapping[str, int]) -> int | None:
    """Return the node that an optimised one is named after: `relu_3_nchwc`, `node_MatMul_32/MatMulAddFusion`."""
    blocked = _BLOCKED.fullmatch(name)
    if blocked and blocked[1] in maker:
        return maker[blocked[1]]
    return named.get(name, named.get(name.rpartition("/")[0]))


def _onwards(position: int, node: GraphNode, exported: NodeGraph, readers: Mapping[str, Sequence[int]]) -> set[int]:
    """Follow what was fused behind the node that an optimised one is named after: a sum, then an activation."""
    out = {position}

    def follow(operators: Sequence[str]) -> None:
        nonlocal position
        behind = [at for name in exported.nodes[position].outputs for at in readers.get(name, ())]
        if len(behind) == 1 and exported.nodes[behind[0]].op in operators:
            position = behind[0]
            out.add(position)

    if node.name.endswith(_BIASED) or (node.op in CONVOLUTIONS and len(node.inputs) > 3 and node.inputs[3]):
        follow(("Add", "Sum"))
    if "activation" in node.attributes and exported.nodes[position].op not in ACTIVATIONS:
        follow(ACTIVATIONS)
    return out


def _readers(nodes: Sequence[GraphNode | None]) -> list[int | None]:
    """Return for each node one that reads its result."""
    reader = {name: index for index, node in enumerate(nodes) if node is not None for name in node.inputs if name}
    return [next((reader[name] for name in node.outputs if name in reader), None) if node else None for node in nodes]
