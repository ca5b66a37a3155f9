"""What TensorRT says of an engine's layers: their times, from its own profiler, and the nodes that each was made of.

| a layer's name | its nodes |
|-|-|
| `/conv + /relu` | both |
| `PWN(/sigmoid, /mul)` | both |
| `{ForeignNode[/first.../last]}` | from the one to the other, in the order of the file |
| `Reformatting CopyNode for Input Tensor 0 to /conv` | none: the layout is TensorRT's own affair |

Where the engine was built with details, as here, the inspector names the nodes in its `Metadata` too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.tensorrt_layers import Layer
from harness.graph_nodes import NodeGraph
from harness.operators import FOLDED, OperatorTime, Profile

CLOCK = "TensorRT's profiler, on the device"
OWN = ("Reformatting", "Reformat", "reformat")
_RANGE = re.compile(r"ForeignNode\[(.+?)\.\.\.(.+?)\]")
_SEPARATOR = re.compile(r"\s*[\x1e\x1f]\s*")
"""Characters that newer versions put between the parts of a name, and that no report can show."""
_BETWEEN = re.compile(r"\s\+\s|[,()\[\]{}|\x1e\x1f]|\.\.\.")
NANOSECONDS = 1_000_000
"""In a millisecond, in which TensorRT reports."""


def collector(trt: Any) -> Any:
    """Return an `IProfiler` that keeps in `times` what each layer took: name -> milliseconds, one an enqueue."""

    class Collector(trt.IProfiler):  # type: ignore[misc]  # the base belongs to the module chosen at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Collector()


def profile(times: Mapping[str, Sequence[float]], layers: Sequence[Layer], read: Callable[[], NodeGraph]) -> Profile:
    """Return what the layers took. `read` reads the exported graph, and may raise ImportError."""
    known = {layer.name: layer for layer in layers}
    notes: list[str] = []
    nodes: dict[str, tuple[str, ...]] = {}
    eliminated: dict[str, str] = {}
    try:
        graph = read()
    except ImportError:
        notes.append("layers were not mapped to nodes of the graph: onnx, which reads it, is not installed")
    else:
        nodes = {name: nodes_of(name, known[name].origin if name in known else "", graph) for name in times}
        seen = {node for names in nodes.values() for node in names}
        constant = graph.constant()
        eliminated = {
            node.name: FOLDED for at, node in enumerate(graph.nodes) if at in constant and node.name not in seen
        }
    return Profile(
        clock=CLOCK,
        operators=[
            OperatorTime(
                name=_SEPARATOR.sub(" + ", name),
                kind=(known[name].kind if name in known else None) or "layer",
                nodes=nodes.get(name, ()),
                calls=len(took),
                total_ns=round(sum(took) * NANOSECONDS),
            )
            for name, took in times.items()
        ],
        eliminated=eliminated,
        notes=notes,
    )


def nodes_of(name: str, origin: str, graph: NodeGraph) -> tuple[str, ...]:
    """Return the nodes that a layer was made of, in the order of the file.

    Args:
        name: The layer's.
        origin: Its `Metadata`, such as `[ONNX Layer: /conv]`; may be empty.
        graph: What the engine was built from.
    """
    places = {node.name: at for at, node in enumerate(graph.nodes)}
    if name.startswith(OWN):
        return ()
    found = {places[one] for one in re.findall(r"\[ONNX Layer: (.+?)\]", origin) if one in places}
    if not found:
        found = {places[one] for part in _BETWEEN.split(name) if (one := part.strip()) in places}
        for first, last in _RANGE.findall(name):
            if first in places and last in places:
                found.update(range(places[first], places[last] + 1))
    return tuple(graph.nodes[at].name for at in sorted(found))
