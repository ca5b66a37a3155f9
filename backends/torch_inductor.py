"""The kernels of a module that Inductor compiled: made visible to torch's profiler, and traced back to the module.

Inductor's C++ kernels are called past torch's profiler, so while it looks they are called through functions that tell
it. Beside each call of a library the generated code names the operators of the traced module that it does. The kernels
between two such calls do, by their place and their names, what lies between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.torch_provenance import Operator, canonical, match, names_of

if TYPE_CHECKING:
    from backends.torch_profile import Ran
    from harness.graph_nodes import NodeGraph

KERNEL = "harness::kernel::"
"""Begins the name by which a generated kernel tells the profiler that it runs; the number of its graph and its own come
next."""
VIEWS = frozenset(
    (
        "view", "transpose", "permute", "flatten", "unsqueeze", "squeeze", "expand", "getitem", "t", "T", "mT",
        "contiguous", "detach", "chunk", "split", "unbind", "select", "slice", "size", "dropout", "expand_as",
        "view_as", "narrow", "movedim", "swapaxes", "alias",
    )
)  # fmt: skip
"""Operators that have no kernel: they say how memory is read."""
LIBRARY = {
    "convolution": ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "product": ("linear", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum"),
    "scaled_dot_product": ("scaled_dot_product_attention",),
}
_SPELLINGS = {
    "batch_norm": ("batch_norm",),
    "layer_norm": ("layer_norm",),
    "adaptive_avg_pool2d": ("mean", "adaptive_avg_pool2d"),
    "to": ("_to_copy",),
}
_DEFINED = re.compile(r"^(\w+) = async_compile\.cpp_pybinding\(", re.MULTILINE)
_SOURCES = re.compile(r"# Topologically Sorted Source Nodes: \[(.*?)\]")
_CALL = re.compile(
    r"(?:= |^)(?:(?P<own>(?:cpp|triton)_\w+?)(?:\.run)?|extern_kernels\.(?P<extern>\w+)"
    r"|torch\.ops\.\w+\.(?P<op>\w+)(?:\.\w+)?|aten\.(?P<aten>\w+)(?:\.\w+)?)\("
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call in the generated code."""

    name: str
    own: bool
    """Whether it is a kernel that Inductor generated; else it is a library's."""
    sources: tuple[str, ...] = ()
    """Operators of the traced module whose work is done once it returns, as far as the code says."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """An operator of the traced module."""

    call: str
    name: str
    scope: str


@dataclass
class Compiled:
    """A compiled module of this process, which holds no other."""

    module: Any
    traced: set[str] = field(default_factory=set)
    """Nodes of the exported graph that operators of the traced module became; known after `nodes()`."""

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Have the generated kernels tell torch's profiler that they run."""
        undo: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for number, (names, source) in enumerate(_generated()):
                for name in _DEFINED.findall(source):
                    if callable(names.get(name)):
                        undo.append((names, name, names[name]))
                        names[name] = _telling(f"{KERNEL}{number}::{name}", names[name])
            yield
        finally:
            for names, name, kernel in undo:
                names[name] = kernel

    def nodes(self, ran: Sequence[Ran], graph: NodeGraph, inputs: Sequence[Any]) -> list[tuple[str, ...]] | None:
        """Return for each kernel that ran the nodes that it does; None if the generated code is of another module."""
        graphs = _traces(self.module._orig_mod, inputs)
        codes = [calls(source) for source in _sources([one.name for one in ran])]
        if len(graphs) != len(codes):
            return None
        out: list[tuple[str, ...]] = [() for _ in ran]
        operators = [one for each in graphs for one in each]
        became = match([Operator(scope=one.scope, name=one.name) for one in operators], graph)
        self.traced = names_of(became)
        shares: list[list[str]] = []
        start = 0
        for code, trace in zip(codes, graphs, strict=True):
            nodes = became[start : start + len(trace)]
            start += len(trace)
            shares += [[name for index in share for name in nodes[index]] for share in shared(code, trace)]
        order = {node.name: position for position, node in enumerate(graph.nodes)}
        written = [_bare(call.name) for code in codes for call in code]
        happened = [_bare(one.name) for one in ran]
        for here, there, size in SequenceMatcher(None, happened, written, autojunk=False).get_matching_blocks():
            for step in range(size):
                out[here + step] = tuple(sorted(dict.fromkeys(shares[there + step]), key=order.__getitem__))
        return out


def calls(source: str) -> list[Call]:
    """Return the calls of kernels in the code that Inductor generated for one graph, in order."""
    _, _, body = source.partition("def call(")
    body = body.partition("\ndef benchmark_")[0].partition("\ndef get_args")[0]
    found: list[Call] = []
    sources: tuple[str, ...] = ()
    for line in map(str.strip, body.splitlines()):
        if said := _SOURCES.match(line):
            sources = tuple(name.strip() for name in said[1].split(",") if name.strip())
        elif called := _CALL.search(line):
            own = called["own"]
            name = own or called["extern"] or called["op"] or called["aten"]
            found.append(Call(name=name, own=bool(own), sources=sources))
            sources = ()
    return found


