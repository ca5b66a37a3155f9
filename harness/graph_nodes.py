"""The nodes of an ONNX graph, and which of them an optimised form of it runs together. Imports onnx: for workers.

A compiler that fuses keeps the tensors at the borders of what it fused. So an operator does the work of all nodes that
lie between its own result, its *anchor*, and the anchors of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # onnx' messages are not typed

from harness.operators import FOLDED, REMOVED, Node


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """One node: its name is unique, also where the file has none for it."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What its exporter noted, such as where in the module it comes from."""
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class NodeGraph:
    """Nodes in the order of the file, which is topological."""

    nodes: Sequence[GraphNode]
    inputs: Collection[str]
    """Tensors that are given at every run; weights are not among them."""
    outputs: Sequence[str]

    def maker(self) -> dict[str, int]:
        """Return tensor -> position of the node that computes it."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.outputs if name}

    def readers(self) -> dict[str, list[int]]:
        """Return tensor -> positions of the nodes that read it."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.inputs:
                found.setdefault(name, []).append(index)
        return found

    def constant(self) -> set[int]:
        """Return the nodes whose results are the same at every run: no input reaches them but through its shape."""
        varying = set(self.inputs)
        out = set()
        for index, node in enumerate(self.nodes):
            if node.op not in ("Shape", "Size") and any(name in varying for name in node.inputs):
                varying.update(node.outputs)
            else:
                out.add(index)
        return out

    def listed(self) -> list[Node]:
        """Return names and operators."""
        return [Node(name=node.name, op=node.op) for node in self.nodes]


def read_graph(path: Path) -> NodeGraph:
    """Return the nodes of the graph in a file; weights beside it are not read."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return NodeGraph(
        nodes=list(_nodes(graph.node)),
        inputs={value.name for value in graph.input} - weights,
        outputs=[value.name for value in graph.output],
    )


def _nodes(protos: Iterable[Any]) -> Iterator[GraphNode]:
    taken: set[str] = set()
    for proto in protos:
        name = proto.name
        if not name or name in taken:
            name = f"{proto.op_type}:{next((one for one in proto.output if one), len(taken))}"
        taken.add(name)
        yield GraphNode(
            name=name,
            op=proto.op_type,
            inputs=tuple(_read(proto)),
            outputs=tuple(proto.output),
            metadata={entry.key: entry.value for entry in getattr(proto, "metadata_props", ())},
            attributes=frozenset(one.name for one in proto.attribute),
        )


def _read(proto: Any) -> Iterator[str]:
    """Yield the tensors that a node reads, those that its own graphs take from outside among them."""
    yield from proto.input
    for attribute in proto.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            inside = {value.name for value in [*graph.input, *graph.initializer]}
            inside.update(name for one in graph.node for name in one.output)
            yield from (name for one in graph.node for name in _read(one) if name not in inside)


def cover(graph: NodeGraph, anchors: Sequence[Collection[int]]) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Say which nodes each operator does the work of, and which nobody does.

    Args:
        graph: As it was before it was compiled.
        anchors: For each operator the positions of nodes whose results are known to be its own.

    Returns:
        For each operator names of nodes in the order of the file; then node -> why no operator runs it.
    """
    maker, constant = graph.maker(), graph.constant()
    taken = {position for own in anchors for position in own}
    covered: list[tuple[str, ...]] = []
    seen: set[int] = set(taken)
    for own in anchors:
        reached = set(own)
        left = list(own)
        while left:
            for name in graph.nodes[left.pop()].inputs:
                above = maker.get(name)
                if above is not None and above not in taken and above not in reached and above not in constant:
                    reached.add(above)
                    left.append(above)
        seen |= reached
        covered.append(tuple(graph.nodes[position].name for position in sorted(reached)))
    reason = {True: FOLDED, False: REMOVED}
    return covered, {
        node.name: reason[position in constant] for position, node in enumerate(graph.nodes) if position not in seen
    }


def adopt(
    covered: Sequence[tuple[str, ...]], readers: Sequence[int | None], alone: Collection[int]
) -> list[tuple[str, ...]]:
    """Give an operator that no anchor tells of the nodes of the one that reads its result: both do that work together.

    Args:
        covered: As `cover()` returns it.
        readers: For each operator one that reads its result.
        alone: Operators that are the compiler's own, such as changes of layout.
    """
    out = []
    for index in range(len(covered)):
        at: int | None = index
        seen: set[int] = set()
        while at is not None and at not in seen and at not in alone and not covered[at]:
            seen.add(at)
            at = readers[at]
        found = at is not None and at not in alone and index not in alone
        out.append(covered[at] if at is not None and found else covered[index])
    return out
