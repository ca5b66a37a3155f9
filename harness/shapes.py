"""Free dimensions and their sizes: what the user set, held against what the model's inputs say."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from harness import protocol
from harness.api import InputSpec, Model
from harness.errors import UsageError
from harness.inputs import dims as own_dims
from harness.modelspec import BATCH

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def resolve(
    inputs: tuple[InputSpec, ...],
    *,
    defaults: Mapping[str, int],
    wanted: Mapping[str, int],
    shapes: Mapping[str, list[int]],
) -> dict[str, int]:
    """Return the size of every free dimension: the model's own, overridden by `wanted` and by whole shapes.

    A dimension whose name is a formula over others (`past + 1`) follows from them where it is not set itself.

    Raises:
        UsageError: An unknown dimension or input, a shape that an input cannot have, two sizes for one dimension, or a
            dimension without a size.
    """
    known = list(dict.fromkeys([*defaults, *free_dimensions(inputs)]))
    for name in wanted:
        if name not in known:
            listed = "it has " + ", ".join(known) if known else "it has none"
            renamed = "; a free first axis is called batch, whatever the file calls it" if BATCH in known else ""
            raise UsageError(f"the model has no free dimension '{name}'; {listed}", hint=f"--dim NAME=SIZE{renamed}")
    chosen = {**wanted}
    for name, shape in shapes.items():
        for dim, size in _matched(inputs, name, shape).items():
            if chosen.setdefault(dim, size) != size:
                raise UsageError(f"dimension '{dim}' is given two sizes: {chosen[dim]}, and {size} by --shape {name}")
    sizes = {**defaults, **chosen}
    for dim in free_dimensions(inputs):
        if dim not in sizes and (follows := _derived(dim, sizes)) is not None:
            sizes[dim] = follows
    _all_set(inputs, sizes)
    return sizes


def settle(model: Model, request: protocol.Export) -> dict[str, int]:
    """Return the size of every free dimension of a model whose inputs are known.

    Raises:
        UsageError: As `resolve()`; or the ONNX graph is to leave a dimension free that it does not have.
    """
    dims = resolve(model.inputs, defaults=own_dims(model), wanted=request.dims, shapes=request.shapes)
    free = free_dimensions(model.inputs)
    for name in request.dynamic:
        if name not in free:
            listed = f"free are {', '.join(free)}" if free else "none is free"
            raise UsageError(
                f"'{name}' cannot stay free: no axis of an input has it; {listed}", hint="leave out --dynamic"
            )
    return dims


def free_dimensions(inputs: tuple[InputSpec, ...]) -> list[str]:
    """Return the names of all free dimensions, in the order in which inputs name them."""
    return list(dict.fromkeys(size for spec in inputs for size in spec.shape if isinstance(size, str)))


def free_axes(inputs: tuple[InputSpec, ...]) -> dict[str, dict[int, str]]:
    """Return input -> axis -> the name of its free dimension; an input without one is left out."""
    axes = {spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in inputs}
    return {name: named for name, named in axes.items() if named}


def _matched(inputs: tuple[InputSpec, ...], name: str, shape: list[int]) -> dict[str, int]:
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None:
        raise UsageError(f"the model has no input '{name}'; it has {', '.join(spec.name for spec in inputs)}")
    written = "x".join(map(str, spec.shape))
    if len(shape) != len(spec.shape):
        raise UsageError(f"input '{name}' has {len(spec.shape)} axes ({written}), got {'x'.join(map(str, shape))}")
    sizes: dict[str, int] = {}
    for axis, (declared, given) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(declared, int):
            if declared != given:
                raise UsageError(
                    f"axis {axis} of input '{name}' ({written}) is fixed: expected {declared}, got {given}"
                )
        elif sizes.setdefault(declared, given) != given:
            raise UsageError(f"input '{name}' is {written}: '{declared}' cannot be both {sizes[declared]} and {given}")
    return sizes


def _all_set(inputs: tuple[InputSpec, ...], sizes: Mapping[str, int]) -> None:
    missing = [dim for dim in free_dimensions(inputs) if dim not in sizes]
    if not missing:
        return
    where = [spec for spec in inputs if set(spec.shape) & set(missing)]
    shown = "; ".join(f"{spec.name}: {'x'.join(map(str, spec.shape))}" for spec in where)
    example = "x".join(str(sizes.get(size, "SIZE")) if isinstance(size, str) else str(size) for size in where[0].shape)
    raise UsageError(
        f"no size is set for {', '.join(repr(dim) for dim in missing)} ({shown})",
        hint=" ".join(f"--dim '{dim}=SIZE'" if " " in dim else f"--dim {dim}=SIZE" for dim in missing)
        + f", or --shape {where[0].name}={example}",
    )


def _derived(formula: str, sizes: Mapping[str, int]) -> int | None:
    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return sizes[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise KeyError(node)

    try:
        return value(ast.parse(formula, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError, ValueError):
        return None  # a plain name that is not set, or something that is no formula
