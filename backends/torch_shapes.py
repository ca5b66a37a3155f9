"""The free dimensions of a sweep in the terms of Dynamo and of torch.export.

Neither has one code for all sizes. Dynamo compiles for 1 alone, and where torch itself decides by a size, a graph holds
for one side only: a convolution on a CPU, say, takes another path from a batch of 16 on. So an engine for a sweep is a
set of graphs, each for its own region: free dimension -> smallest and largest size.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.api import CompileRequest, DynamicShapes, TensorSpec
from harness.errors import RunError, UnsupportedError

if TYPE_CHECKING:
    import torch

Region: TypeAlias = dict[str, tuple[int, int]]
Bounds: TypeAlias = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""The smallest and the largest shape of every input that a graph holds for."""

_HOLDS_FOR = re.compile(
    r"Not all values of (?P<source>.+)\.size\(\)\[(?P<axis>\d+)\] = .* satisfy the generated guard "
    r"(?P<low>\d+) <= (?P=source)\.size\(\)\[(?P=axis)\](?: and (?P=source)\.size\(\)\[(?P=axis)\] <= \d+)?"
)
"""What Dynamo says of a graph that holds from a size on. There is no other way to learn it."""


def not_free(dynamic: DynamicShapes, exc: Exception) -> UnsupportedError:
    """Return the error for a model that fixes a size which the sweep leaves free."""
    return UnsupportedError(
        f"torch cannot leave {' and '.join(dynamic.ranges)} free in this model: {'; '.join(_said(exc)) or exc}",
        hint="leave out dynamic=true: every shape then gets its own engine",
    )


def too_many(dynamic: DynamicShapes, count: int, limit: int) -> UnsupportedError:
    """Return the error for a sweep that takes more graphs than Dynamo keeps: beyond that it would run eagerly."""
    return UnsupportedError(
        f"torch would need {count} graphs to leave {' and '.join(dynamic.ranges)} free in this model; it keeps {limit}",
        hint="sweep over fewer dimensions at once, or leave out dynamic=true: every shape then gets its own engine",
    )


def split_at_one(dynamic: DynamicShapes) -> list[Region]:
    """Return the regions of a sweep in which a dimension is 1 or never, that of the largest sizes first."""
    sides = [
        [{name: (2, high)}, {name: (1, 1)}] if low == 1 else [{name: (low, high)}]
        for name, (low, high) in dynamic.ranges.items()
    ]
    return [{name: ends for side in chosen for name, ends in side.items()} for chosen in itertools.product(*sides)]


def narrower(region: Region, exc: Exception, module: torch.nn.Module, request: CompileRequest) -> Region:
    """Return the part of a region that the graph for its largest sizes holds for, as Dynamo tells it.

    Raises:
        UnsupportedError: The model fixes a size, or sizes that are no range, such as multiples of 8.
    """
    assert request.dynamic is not None
    named = _sources(module, request.artifact.inputs)
    out = dict(region)
    for line in _said(exc):
        match = _HOLDS_FOR.fullmatch(line)
        spec = named.get(match["source"]) if match else None
        name = request.dynamic.axes.get(spec.name, {}).get(int(match["axis"])) if match and spec else None
        if match is None or name not in out:
            raise not_free(request.dynamic, exc) from exc
        out[name] = (max(out[name][0], int(match["low"])), out[name][1])
    if out == region:
        raise not_free(request.dynamic, exc) from exc
    return out


def rest(region: Region, part: Region) -> list[Region]:
    """Return what a part with the largest sizes leaves of a region, in regions that do not overlap."""
    out = []
    for name, (low, _) in part.items():
        if low > region[name][0]:
            out.append({**region, name: (region[name][0], low - 1)})
            region = {**region, name: part[name]}
    return out


def bounds(request: CompileRequest, region: Region) -> Bounds:
    """Return the smallest and the largest shape of every input in a region."""
    assert request.dynamic is not None
    part = dataclasses.replace(request.dynamic, ranges=region)
    return [part.bounds(spec) for spec in request.artifact.inputs]


def holding(regions: Sequence[Bounds], request: CompileRequest) -> int:
    """Return which region holds the request's shapes.

    Raises:
        RunError: None does.
    """
    shapes = [spec.shape for spec in request.artifact.inputs]
    for index, region in enumerate(regions):
        if all(
            low <= size <= high
            for (lows, highs), shape in zip(region, shapes, strict=True)
            for low, size, high in zip(lows, shape, highs, strict=True)
        ):
            return index
    raise RunError(f"the engine holds no graph for {shapes}", hint="compile it again: --cold")


def told(regions: Sequence[Region], kind: str) -> list[str]:
    """Return a note where a sweep takes more than one graph or package."""
    if len(regions) < 2:
        return []
    return [f"this sweep takes {len(regions)} {kind}, each for its own sizes: {'; '.join(map(_in_words, regions))}"]


def export_shapes(module: torch.nn.Module, request: CompileRequest, region: Region) -> dict[str, Any]:
    """Return torch.export's `dynamic_shapes`: parameter of `forward` -> what is free in it, nested as it is."""
    import torch

    dynamic = request.dynamic
    assert dynamic is not None
    free = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in region.items() if low != high}
    shapes = [
        {axis: free[name] for axis, name in dynamic.axes.get(spec.name, {}).items() if name in free}
        for spec in request.artifact.inputs
    ]
    return dict(inspect.signature(module.forward).bind(*shapes).arguments)


def mark(arguments: Sequence[torch.Tensor], region: Bounds) -> None:
    """Leave free what is free in a region, and nothing else: by itself Dynamo frees what it has seen in two sizes."""
    import torch

    for tensor, (lows, highs) in zip(arguments, region, strict=True):
        for axis, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if low == high:
                torch._dynamo.mark_static(tensor, axis)
            else:
                torch._dynamo.mark_dynamic(tensor, axis, min=low, max=high)


def cut(arguments: Sequence[torch.Tensor], region: Bounds) -> list[torch.Tensor]:
    """Return copies of arguments, of which all are as large as the sweep's largest, with a region's largest sizes."""
    import torch

    out = []
    with torch.inference_mode():
        for tensor, (_, highs) in zip(arguments, region, strict=True):
            for axis, size in enumerate(highs):
                tensor = tensor.narrow(axis, 0, size)
            out.append(tensor.clone())
    return out


def _said(exc: Exception) -> list[str]:
    # Of a violated constraint the first line names only the place in the source; what is wrong stands below it.
    return [line.strip().removeprefix("- ") for line in str(exc).splitlines() if line.strip().startswith("- ")]


def _sources(module: torch.nn.Module, specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    """Return what Dynamo calls each argument of `forward` -> the input that it is."""
    out = {}
    for parameter, value in inspect.signature(module.forward).bind(*specs).arguments.items():
        named = {f"L['{parameter}']": value}
        if isinstance(value, tuple):
            named = {f"L['{parameter}'][{index}]": one for index, one in enumerate(value)}
        out.update(named)
    return out


def _in_words(region: Region) -> str:
    return ", ".join(f"{name} {low}" + (f" to {high}" if high != low else "") for name, (low, high) in region.items())
