"""A torch module in int8, by PyTorch 2's export quantisation: the worker's half, for backends that compile modules.

Scales mean the same as in the ONNX graph and are found on the same samples: symmetric, the largest magnitude is 127
steps, one scale a channel for weights. oneDNN's convolutions take unsigned activations only, so a signed value is kept
with 128 added to it, which changes neither steps nor range. Which operators are quantised is torchao's recipe for the
kernels that Inductor has on a CPU; unlike in the ONNX graph,

- a sum that oneDNN adds within a convolution takes that convolution's result unrounded;
- what is no convolution over one or two dimensions and no linear layer stays in float32: transposed and
  three-dimensional convolutions, and products with weights that are written as plain matrix products.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import protocol, registry
from harness.artifact import Artifact
from harness.calibrating import OnStep, Reader, calibration_sets
from harness.errors import UnsupportedError, UsageError
from harness.modelspec import ModelSpec
from harness.paths import link_or_copy
from harness.references import failed

if TYPE_CHECKING:
    import torch

METHOD = "minmax"
STEPS = 127
ZERO_POINT = 128
LEAST_SCALE = 1e-12
"""Of what is zero in all samples."""
INSTALL = "pip install 'harness[torch-int8]'"


def quantise(source: Artifact, target: Path, request: protocol.Convert, progress: OnStep) -> list[str]:
    """Write the module's program with its int8 weights and calibrated scales to `target`. Return notes.

    Raises:
        UnsupportedError: torchao is missing, or the module, its shapes or the calibration method cannot be had in int8.
        UsageError: The calibration inputs do not fit the model, or it is quantised already.
        ExportError: torch cannot capture or quantise the module.
    """
    import torch

    if request.method != METHOD:
        raise UnsupportedError(
            f"torch modules are calibrated by {METHOD} only, not by {request.method}",
            hint=f"--calibration-method {METHOD}",
        )
    if source.manifest.dynamic:
        raise UnsupportedError(
            "a torch module in int8 is not built with free dimensions", hint="leave out dynamic=true"
        )
    recipe, prepare, convert = _torchao()
    module = source.module()
    arguments = _tensors(source.input_set(0))
    progress("capturing the module", None, None)
    with torch.no_grad():
        try:
            # Strictly: else several calls of one activation are one place to torchao, which then gives up.
            captured = torch.export.export(module, arguments, strict=True).module()
            captured.graph.eliminate_dead_code()  # of which torchao's patterns know no output
            captured.recompile()
        except Exception as exc:  # tracing runs the model's own code, which may raise anything
            raise failed("torch.export cannot capture the module to quantise it", exc) from exc
        if any("quantize" in str(node.target) for node in captured.graph.nodes):
            raise UsageError(
                f"{source.manifest.model.label} is quantised already", hint="compare it as it is: --precision fp32"
            )
        sets = calibration_sets(source, request)
        reader = Reader(sets, progress)
        try:
            observed = prepare(captured, recipe)
            while (one := reader.get_next()) is not None:
                observed(*_tensors(one))
            quantised = convert(observed)
        except (UsageError, UnsupportedError):
            raise  # of a sample that cannot be read
        except Exception as exc:  # as above; and torchao checks by assertions
            raise failed("the module cannot be quantised to int8", exc) from exc
        if not (count := products(quantised)):
            raise UnsupportedError("no operator of the module multiplies by weights: there is nothing to do in int8")
        torch.export.save(torch.export.export(quantised, arguments), target)
    for path in source.folder.glob(f"{source.onnx_path.name}*"):
        link_or_copy(path, target.with_name(path.name))  # whose nodes a profile names
    return [
        f"int8 of torch backends: {count} products are quantised, their scales calibrated on {len(sets)} "
        f"{f'samples of {request.calibration}' if request.calibration else 'drawn samples'}, {METHOD}, "
        f"set {reader.digest}",
        *sets.notes,
    ]


def restore(path: Path) -> torch.nn.Module:
    """Return the module that `quantise()` wrote; torchao is not needed for that.

    Raises:
        ExportError: The file is damaged.
    """
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - the program's operators are registered by it

    model = registry.model(ModelSpec(kind="exported", name=str(path)))
    module: torch.nn.Module = model.build({})
    return module


def products(module: Any) -> int:  # a GraphModule
    """Return how many of a quantised program's operators multiply by weights in int8: each has weights of its own."""
    return sum("dequantize_per_channel" in str(node.target) for node in module.graph.nodes)


def _tensors(arrays: Any) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.tensor(array) for array in arrays.values())


def _torchao() -> tuple[Any, Any, Any]:
    """Return torchao's recipe with our scales, and its two functions that use it.

    Raises:
        UnsupportedError: It is not installed, or cannot be imported.
    """
    import torch

    try:
        from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer
    except ImportError as exc:
        raise UnsupportedError(f"torchao quantises torch modules, and cannot be imported: {exc}", hint=INSTALL) from exc

    class Symmetric(MinMaxObserver):  # type: ignore[misc]  # torchao is Any to the type checker
        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            largest = torch.maximum(-self.min_val, self.max_val).reshape(1)
            return torch.clamp(largest / STEPS, min=LEAST_SCALE), torch.full((1,), ZERO_POINT, dtype=torch.int64)

    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=Symmetric.with_args(eps=LEAST_SCALE),
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-STEPS,
        quant_max=STEPS,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE),
    )
    recipe = X86InductorQuantizer()
    recipe.set_global(QuantizationConfig(activations, activations, weights, None))
    recipe.set_function_type_qconfig(torch.mul, None)  # which multiplies no weights
    return recipe, prepare_pt2e, convert_pt2e
