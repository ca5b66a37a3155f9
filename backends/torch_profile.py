"""What torch's profiler says of a module, eager or compiled by Inductor, and the nodes that its operators became.

An operator is what is called from Python, with all that it calls itself: `aten::linear`, not the `aten::addmm` in it.
Python's own time between operators belongs to none of them: it is the unexplained share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.torch_cuda import CapturedCall, Place
from backends.torch_inductor import KERNEL, Compiled
from backends.torch_provenance import Operator, canonical, match
from harness.errors import UnsupportedError
from harness.graph_nodes import NodeGraph, read_graph
from harness.operators import FOLDED, NO_KERNEL, Iterate, OperatorTime, Profile

if TYPE_CHECKING:
    import torch

    from harness.api import Artifact

CLOCK = "torch.profiler"
CLOCK_ON_DEVICE = "torch.profiler, kernels on the device"
ITERATION, MODULE = "harness::iteration", "harness::module::"
_OPERATOR = re.compile(r"\w+::\w+|triton_\w+")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of torch's profile, in order of its begin."""

    name: str
    parent: int | None
    """Place of the entry that it lies in."""
    ns: int
    """Of everything in it."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """An operator in one iteration."""

    name: str
    scope: str
    ns: int


def profile(call: Any, inputs: Sequence[Any], artifact: Artifact, iterate: Iterate, place: Place) -> Profile:
    """Return what the operators of a session's call take.

    Raises:
        UnsupportedError: It is one CUDA graph, or a package, in which torch sees no operators.
    """
    import torch

    if isinstance(call, CapturedCall):
        raise UnsupportedError("a CUDA graph replays without its operators", hint="profile it without cuda_graph")
    if not isinstance(call, torch.nn.Module):
        raise UnsupportedError(
            "torch's profiler does not see into an AOTInductor package", hint="profile torch-compile without aot=true"
        )
    compiled = Compiled(call) if hasattr(call, "_orig_mod") else None
    graph, note = _graph(artifact)
    with compiled.marked() if compiled else _marked(call):
        iterations = _recorded(lambda: call(*inputs), iterate, place)
    if not any(iterations):
        raise UnsupportedError(
            "torch's profiler saw no operators", hint="a CUDA graph hides them: profile it without one"
        )
    runs = _alike(iterations)
    operators = [
        OperatorTime(
            name=_shown(one[0]), kind=_kind(one[0].name), calls=len(one), total_ns=sum(each.ns for each in one)
        )
        for one in runs
    ]
    notes = [note] if note else []
    eliminated: dict[str, str] = {}
    if graph is not None:
        first = [one[0] for one in runs]
        nodes = compiled.nodes(first, graph, inputs) if compiled else _eager_nodes(first, graph)
        if nodes is None:
            notes.append("kernels were not mapped to nodes of the graph: they are not those of the traced module")
        else:
            eliminated = _eliminated(nodes, graph, compiled)
            operators = _with(operators, nodes)
    clock = CLOCK if place.stream is None else CLOCK_ON_DEVICE
    return Profile(clock=clock, operators=operators, eliminated=eliminated, notes=notes)


def _graph(artifact: Artifact) -> tuple[NodeGraph | None, str]:
    try:
        return read_graph(artifact.onnx_path), ""
    except ImportError:
        return None, "operators were not mapped to nodes of the graph: onnx, which reads it, is not installed"


@contextmanager
def _marked(module: torch.nn.Module) -> Iterator[None]:
    """Have every module of a tree say in the profile that it is running."""
    from torch.profiler import record_function

    hooks, running = [], []

    def before(path: str) -> Callable[..., None]:
        def enter(*_: object) -> None:
            mark = record_function(MODULE + path)
            mark.__enter__()
            running.append(mark)

        return enter

    def leave(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    try:
        for path, one in module.named_modules():
            hooks.append(one.register_forward_pre_hook(before(path)))
            hooks.append(one.register_forward_hook(leave))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _recorded(run: Callable[[], object], iterate: Iterate, place: Place) -> list[list[Ran]]:
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    on_device = place.stream is not None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]

    def once() -> None:
        with record_function(ITERATION):
            run()
            if on_device:
                place.stream.synchronize()

    with torch_profile(activities=activities) as seen:
        run()  # the first run under a profiler pays for its start; without the mark of an iteration it counts for none
        iterate(once)
    return operators_of(_events(seen, on_device=on_device))


def _events(seen: Any, *, on_device: bool) -> list[Event]:
    found = sorted(
        (one for one in seen.events() if one.device_type.name == "CPU"),
        key=lambda one: (one.time_range.start, -one.time_range.elapsed_us(), one.id),
    )
    places = {one.id: index for index, one in enumerate(found)}
    return [
        Event(
            name=one.name,
            parent=places.get(one.cpu_parent.id) if one.cpu_parent is not None else None,
            ns=round(1000 * (one.device_time_total if on_device else one.cpu_time_total)),
        )
        for one in found
    ]


def operators_of(events: Sequence[Event]) -> list[list[Ran]]:
    """Return the outermost operators of each iteration, with the module in which each ran."""
    out: list[list[Ran]] = []
    numbers: dict[int, int] = {}
    for index, event in enumerate(events):
        if event.name == ITERATION:
            numbers[index] = len(out)
            out.append([])
            continue
        if not _is_operator(event.name):
            continue
        scope, at, number = None, event.parent, None
        while at is not None:
            above = events[at]
            if _is_operator(above.name):
                break
            if scope is None and above.name.startswith(MODULE):
                scope = above.name.removeprefix(MODULE)
            number = numbers.get(at, number)
            at = above.parent
        else:
            if number is not None:
                out[number].append(Ran(name=event.name, scope=scope or "", ns=event.ns))
    return out


def _is_operator(name: str) -> bool:
    if name.startswith("harness::"):
        return name.startswith(KERNEL)
    return _OPERATOR.fullmatch(name) is not None


def _alike(iterations: Sequence[Sequence[Ran]]) -> list[list[Ran]]:
    """Return each operator over all iterations, by its place in them; by name and module where iterations differ."""
    if len({tuple((one.name, one.scope) for one in ran) for ran in iterations}) == 1:
        return [list(one) for one in zip(*iterations, strict=True)]
    found: dict[tuple[str, str, int], list[Ran]] = {}
    for ran in iterations:
        count: Counter[tuple[str, str]] = Counter()
        for one in ran:
            key = one.name, one.scope
            found.setdefault((*key, count[key]), []).append(one)
            count[key] += 1
    return list(found.values())


def _eager_nodes(ran: Sequence[Ran], graph: NodeGraph) -> list[tuple[str, ...]]:
    return match([Operator(scope=one.scope, name=canonical(one.name)) for one in ran], graph)


def _eliminated(nodes: Sequence[tuple[str, ...]], graph: NodeGraph, compiled: Compiled | None) -> dict[str, str]:
    seen = {name for names in nodes for name in names}
    constant = graph.constant()
    out = {}
    for position, node in enumerate(graph.nodes):
        if node.name in seen:
            continue
        if position in constant:
            out[node.name] = FOLDED
        elif compiled is not None and node.name in compiled.traced:
            out[node.name] = NO_KERNEL
    return out


def _with(operators: Sequence[OperatorTime], nodes: Sequence[tuple[str, ...]]) -> list[OperatorTime]:
    import msgspec

    return [msgspec.structs.replace(one, nodes=names) for one, names in zip(operators, nodes, strict=True)]


def _shown(ran: Ran) -> str:
    name = _own_name(ran.name)
    return f"{name} in {ran.scope}" if ran.scope else name


def _kind(name: str) -> str:
    return re.sub(r"_\d+$", "", _own_name(name))


def _own_name(name: str) -> str:
    """Return what Inductor calls a kernel; an operator of torch's stays as it is."""
    return name.rpartition("::")[2] if name.startswith(KERNEL) else name
