"""Which nodes of the exported graph an operator that torch runs became: `torch.onnx` notes it beside each node.

A node's metadata names the module that it comes from and the operator of the exported program, such as
`%conv2d_1 ... torch.ops.aten.conv2d.default`. What torch runs is known by module, operator and order. Where they do not
settle it, all that is left of a module is matched as one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.graph_nodes import GraphNode, NodeGraph

SCOPES, CALL = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.fx_node"
_TARGET = re.compile(r"\[target=([\w.]+)\]")
_ALIASES = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_to_copy": "to",
    "truediv": "div",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "_unsafe_view": "view",
    "reshape": "view",
    "bool": "to",
    "float": "to",
    "half": "to",
    "long": "to",
}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator that torch runs."""

    scope: str
    """Path of the module in whose `forward` it is called, as `named_modules()` has it."""
    name: str
    """As `canonical()` returns it."""


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What the exporter noted of a node: an operator of the exported program, which may have become several nodes."""

    scope: str
    call: str
    """Its name there, such as `conv2d_1`."""
    name: str
    reads: tuple[str, ...]


def canonical(name: str) -> str:
    """Return an operator's bare name, without the sign of working in place: `aten::relu_` is `relu`."""
    bare = name.rpartition("::")[2].partition(".")[0]
    if not (bare.startswith("__") and bare.endswith("__")):
        bare = bare.rstrip("_")
    return _ALIASES.get(bare, bare)


def match(operators: Sequence[Operator], graph: NodeGraph) -> list[tuple[str, ...]]:
    """Return for each operator, in order of execution, the nodes that it became; none if the exporter left it out."""
    origins = [origin(node) for node in graph.nodes]
    scopes = {one.scope for one in origins if one is not None}
    if not any(one.scope in scopes for one in operators if one.scope):
        # A wrapper around the module that was exported has put its own name before all others.
        operators = [Operator(scope=one.scope.partition(".")[2], name=one.name) for one in operators]
    calls: dict[str, list[int]] = {}
    of: dict[str, _Origin] = {}
    for position, one in enumerate(origins):
        if one is not None:
            calls.setdefault(one.call, []).append(position)
            of[one.call] = one
    found: dict[int, list[int]] = {}
    _absorbed(operators, of, calls, found)
    _by_place(operators, of, calls, found)
    _of_a_module(operators, of, calls, found)
    return [
        tuple(graph.nodes[position].name for position in sorted(set(found.get(index, ()))))
        for index in range(len(operators))
    ]


def origin(node: GraphNode) -> _Origin | None:
    """Return what a node's metadata says of where it comes from; None without any."""
    scopes, call = node.metadata.get(SCOPES), node.metadata.get(CALL)
    head = re.match(r"%(\w+) : ", call or "")
    target = _TARGET.search(call or "")
    if not scopes or not call or head is None or target is None:
        return None
    try:
        path = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return None
    arguments = call[target.end() :].partition(", kwargs")[0]
    parts = target[1].split(".")
    name = parts[3] if parts[:2] == ["torch", "ops"] and len(parts) > 3 else parts[-1]
    return _Origin(
        scope=str(path[-2]) if len(path) > 1 else "",
        call=head[1],
        name=canonical(name),
        reads=tuple(re.findall(r"%(\w+)", arguments)),
    )


def _by_place(
    operators: Sequence[Operator],
    of: Mapping[str, _Origin],
    calls: Mapping[str, Sequence[int]],
    found: dict[int, list[int]],
) -> None:
    """Match by module, operator and order, where there are equally many on both sides."""
    ran: dict[tuple[str, str], list[int]] = {}
    for index, one in enumerate(operators):
        if index not in found:
            ran.setdefault((one.scope, one.name), []).append(index)
    exported: dict[tuple[str, str], list[str]] = {}
    for call, one_origin in of.items():
        exported.setdefault((one_origin.scope, one_origin.name), []).append(call)
    for key, indices in ran.items():
        names = exported.get(key, [])
        if len(names) == len(indices):
            for index, call in zip(indices, names, strict=True):
                found[index] = list(calls[call])


def _absorbed(
    operators: Sequence[Operator],
    of: Mapping[str, _Origin],
    calls: Mapping[str, Sequence[int]],
    found: dict[int, list[int]],
) -> None:
    """Match what the exporter folded into another node, such as a convolution before its batch normalisation.

    It is still named among what that node reads, and its name tells which of its kind it is.
    """
    ran: dict[str, list[int]] = {}
    for index, one in enumerate(operators):
        ran.setdefault(one.name, []).append(index)
    for call, one_origin in of.items():
        for name in one_origin.reads:
            base, number = _numbered(name)
            same = ran.get(canonical(base), [])
            if name in of or number >= len(same) or same[number] in found:
                continue
            near = {one_origin.scope, one_origin.scope.rpartition(".")[0]}
            where = operators[same[number]].scope
            if near & {where, where.rpartition(".")[0]}:  # else the two sides count differently
                found[same[number]] = list(calls[call])


def _of_a_module(
    operators: Sequence[Operator],
    of: Mapping[str, _Origin],
    calls: Mapping[str, Sequence[int]],
    found: dict[int, list[int]],
) -> None:
    """Give what is left of a module's operators what is left of its nodes."""
    taken = {position for positions in found.values() for position in positions}
    left: dict[str, list[int]] = {}
    for call, one_origin in of.items():
        left.setdefault(one_origin.scope, []).extend(one for one in calls[call] if one not in taken)
    for index, one in enumerate(operators):
        if index not in found and left.get(one.scope):
            found[index] = left[one.scope]


def _numbered(name: str) -> tuple[str, int]:
    parted = re.fullmatch(r"(.*?)_(\d+)", name)
    return (parted[1], int(parted[2])) if parted else (name, 0)


def names_of(nodes: Iterable[tuple[str, ...]]) -> set[str]:
    """Return all names in them."""
    return {name for names in nodes for name in names}
