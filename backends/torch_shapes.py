"""The free dimensions of a sweep in the terms of Dynamo and of torch.export, neither of which generalises over 1."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.api import CompileRequest, DynamicShapes, TensorSpec
from harness.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def not_free(dynamic: DynamicShapes, exc: Exception) -> UnsupportedError:
    """Return the error for a model that fixes a size which the sweep leaves free."""
    # Of a violated constraint the first line names only the place in the source; what is wrong stands below it.
    said = [line.strip().removeprefix("- ") for line in str(exc).splitlines() if line.strip().startswith("- ")]
    return UnsupportedError(
        f"torch cannot leave {' and '.join(dynamic.ranges)} free in this model: {'; '.join(said) or exc}",
        hint="leave out dynamic=true: every shape then gets its own engine",
    )


def ones(dynamic: DynamicShapes | None) -> list[tuple[str, ...]]:
    """Return the sets of free dimensions that may be 1 together in the sweep."""
    may = [name for name, (low, _) in dynamic.ranges.items() if low == 1] if dynamic else []
    return [chosen for size in range(1, len(may) + 1) for chosen in itertools.combinations(may, size)]


def export_shapes(module: torch.nn.Module, request: CompileRequest) -> dict[str, Any]:
    """Return torch.export's `dynamic_shapes`: parameter of `forward` -> what is free in it, nested as it is."""
    import torch

    dynamic = request.dynamic
    assert dynamic is not None
    free = {
        name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in dynamic.ranges.items() if low != high
    }
    shapes = [
        {axis: free[name] for axis, name in dynamic.axes.get(spec.name, {}).items() if name in free}
        for spec in request.artifact.inputs
    ]
    return dict(inspect.signature(module.forward).bind(*shapes).arguments)


def mark(arguments: Sequence[torch.Tensor], dynamic: DynamicShapes, specs: tuple[TensorSpec, ...]) -> None:
    """Leave the axes of the sweep free. An axis of size 1 cannot be: Dynamo always compiles for it alone."""
    import torch

    for tensor, spec in zip(arguments, specs, strict=True):
        for axis, (low, high) in enumerate(zip(*dynamic.bounds(spec), strict=True)):
            if low != high and tensor.shape[axis] > 1:
                torch._dynamo.mark_dynamic(tensor, axis, min=max(low, 2), max=high)


def cut(arguments: Sequence[torch.Tensor], request: CompileRequest, ones: tuple[str, ...]) -> list[torch.Tensor]:
    """Return the arguments with the named dimensions cut to size 1."""
    import torch

    assert request.dynamic is not None
    out = []
    with torch.inference_mode():
        for tensor, spec in zip(arguments, request.artifact.inputs, strict=True):
            for axis, name in request.dynamic.axes.get(spec.name, {}).items():
                if name in ones:
                    tensor = tensor.narrow(axis, 0, 1)
            out.append(tensor.clone())
    return out


def sizes_of_one(request: CompileRequest) -> str:
    """Return the dimensions of the sweep that are 1 in this request, such as `batch=1`."""
    if request.dynamic is None:
        return ""
    found = {
        name: None
        for spec in request.artifact.inputs
        for axis, name in request.dynamic.axes.get(spec.name, {}).items()
        if name in request.dynamic.ranges and spec.shape[axis] == 1
    }
    return ", ".join(f"{name}=1" for name in found)
