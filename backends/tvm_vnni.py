"""Products of int8 by the instruction that CPUs with AVX-512 VNNI have for them.

Without it TVM widens both factors to int32, hardly faster than float32; with it four tuned kernels ran about ten times
faster. It multiplies unsigned by signed bytes, so data is shifted by 128, and 128 times the sums of the weights are
taken off again in int32: exact.

MetaSchedule has rules for the instruction, but they fit only kernels whose weights lie as it reads them, and Relax lays
none out so.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np

from backends.tvm_int8 import PRODUCTS, constant_of, dtype_of, name_of, rewritten

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

LANES, GROUP = 16, 4
"""Sums that one instruction adds to, and products that it adds to each."""
SHIFT = 128
"""From int8 to uint8."""
INTRINSIC = "dot_16x4_vnni"
"""The name by which MetaSchedule's rules for such a CPU ask for it."""
OUT_ELEMENTWISE_FUSABLE = 4
"""TVM's number for kernels that what follows element by element may be fused into."""

# TVM 0.27 has this one too, but gives the instruction 16 x int32 where the LLVM that it brings wants 64 x int8.
_SCRIPT = """
# from tvm.script import tirx as T

@T.prim_func(s_tir=True)
def dot(
    A: T.Buffer((4,), "uint8", offset_factor=1),
    B: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
):
    with T.sblock("root"):
        T.reads(C[0:16], A[0:4], B[0:16, 0:4])
        T.writes(C[0:16])
        {body}
"""
_DESCRIPTION = """
        for i, k in T.grid(16, 4):
            with T.sblock("update"):
                vi, vk = T.axis.remap("SR", [i, k])
                C[vi] = C[vi] + T.Cast("int32", A[vk]) * T.Cast("int32", B[vi, vk])
"""
_INSTRUCTION = """
        C[T.ramp(0, 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            C.vload([0], dtype="int32x16"),
            T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), 16), dtype="int8x64"),
            B.vload([0, 0], dtype="int8x64"),
            dtype="int32x16",
        )
"""


def has_dots(target: Any) -> bool:
    """Return whether code for a target can use the instruction, and register it with TVM if so."""
    from tvm.target.codegen import target_has_features

    if target.kind.name != "llvm" or not target_has_features(["avx512bw", "avx512vnni"], target):
        return False
    return _registered(target)


@cache
def _registered(target: Any) -> bool:
    import tvm
    from tvm.s_tir import TensorIntrin
    from tvm.script import from_source

    meant, instruction = (from_source(_SCRIPT.format(body=body.strip())) for body in (_DESCRIPTION, _INSTRUCTION))
    try:
        tvm.compile(tvm.IRModule({"main": instruction.with_attr("global_symbol", "main")}), target=target)
    except Exception:  # which types LLVM wants has changed once, and TVM has no one error for it; int32 always works
        logging.getLogger(__name__).warning("no VNNI kernels: TVM cannot compile the instruction", exc_info=True)
        return False
    TensorIntrin.register(INTRINSIC, meant, instruction, override=True)
    return True


def of_dots(module: Any) -> bool:
    """Return whether a kernel, a module of one function, is one that `dots()` made."""
    if not _registered.cache_info().currsize:
        return False
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    arguments = (argument.as_json() for argument in ArgInfo.from_entry_func(module, remove_preproc=True))
    return {"uint8", "int8"} <= {str(dtype) for _, dtype, _ in arguments}


def dots(module: Any) -> Any:
    """Replace products of int8 by those that the instruction computes; those whose sizes do not fit stay.

    Convolutions must be channels last, and weights constants.
    """
    from tvm import relax, te, tirx
    from tvm.relax import op
    from tvm.topi.nn import pad

    def sums(data: Any, weights: Any, attributes: Any) -> Any:
        def weight(chunk: Any, lane: Any, *row: Any) -> Any:
            *window, k = row
            return weights[(chunk, *window, k // GROUP, lane, k % GROUP)].astype("int32")

        def joined(sums: Any) -> Any:
            # Lanes are an axis of their own in the sums: no loop around the instruction is then made a vector of.
            shape = (*sums.shape[:-2], sums.shape[-2] * LANES)
            return te.compute(shape, lambda *at: sums[(*at[:-1], at[-1] // LANES, at[-1] % LANES)], name="joined")

        k = te.reduce_axis((0, weights.shape[-3] * GROUP), name="k")
        if attributes is None:
            return joined(
                te.compute(
                    (*data.shape[:-1], weights.shape[0], LANES),
                    lambda *at: te.sum(data[(*at[:-2], k)].astype("int32") * weight(*at[-2:], k), axis=k),
                    name="matmul",
                )
            )
        (top, left, bottom, right), (high, wide) = attributes.padding, weights.shape[1:3]
        extra = weights.shape[-3] * GROUP - data.shape[-1]
        if any(int(size) for size in (top, left, bottom, right, extra)):
            zero = tirx.const(SHIFT, "uint8")
            data = pad(data, (0, top, left, 0), (0, bottom, right, extra), zero, name="pad_temp")
        (down, across), (tall, broad) = attributes.strides, attributes.dilation
        y, x = te.reduce_axis((0, high), name="y"), te.reduce_axis((0, wide), name="x")
        rows = (data.shape[1] - tall * (high - 1) - 1) // down + 1
        places = (data.shape[2] - broad * (wide - 1) - 1) // across + 1
        return joined(
            te.compute(
                (data.shape[0], rows, places, weights.shape[0], LANES),
                lambda n, i, j, *column: te.sum(
                    data[n, i * down + y * tall, j * across + x * broad, k].astype("int32") * weight(*column, y, x, k),
                    axis=[y, x, k],
                ),
                name="conv2d",
            )
        )

    @relax.expr_functor.mutator
    class Dots(relax.expr_functor.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if name_of(call) not in PRODUCTS or dtype_of(call.args[0]) != "int8":
                return call
            attributes = call.attrs if name_of(call) == "relax.nn.conv2d" else None
            if attributes is not None and (attributes.data_layout, attributes.groups) != ("NHWC", 1):
                return call
            values = constant_of(call.args[1])
            if values is None or values.ndim not in (2, 4) or values.shape[-1] % LANES:
                return call
            rest = -values.shape[-2] % GROUP
            if rest and attributes is None:
                return call
            widths = [(0, 0)] * values.ndim
            widths[-2] = (0, rest)
            packed = np.pad(values, widths)
            *window, inner, outer = packed.shape
            packed = packed.reshape(*window, inner // GROUP, GROUP, outer // LANES, LANES)
            packed = np.moveaxis(packed, (-2, -3), (0, -1))
            shifted = op.add(op.astype(call.args[0], "uint8"), relax.const(SHIFT, "uint8"))
            product = self.builder_.call_te(
                *(sums, self.builder_.emit(shifted), relax.const(np.ascontiguousarray(packed)), attributes),
                primfunc_name_hint=name_of(call).rpartition(".")[2],
                primfunc_attrs={"op_pattern": OUT_ELEMENTWISE_FUSABLE},
            )
            excess = SHIFT * values.astype(np.int32).sum(axis=tuple(range(values.ndim - 1)), dtype=np.int32)
            return op.subtract(self.builder_.emit(product), relax.const(excess))

    return rewritten(module, Dots)
