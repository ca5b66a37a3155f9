"""The worker's half of a conversion: an artifact's graph in another precision.

Imports onnx and its tools, so only workers import this module. `harness/conversion.py` is the parent's half.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import protocol
from harness.artifact import PROGRAM, Artifact
from harness.calibrating import Reader, calibration_sets
from harness.domains import drop_idle
from harness.environment import library_versions
from harness.errors import ExportError, UnsupportedError, UsageError
from harness.halving import beyond, halved
from harness.masks import masking_nodes
from harness.measure import StageClock
from harness.narrowing import between_casts
from harness.precisions import CONVERTERS
from harness.quantising import PRODUCTS, make_ready, quantised_nodes
from harness.references import failed
from harness.torch_quantising import quantise

OnStep = Callable[[str, int | None, int | None], None]

ONE_FILE_BYTES = 1 << 30
"""Graphs above this get external data: protobuf ends at 2 GiB."""
QUANTIZED_OPSET = 17
"""Scales for each channel need opset 13; older graphs are raised to this."""
BFLOAT16_OPSET = 22
"""The first in which convolutions and their like know bfloat16."""
FLOAT8_OPSET = 19
"""The first in which QuantizeLinear knows float8."""


def convert(request: protocol.Convert, progress: OnStep) -> protocol.Converted:
    """Write the graph or the torch module in the request's precision into its folder.

    Raises:
        UnsupportedError: The graph cannot be had in this precision.
        UsageError: The calibration inputs do not fit the model, or it is quantised already.
        ExportError: The conversion failed.
    """
    source = Artifact.open(Path(request.artifact))
    target = Path(request.folder) / "model.onnx"
    clock = StageClock()
    if request.source == "torch":
        assert request.precision == "int8", "a torch module is narrowed to others by the backend itself"
        with clock.stage("convert"):
            notes = quantise(source, target.with_name(PROGRAM), request, progress)
        return _converted(source.manifest.opset, clock, notes)
    how = {"fp16": _half, "bf16": _bfloat16, "int8": _quantized, "fp8": _quantized}[request.precision]
    with clock.stage("convert"):
        notes = how(source, target, request, progress)
        _drop_idle_domains(target)
    return _converted(_opset(target), clock, notes)


def _converted(opset: int, clock: StageClock, notes: list[str]) -> protocol.Converted:
    seconds = clock.seconds["convert"]
    return protocol.Converted(opset=opset, seconds=seconds, notes=notes, versions=library_versions(CONVERTERS))


def _half(source: Artifact, target: Path, request: protocol.Convert, progress: OnStep) -> list[str]:
    import onnx

    progress("converting to float16", None, None)
    model = onnx.load(source.onnx_path)
    large = source.manifest.weights_bytes > ONE_FILE_BYTES
    cut = beyond(model)
    try:
        # Shapes cannot be inferred over a graph that protobuf cannot hold in one piece.
        half = halved(model, request.keep, infer_shapes=not large)
        _save(half, target, large)
        onnx.checker.check_model(target, full_check=True)
    except Exception as exc:  # the converter raises many kinds; all mean that there is no such graph
        raise failed("the graph cannot be converted to float16", exc) from exc
    return [f"fp16: {cut} constants of the graph do not fit into float16 and were cut to its range"] if cut else []


def _bfloat16(source: Artifact, target: Path, request: protocol.Convert, progress: OnStep) -> list[str]:
    import onnx
    import torch
    from onnxscript import optimizer

    if request.keep:
        raise UnsupportedError("a graph in bf16 is exported as one: no node of it can stay in float32")
    if not source.manifest.module:
        raise UnsupportedError("bf16 needs a torch module, and this model is an ONNX file", hint="--precision fp16")
    progress("exporting in bfloat16", None, None)
    module = source.module()
    assert isinstance(module, torch.nn.Module)
    tensors = tuple(torch.tensor(array) for array in source.input_set(0).values())
    if source.manifest.dynamic:
        raise UnsupportedError("bf16 is not built with free dimensions", hint="leave out dynamic=true")
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                between_casts(module, request.precision),
                tensors,
                dynamo=True,
                opset_version=max(source.manifest.opset, BFLOAT16_OPSET),
                input_names=[spec.name for spec in source.inputs],
                output_names=[spec.name for spec in source.outputs],
                # Its optimizer folds batch norms into convolutions in float32, beside an input in bfloat16.
                optimize=False,
            )
        # What backends want as constants, such as the axes of a mean, must still become some.
        optimizer.fold_constants(program.model)
        program.save(target, external_data=source.manifest.weights_bytes > ONE_FILE_BYTES)
        onnx.checker.check_model(target, full_check=True)
    except Exception as exc:  # the exporter raises its own and torch's errors; all mean that there is no such graph
        raise failed("torch.onnx cannot export it in bfloat16", exc) from exc
    return []


def _quantized(source: Artifact, target: Path, request: protocol.Convert, progress: OnStep) -> list[str]:
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    float8 = request.precision == "fp8"
    model = onnx.load(source.onnx_path, load_external_data=False)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in model.graph.node):
        raise UsageError(
            f"{source.manifest.model.label} is quantised already", hint="compare it as it is: --precision fp32"
        )
    large = source.manifest.weights_bytes > ONE_FILE_BYTES
    with tempfile.TemporaryDirectory() as scratch, _as_conversion(request.precision):
        prepared = Path(scratch) / "prepared.onnx"
        path = source.onnx_path
        if _opset(path) < (FLOAT8_OPSET if float8 else 13):
            newer = version_converter.convert_version(onnx.load(path), FLOAT8_OPSET if float8 else QUANTIZED_OPSET)
            path = Path(scratch) / "newer.onnx"
            _save(newer, path, large)
        progress("preparing the graph for quantisation", None, None)
        try:
            quant_pre_process(path, prepared, save_as_external_data=large, skip_symbolic_shape=large)
        except Exception:  # its symbolic inference fails on some graphs; where all sizes are known ONNX's own will do
            quant_pre_process(path, prepared, save_as_external_data=large, skip_symbolic_shape=True)
        make_ready(prepared)
        masking = masking_nodes(prepared)
        if not (chosen := [name for name in quantised_nodes(prepared) if name not in {*masking, *request.keep}]):
            raise UnsupportedError(
                f"no node of the graph multiplies by weights: there is nothing to do in {request.precision}"
            )
        sets = calibration_sets(source, request)
        reader = Reader(sets, progress)
        kind = quantization.QuantType.QFLOAT8E4M3FN if float8 else quantization.QuantType.QInt8
        quantization.quantize_static(
            prepared,
            target,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=not float8,
            activation_type=kind,
            weight_type=kind,
            calibrate_method=_method(quantization.CalibrationMethod, request),
            nodes_to_quantize=chosen,
            calibration_cache_path=request.ranges,
            use_external_data_format=large,
            # Symmetric, and biases left in float: what every backend reads, TensorRT among them.
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            },
        )
    method = "distribution" if float8 else request.method
    return [
        f"{request.precision}: {len(chosen)} nodes are quantised, their scales calibrated on {len(sets)} "
        f"{f'samples of {request.calibration}' if request.calibration else 'drawn samples'}, {method}"
        + (f", set {reader.digest}" if reader.digest else ""),
        *sets.notes,
    ]


def _method(methods: Any, request: protocol.Convert) -> Any:  # onnxruntime's enumeration
    if request.precision == "fp8":  # the only method that knows float8
        return methods.Distribution
    return {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[request.method]


@contextmanager
def _as_conversion(precision: str) -> Iterator[None]:
    try:
        yield
    except (ExportError, UsageError, UnsupportedError, MemoryError):
        raise
    except Exception as exc:  # ONNX Runtime's tools raise many kinds; all mean that there is no such graph
        raise failed(f"the graph cannot be quantised to {precision}", exc) from exc


def _save(model: Any, path: Path, large: bool) -> None:  # a ModelProto, which is not typed
    import onnx

    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


def _drop_idle_domains(path: Path) -> None:
    import onnx

    model = onnx.load(path, load_external_data=False)
    if drop_idle(model):
        onnx.save(model, path)  # what lies beside it stays as it is


def _opset(path: Path) -> int:
    import onnx

    entries = onnx.load(path, load_external_data=False).opset_import
    return next((int(entry.version) for entry in entries if entry.domain in ("", "ai.onnx")), 1)
