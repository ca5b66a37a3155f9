"""From the ONNX file to a Relax module of fused kernels, which tuning and building both start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import tvm_int8, tvm_vnni
from backends.tvm_session import case_of, first_line
from harness.api import CompileRequest
from harness.errors import CompileError, UnsupportedError

RECIPE = "1"
"""Changes whenever `prepare()` does: kernels of another recipe are other tasks with another budget."""
CONV_LAYOUT = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NCHW", "IOHW"]}
"""Channels last, so that a vector runs along them: ResNet-50's kernels reach several times the speed of NCHW.
Transposed convolutions have kernels for channels first only."""
NEWEST = 18
"""The opset that TVM imports best, and that old files are converted to where they cannot be imported."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The module that tuning and building both start from."""

    module: Any
    inputs: tuple[str, ...]
    """In the order of its arguments."""
    notes: list[str]


def prepare(request: CompileRequest, target: Any) -> Prepared:
    """Import the ONNX file and lower it to fused kernels.

    Raises:
        UnsupportedError: The importer lacks an operator.
        CompileError: The file is damaged, or there is no kernel for an operator.
    """
    import onnx

    try:
        model = onnx.load(request.artifact.onnx_path)
    except Exception as exc:  # protobuf's errors and the system's: the file is damaged or gone
        raise CompileError(f"tvm cannot read the ONNX file of {case_of(request)}: {first_line(exc)}") from exc
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(entry.name for entry in model.graph.input if entry.name not in constants)
    _fill_constants(model.graph)
    module, notes = _imported(model, request)
    dots = False
    if request.precision == "int8":
        module, note = _in_integers(module, request)
        notes.append(note)
        dots = tvm_vnni.has_dots(target)
    if any(node.op_type == "Conv" for node in model.graph.node):
        try:
            return Prepared(module=_lower(module, target, CONV_LAYOUT, dots=dots), inputs=inputs, notes=notes)
        except Exception as exc:
            # The layout pass does not know every operator; what it breaks on runs as it was exported.
            notes.append(f"convolutions stayed channels first, which is slower: {first_line(exc)}")
    return Prepared(module=_lower(module, target, None, dots=dots), inputs=inputs, notes=notes)


def _fill_constants(graph: Any) -> None:  # a GraphProto, which is not typed
    """Write constants that a graph gives as numbers as tensors, which the importer wants."""
    import numpy as np
    from onnx import helper, numpy_helper

    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for node in graph.node:
        if node.op_type == "Constant" and (kind := types.get(node.attribute[0].name)):
            value = np.asarray(helper.get_attribute_value(node.attribute[0]), kind)
            node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _imported(model: Any, request: CompileRequest) -> tuple[Any, list[str]]:
    """Return the Relax module of an ONNX model, and what the report must say about how it came to be."""
    import onnx.version_converter
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=NEWEST)
    try:
        try:
            return from_onnx(model, keep_params_in_input=False), []
        except Exception:  # TVM raises many kinds; the newer opset below may know better
            if opset >= NEWEST:
                raise
            # Some converters of old operators are broken; what the same graph says in a newer opset often is not.
            newer = onnx.version_converter.convert_version(model, NEWEST)
            note = f"the ONNX file was converted from opset {opset} to {NEWEST}: tvm could not import it as it is"
            return from_onnx(newer, keep_params_in_input=False), [note]
    except tvm.error.OpNotImplemented as exc:
        raise UnsupportedError(f"tvm cannot import {case_of(request)}: {first_line(exc)}") from exc


def _in_integers(module: Any, request: CompileRequest) -> tuple[Any, str]:
    module, done, left = tvm_int8.integers(module)
    if not done:
        raise UnsupportedError(
            f"tvm would compute {case_of(request)} in float32: no int8 tensor with one symmetric scale is "
            "multiplied by constant weights"
        )
    stay = f", {left} stay in float32" if left else ""
    note = f"int8: TVM leaves products of a quantised graph in float32; harness turned {done} into products of integers"
    return module, note + stay


def _lower(module: Any, target: Any, layout: dict[str, list[str]] | None, *, dots: bool) -> Any:
    import tvm
    from tvm import relax
    from tvm.relax import transform

    passes = [
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        *([transform.ConvertLayout(layout), transform.Normalize(), transform.CanonicalizeBindings()] if layout else []),
        transform.FoldConstant(),
        *([tvm.transform.module_pass(lambda module, _: tvm_vnni.dots(module), opt_level=0)] if dots else []),
        relax.get_pipeline("zero"),
    ]
    with target:
        lowered = tvm.transform.Sequential(passes)(module)
    left: set[str] = set()

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Call) and str(getattr(expression.op, "name", "")).startswith("relax.nn."):
            left.add(expression.op.name)

    for function in lowered.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    if left:
        raise CompileError(f"tvm has no kernels for {', '.join(sorted(left))}")
    return lowered