def shared(code: Sequence[Call], trace: Sequence[Traced]) -> list[list[int]]:
    """Return for each call the places of the traced operators that it does."""
    place = {one.call: index for index, one in enumerate(trace)}
    out: list[list[int]] = []
    for call in code:
        named = [place[name] for name in call.sources if name in place]
        out.append(_own_share(call, named, trace) if not call.own or named else [])
    left = {index for index, one in enumerate(trace) if one.name not in VIEWS}
    left -= {index for share in out for index in share}
    for at, call in enumerate(code):  # what a library's call reads was computed right before it
        if not call.own:
            due = sorted(left & {place[name] for name in call.sources if name in place})
            left -= _parted(due, _before(at, code), code, trace, out)
    for at, call in enumerate(code):  # the rest is due before what stands behind it in the module
        if call.own and (at + 1 == len(code) or not code[at + 1].own):
            library = [min(share) for share, one in zip(out[at:], code[at:], strict=True) if share and not one.own]
            due = [index for index in sorted(left) if not library or index < min(library)]
            left -= _parted(due, _before(at + 1, code), code, trace, out)
    return out


def _before(at: int, code: Sequence[Call]) -> list[int]:
    """Return the kernels of Inductor's own between a call and the library's call before it."""
    start = at
    while start > 0 and code[start - 1].own:
        start -= 1
    return list(range(start, at))


def _parted(
    due: Sequence[int], kernels: Sequence[int], code: Sequence[Call], trace: Sequence[Traced], out: list[list[int]]
) -> set[int]:
    """Part operators among kernels: each to the last that is named after it, or else to the last. Return them."""
    for index in due if kernels else ():
        named = [at for at in kernels if _spelled(trace[index].name, code[at].name)]
        chosen = (named or kernels)[-1]
        out[chosen] = sorted({*out[chosen], index})
    return set(due) if kernels else set()


def _own_share(call: Call, named: Sequence[int], trace: Sequence[Traced]) -> list[int]:
    """Return what a call does itself of the operators that are named beside it: others were done before it."""
    if call.own:
        return [index for index in named if trace[index].name not in VIEWS]
    family = _family(call.name)
    fitting = [index for index in named if trace[index].name in family]
    return fitting[-1:] or list(named[-1:])


def _family(name: str) -> tuple[str, ...]:
    if "scaled_dot_product" in name:
        return LIBRARY["scaled_dot_product"]
    if "conv" in name:
        return LIBRARY["convolution"]
    if "linear" in name or name.removesuffix("_out") in LIBRARY["product"]:
        return LIBRARY["product"]
    return (canonical(name), canonical(name.partition("_with_indices")[0]))


def _spelled(operator: str, kernel: str) -> bool:
    return any(spelling in kernel for spelling in _SPELLINGS.get(operator, (operator,)))


def _bare(name: str) -> str:
    return name.rpartition("::")[2].removesuffix("_out")


def _sources(names: Sequence[str]) -> list[str]:
    """Return the code of the graphs whose kernels ran, or of all where none has a kernel of Inductor's own."""
    ran = {int(found[1]) for name in names if (found := re.match(rf"{KERNEL}(\d+)::", name))}
    generated = _generated()
    return [source for number, (_, source) in enumerate(generated) if not ran or number in ran]


def _telling(mark: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    from torch.profiler import record_function

    def call(*arguments: Any) -> Any:
        with record_function(mark):
            return kernel(*arguments)

    return call


def _generated() -> list[tuple[dict[str, Any], str]]:
    """Return the modules that Inductor generated in this process: names and source of each."""
    from torch._inductor.codecache import PyCodeCache

    found = []
    for module in PyCodeCache.modules:
        path = Path(str(getattr(module, "__file__", "")))
        if hasattr(module, "call") and path.is_file():
            found.append((vars(module), path.read_text()))
    return found


def _traces(module: Any, inputs: Sequence[Any]) -> list[list[Traced]]:
    """Trace a module again as it was traced to be compiled, and return the operators of each graph."""
    import torch

    graphs: list[Any] = []

    def collect(traced: Any, _: Any) -> Any:
        graphs.append(traced.graph)
        return traced.forward

    with torch.inference_mode():
        torch.compile(module, backend=collect)(*inputs)
    return [[_traced(node) for node in graph.nodes if node.op in ("call_function", "call_method")] for graph in graphs]


def _traced(node: Any) -> Traced:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return Traced(call=node.name, name=canonical(name), scope=plain(str(path)))


def plain(path: str) -> str:
    """Return a module's path as `named_modules()` has it: `L['self'].layer1[0].conv` is `layer1.0.conv`."""
    below = re.sub(r"^L(?:\['\w+'\]|__\w+?__)", "", path)
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", below).strip(".")
