"""The worker's half of `harness/lowering.py`: an ONNX graph in an older opset or file format.

Imports onnx, so only workers import this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import protocol
from harness.artifact import Artifact
from harness.domains import STANDARD, drop_idle
from harness.errors import UnsupportedError
from harness.paths import link_or_copy

LARGEST_BYTES = 1 << 30
"""The version converter wants the whole graph in one piece, and protobuf ends at 2 GiB."""


def lower(request: protocol.Lower) -> protocol.Lowered:
    """Write `model.onnx` in a form that a library with the request's limits reads into the request's folder.

    Raises:
        UnsupportedError: There is no such form, or it would not be the same arithmetic.
    """
    import onnx

    source = Artifact.open(Path(request.artifact))
    target = Path(request.folder) / source.onnx_path.name
    model = onnx.load(source.onnx_path, load_external_data=False)
    if _opset(model) > request.opset:
        model = _converted(source, request.opset)
        external = False
    else:
        external = True
    drop_idle(model)
    model.ir_version = min(model.ir_version, request.ir)
    onnx.save(model, target)
    if external:  # the weights beside the graph stay what they are
        for path in source.folder.glob(f"{source.onnx_path.name}?*"):
            link_or_copy(path, target.with_name(path.name))
    return protocol.Lowered(opset=_opset(model), ir=model.ir_version)


def _converted(source: Artifact, opset: int) -> Any:  # a ModelProto, which is not typed
    import onnx
    from onnx import version_converter

    if source.manifest.weights_bytes > LARGEST_BYTES:
        raise UnsupportedError(
            f"this release reads opset {opset} at most, and a graph above 1 GiB cannot be converted to it",
            hint=f"--opset {opset}",
        )
    try:
        converted = version_converter.convert_version(onnx.load(source.onnx_path), opset)
        _drop_defaults(converted, _opset(onnx.load(source.onnx_path, load_external_data=False)), opset)
        return converted
    except Exception as exc:  # the converter raises many kinds; all mean that there is no such graph
        raise UnsupportedError(
            f"this release reads opset {opset} at most, and the graph cannot be converted to it: {exc}",
            hint=f"--opset {opset}",
        ) from exc


def _drop_defaults(model: Any, newer: int, opset: int) -> None:
    """Take attributes away that an operator did not have yet, where they say what it did then anyway.

    The converter leaves them: a mean of opset 18 keeps its `noop_with_empty_axes` in opset 17, which refuses it.
    """
    from onnx import defs, helper

    for node in model.graph.node:
        if node.domain not in STANDARD or not defs.has(node.op_type):
            continue
        known = defs.get_schema(node.op_type, opset, "").attributes
        added = defs.get_schema(node.op_type, newer, "").attributes
        for attribute in [one for one in node.attribute if one.name not in known and one.name in added]:
            default = added[attribute.name].default_value
            if default.name and helper.get_attribute_value(default) == helper.get_attribute_value(attribute):
                node.attribute.remove(attribute)


def _opset(model: Any) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), 1)
