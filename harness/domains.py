"""The operator sets that an ONNX graph names: tools name more than they use, and an old library refuses new ones.

Imports nothing: what it is given are onnx' own messages, in a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any  # protobuf messages, which are not typed

STANDARD = ("", "ai.onnx")


def drop_idle(model: Any) -> bool:
    """Take the operator sets out of a model that none of its nodes comes from; return whether there were any."""
    nodes = [*_nodes(model.graph.node), *_nodes(node for function in model.functions for node in function.node)]
    used = {node.domain for node in nodes} | set(STANDARD)
    kept = [entry for entry in model.opset_import if entry.domain in used]
    if len(kept) == len(model.opset_import):
        return False
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return True


def _nodes(nodes: Iterable[Any]) -> Iterable[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
