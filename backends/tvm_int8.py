"""Products of a quantised graph in integers.

TVM imports QuantizeLinear and DequantizeLinear, folds the weights to float32 and multiplies in float32: Relay had a
pass that turned such a graph into integers, Relax has none. Here products of dequantised data and dequantised weights
become products of int8 with sums in int32, which are scaled once for each channel.

Scales are symmetric, as in harness' graph. What has others, or is not multiplied by constant weights, stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

PRODUCTS = ("relax.nn.conv2d", "relax.matmul")


def integers(module: Any) -> tuple[Any, int, int]:
    """Replace products of dequantised data and weights in an imported module by products of integers.

    Returns:
        The module; how many products by dequantised weights are computed in integers; how many are not.
    """
    from tvm import relax
    from tvm.relax import op

    found = {True: 0, False: 0}

    @relax.expr_functor.mutator
    class Integers(relax.expr_functor.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if name_of(call) == "relax.quantize" and _symmetric(call) and constant_of(call.args[1]).size == 1:
                steps = op.round(op.divide(call.args[0], self._alone(call)))
                # Not clip(), which the layout pass does not know.
                limits = relax.const(-128, "float32"), relax.const(127, "float32")
                return op.astype(op.minimum(op.maximum(steps, limits[0]), limits[1]), "int8")
            if name_of(call) == "relax.dequantize" and _symmetric(call) and constant_of(call.args[1]).size == 1:
                # Where it is multiplied by weights nothing asks for this any more.
                return op.multiply(op.astype(call.args[0], "float32"), self._alone(call))
            if (weights := self._weights(call)) is None:
                return call
            product = self._product(call, *weights)
            found[product is not None] += 1
            return call if product is None else product

        def _alone(self, call: Any) -> Any:
            # As a number it would be a part of the kernel, and no two kernels the same to the tuner.
            return relax.const(constant_of(call.args[1]).reshape((1,) * len(call.args[0].ty.shape)))

        def _bound(self, expression: Any) -> Any:
            return self.lookup_binding(expression) if isinstance(expression, relax.Var) else expression

        def _weights(self, call: Any) -> tuple[Any, Any] | None:
            """Return the inverse of quantising what a call multiplies by, and how that was turned, if at all."""
            if len(call.args) != 2:
                return None
            weights, turn = self._bound(call.args[1]), None
            if name_of(weights) == "relax.permute_dims":
                weights, turn = self._bound(weights.args[0]), weights.attrs.axes
            if name_of(weights) == "relax.dequantize" and constant_of(weights.args[0]) is not None:
                return weights, turn
            return None

        def _product(self, call: Any, weights: Any, turn: Any) -> Any:
            data, scale = self._integers(call.args[0])
            if data is None or not _symmetric(weights) or name_of(call) not in PRODUCTS:
                return None
            values, scales = constant_of(weights.args[0]), constant_of(weights.args[1])
            along = np.ones(values.ndim, int)
            if scales.size > 1:
                along[weights.attrs.axis] = scales.size
            scales = scale * scales.reshape(along)
            if turn is not None:
                order = [int(axis) for axis in turn]
                values, scales = values.transpose(order), scales.transpose(order)
            if name_of(call) == "relax.matmul":
                # A scale a column, or one for all: none for each row, which is summed over.
                if scales.shape[-2] > 1 or values.ndim != 2:
                    return None
                product = op.matmul(data, relax.const(values), out_dtype="int32")
            else:
                # The channels of the result come first in weights, and second in data.
                if scales.size > scales.shape[0]:
                    return None
                scales = scales.reshape(1, -1, 1, 1)
                names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
                kept = {name: getattr(call.attrs, name) for name in names}
                product = op.nn.conv2d(data, relax.const(values), **kept, out_dtype="int32")
            return op.multiply(op.astype(self.builder_.emit(product), "float32"), relax.const(scales))

        def _integers(self, expression: Any) -> tuple[Any, Any]:
            """Return the int8 tensor and the scale that a tensor of float32 was made from, or None twice."""
            scaled = self._bound(expression)
            if name_of(scaled) != "relax.multiply":
                return None, None
            widened = self._bound(scaled.args[0])
            if name_of(widened) != "relax.astype" or dtype_of(widened.args[0]) != "int8":
                return None, None
            return widened.args[0], constant_of(scaled.args[1]).reshape(())

    return rewritten(module, Integers), found[True], found[False]


def rewritten(module: Any, kind: Any) -> Any:
    """Return a module with every Relax function visited by a mutator of some kind, and what nothing asks for gone."""
    from tvm import relax

    mutator = kind(module)
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(function))
    return relax.transform.DeadCodeElimination()(mutator.builder_.finalize())


def name_of(expression: Any) -> str:
    """Return the name of the operator that is called, or nothing where none is."""
    return str(getattr(getattr(expression, "op", None), "name", ""))


def dtype_of(expression: Any) -> str:
    """Return the type of a tensor's elements."""
    return str(expression.ty.dtype)


def constant_of(expression: Any) -> Any:
    """Return the array that an expression holds, or None where it is no constant."""
    held: Any = getattr(expression, "value", getattr(expression, "data", None))  # the latter in older releases
    return held.numpy() if hasattr(held, "numpy") else None


def _symmetric(call: Any) -> bool:
    """Return whether quantising or its inverse has int8 on one side, constant scales, and zero points of zero."""
    _, scale, zero = call.args
    if constant_of(scale) is None or constant_of(zero) is None:
        return False
    return dtype_of(zero) == "int8" and not constant_of(zero).any()
