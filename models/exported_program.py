"""The user's own program from a .pt2 file: `torch.export.save()`'s.

A file keeps neither the names of dimensions nor the module's code: a free dimension is called `batch` where it is
the first axis of every input that has it, else `<input>_<axis>`, and a dimension that follows from others (`2*batch`)
is written so. Sizes are those of the example inputs in the file unless the user sets them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api import InputSpec
from harness.errors import ExportError, UsageError
from harness.inputs import ExampleModel
from harness.modelspec import BATCH, ModelSpec
from models import pt2

if TYPE_CHECKING:
    import torch


class ExportedProgram(ExampleModel):
    """A program as `torch.export` captured it. Read when it is first asked about."""

    def __init__(self, spec: ModelSpec) -> None:
        self._path = Path(spec.name)

    @functools.cached_property
    def _program(self) -> Any:
        return pt2.read(self._path)

    @functools.cached_property
    def _leaves(self) -> list[tuple[str, Any]]:
        """The values that the program is given: name, and a fake tensor or a constant."""
        wanted = {spec.arg.name for spec in self._program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
        nodes = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        return [(node.name, node.meta.get("val")) for node in nodes if node.name in wanted]

    @functools.cached_property
    def _symbols(self) -> dict[str, str]:
        """The program's symbols by their names here."""
        places: dict[str, list[tuple[str, int]]] = {}
        for name, value in self._leaves:
            for axis, size in enumerate(getattr(value, "shape", ())):
                if str(size).isidentifier():
                    places.setdefault(str(size), []).append((name, axis))
        first = [symbol for symbol, found in places.items() if all(axis == 0 for _, axis in found)]
        named = {symbol: "{}_{}".format(*found[0]) for symbol, found in places.items()}
        return {**named, first[0]: BATCH} if len(first) == 1 else named

    @functools.cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        return tuple(self._spec(name, value) for name, value in self._leaves if hasattr(value, "shape"))

    def _spec(self, name: str, value: Any) -> InputSpec:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype == "bfloat16" or value.dtype.is_complex:
            raise ExportError(f"input '{name}' of {self._path.name} is {dtype}, which numpy or ONNX lacks")
        return InputSpec(name=name, dtype=dtype, shape=tuple(self._size(size) for size in value.shape))

    def _size(self, size: Any) -> int | str:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        names = {str(symbol): self._symbols.get(str(symbol), str(symbol)) for symbol in expression.free_symbols}
        return (
            str(expression.subs(names)) if len(names) != 1 or str(expression) not in names else names[str(expression)]
        )

    @functools.cached_property
    def examples(self) -> Mapping[str, np.ndarray]:
        """The inputs that the file keeps; empty where it keeps none."""
        import torch
        from torch.utils import _pytree

        kept = self._program.example_inputs
        flat = _pytree.tree_leaves(kept) if kept else []
        if len(flat) != len(self._leaves):
            return {}
        return {
            name: tensor.detach().cpu().contiguous().numpy()
            for (name, value), tensor in zip(self._leaves, flat, strict=True)
            if hasattr(value, "shape") and isinstance(tensor, torch.Tensor)
        }

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of free dimensions, as the example inputs in the file have them."""
        found: dict[str, int] = {}
        for spec in self.inputs if self.examples else ():
            sizes = zip(spec.shape, self.examples[spec.name].shape, strict=True)
            found |= {name: size for name, size in sizes if isinstance(name, str) and name.isidentifier()}
        return found

    @property
    def sources(self) -> list[str]:
        """The file."""
        return [str(self._path)]

    @functools.cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, where the program returns them in a dict."""
        shape = self._program.call_spec.out_spec
        flat = shape.num_leaves == len(shape.children())
        return tuple(map(str, shape.context)) if flat and isinstance(shape.context, list) and shape.type is dict else ()

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        self._check_ranges(dims)
        module = self._program.module(check_guards=False)
        # Sizes were checked above; in a session the hook would be timed, and would end a compiler's graph.
        module._forward_pre_hooks.clear()
        for name in ("train", "eval"):
            module.__dict__.pop(name, None)  # they refuse; what mattered was fixed when the program was captured
        return _flat(module, self._program.call_spec.in_spec, [value for _, value in self._leaves]).cpu()

    def _check_ranges(self, dims: Mapping[str, int]) -> None:
        for symbol, limits in self._program.range_constraints.items():
            name = self._symbols.get(str(symbol))
            if name is not None and name in dims and not limits.lower <= dims[name] <= limits.upper:
                raise UsageError(
                    f"{self._path.name} takes '{name}' from {limits.lower} to {limits.upper}, got {dims[name]}",
                    hint=f"--dim {name}=SIZE within that range",
                )


def _flat(module: Any, structure: Any, leaves: list[Any]) -> Any:
    """Let a program take its tensors by position and return a plain tuple, whatever it was exported with.

    Its class is extended where it stands, so that the names of its weights stay what they are.
    """
    import torch
    from torch.utils import _pytree

    kind: Any = type(module)
    constants = [None if hasattr(leaf, "shape") else (leaf,) for leaf in leaves]

    class Flat(kind):
        def forward(self, *inputs: Any) -> Any:
            given = iter(inputs)
            values = [next(given) if constant is None else constant[0] for constant in constants]
            args, kwargs = _pytree.tree_unflatten(values, structure)
            result = kind.forward(self, *args, **kwargs)
            return result if hasattr(result, "shape") else tuple(_pytree.tree_leaves(result))

        def _apply(self, function: Any, recurse: bool = True) -> Any:
            kind._apply(self, function, recurse)
            self.__class__ = kind  # whose `forward` is written anew from the graph
            _move(self, function(torch.empty(0)).device)
            self.__class__ = Flat
            return self

    Flat.__name__ = Flat.__qualname__ = "ExportedProgram"
    module.__class__ = Flat
    return module


def _move(module: Any, device: Any) -> None:
    """Bring along what `Module.to()` leaves behind: constants, and the devices that are written into the graph."""
    import torch
    from torch.fx.node import map_aggregate

    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.to(device))
        stale = False
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            given = (node.args, node.kwargs)
            moved = map_aggregate(given, lambda value: device if isinstance(value, torch.device) else value)
            if moved != given:
                node.args, node.kwargs = moved
                stale = True
        if stale:
            part.recompile()
