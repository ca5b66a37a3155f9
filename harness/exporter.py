"""The worker's half of an export: build the module, write the ONNX file, inputs, references and weights.

Imports torch, so only workers import this module. `harness/export.py` is the parent's half;
`harness/graph_reference.py` is this one's counterpart for models that exist as an ONNX graph only.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from harness import environment, flops, graph_cost, inputs, protocol, registry, shapes, weights
from harness.api import GraphModel, Model
from harness.artifact import write_tensors
from harness.errors import ExportError
from harness.graph_reference import check, export_graph
from harness.measure import StageClock
from harness.references import failed, specs, write_set
from harness.torch_rules import set_rules

if TYPE_CHECKING:
    import torch

__all__ = ["call", "check", "export", "named_outputs"]

OnStep = Callable[[str, int | None, int | None], None]

ONE_FILE_BYTES = 1 << 30
"""Weights above this become external data: protobuf cannot hold more than 2 GiB, and needs copies of what it holds."""
GOLDEN_SLACK_BYTES = 2 << 30
"""Room for activations in float64, beside what the weights grow by."""
FLOAT64_BYTES = 8
RECORDED = ("transformers", "diffusers")
"""Libraries that define models: their versions are recorded where they took part."""


def export(request: protocol.Export, progress: OnStep) -> protocol.Exported:
    """Write `model.onnx`, weights, inputs, references and golden values into the request's folder.

    Raises:
        UsageError: A dimension, a shape or an input that the user gave does not fit the model.
        ExportError: The module cannot be built, run or exported.
    """
    model = registry.model(request.model)
    if isinstance(model, GraphModel):
        return export_graph(model, request, progress)
    return _export_module(model, request, progress)


def _export_module(model: Model, request: protocol.Export, progress: OnStep) -> protocol.Exported:
    import torch

    folder = Path(request.folder)
    torch.set_num_threads(request.threads)
    dims = _dims_before(model, request)
    progress(f"building {request.model.label}", None, None)
    loaded = weights.load(model, request.weights, dims, request.seed, request.model)
    dims = shapes.settle(model, request)
    # On the CPU whatever devices there are: one reference for every device, and no error of a device's own in it.
    module = loaded.module.eval().cpu()
    set_rules()
    weights_bytes = _write_weights(module, folder / "weights.safetensors")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    sets = inputs.sets(model, request, dims)
    outputs, deterministic = _references(module, model, sets, folder, progress)
    # Before the export to ONNX: what torch.onnx leaves behind holds on to the weights as they are then.
    golden = _golden(module, model, sets, folder, progress)
    gflop = flops.count(module, sets[0])
    progress("exporting to ONNX", None, None)
    clock = StageClock()
    with clock.stage("export"):
        opset = _to_onnx(module, model, request, sets[0], list(outputs), weights_bytes)
    return protocol.Exported(
        least_bytes=graph_cost.cost(folder / "model.onnx").least_bytes,
        inputs=specs(sets[0]),
        outputs=specs(outputs),
        input_sets=len(sets),
        dims=dims,
        axes=shapes.free_axes(model.inputs),
        module=True,
        reference=f"PyTorch {torch.__version__}",
        weights=loaded.label,
        weights_sha256=loaded.sha256,
        weights_bytes=weights_bytes,
        gflop=gflop,
        parameters=parameters,
        opset=opset,
        task=model.task,
        deterministic=deterministic,
        golden=golden,
        export_s=clock.seconds["export"],
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript", *RECORDED) if name in sys.modules},
        sources=sorted({*loaded.sources, *inputs.sources(model), *sets.files}),
        notes=[*inputs.notes(model), *sets.notes],
    )


# ---- sizes


def _dims_before(model: Model, request: protocol.Export) -> dict[str, int]:
    """Return the dimensions to build with; what cannot be held against the inputs yet is when the module is there."""
    if model.inputs:
        return shapes.settle(model, request)
    return {**inputs.dims(model), **request.dims}


# ---- running


def call(module: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> Any:  # whatever the module returns
    """Run a module on a set of inputs, by position.

    Raises:
        ExportError: It changes its inputs in place: sessions are given the same tensors again and again.
    """
    import torch

    arguments = {name: torch.tensor(array) for name, array in tensors.items()}
    with torch.inference_mode():
        result = module(*arguments.values())
    for name, tensor in arguments.items():
        if not np.array_equal(tensor.numpy(), tensors[name], equal_nan=tensor.is_floating_point()):
            raise ExportError(f"the module changes its input '{name}' in place", hint="let it work on a copy")
    return result


def named_outputs(result: Any, declared: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Return a module's results by name: as declared, as the keys of a mapping, `output_0` and on, or `output`.

    Raises:
        ExportError: A result is not a tensor, or there are more or fewer than were declared.
    """
    import torch

    if isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items()}
    elif isinstance(result, (tuple, list)):
        found = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        found = {"output": result}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"'{name}' of the module's results is {_kind(value)}, not a tensor",
                hint="wrap it in a module whose forward returns a tensor, or a tuple or dict of tensors",
            )
    if not found:
        raise ExportError("the module returns nothing")
    names = list(declared)
    if names and len(names) != len(found):
        raise ExportError(f"expected {len(names)} outputs ({', '.join(names)}), the module returns {len(found)}")
    return dict(zip(names or found, found.values(), strict=True))


def _arrays(module: torch.nn.Module, model: Model, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in named_outputs(call(module, tensors), model.output_names).items():
        if str(tensor.dtype) == "torch.bfloat16" or tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ExportError(f"output '{name}' is {kind}, which cannot be compared", hint="convert it to float32")
        arrays[name] = np.array(tensor.numpy())  # a copy: the module may return a buffer that it writes again
    return arrays


def _references(
    module: torch.nn.Module, model: Model, sets: inputs.Sets, folder: Path, progress: OnStep
) -> tuple[dict[str, np.ndarray], bool]:
    deterministic = True
    outputs: dict[str, np.ndarray] = {}
    for index in range(len(sets)):
        progress("running the reference", index, len(sets))
        tensors = sets[index]
        try:
            outputs = _arrays(module, model, tensors)
            if index == 0:
                again = _arrays(module, model, tensors)
                deterministic = all(np.array_equal(array, again[name]) for name, array in outputs.items())
        except (ExportError, MemoryError):
            raise
        except Exception as exc:  # a model is the user's code: it may raise anything
            raise failed("PyTorch cannot run the module", exc) from exc
        write_set(folder, index, tensors, outputs)
    return outputs, deterministic


def _golden(module: torch.nn.Module, model: Model, sets: inputs.Sets, folder: Path, progress: OnStep) -> bool:
    """Run the module in float64, widened where it stands and narrowed again: a copy would take half as much more.

    False where there is no room, or an operator exists in float32 only; the float32 reference then judges alone.
    """
    tensors = [*module.parameters(), *module.buffers()]
    floating = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
    grows = sum(tensor.numel() * (FLOAT64_BYTES - tensor.element_size()) for tensor, _ in floating)
    if grows + GOLDEN_SLACK_BYTES > _free_bytes():
        return False
    try:
        for tensor, _ in floating:
            tensor.data = tensor.data.double()  # not `module.double()`, which puts other buffers in these ones' place
        for index in range(len(sets)):
            progress("running the reference in float64", index, len(sets))
            outputs = _arrays(module, model, {name: _widened(array) for name, array in sets[index].items()})
            write_tensors(folder / f"golden-{index}.safetensors", outputs)
    except Exception:  # whatever it is, the export goes on without
        for path in folder.glob("golden-*.safetensors"):
            path.unlink()
        return False
    finally:
        for tensor, dtype in floating:
            tensor.data = tensor.data.to(dtype)  # exact: every narrower value exists in float64
        gc.collect()
    return True


def _free_bytes() -> int:
    left = environment.default_memory_limit() - psutil.Process().memory_info().rss
    return int(min(psutil.virtual_memory().available, left))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


# ---- files


def _to_onnx(
    module: torch.nn.Module,
    model: Model,
    request: protocol.Export,
    tensors: Mapping[str, np.ndarray],
    outputs: list[str],
    weights_bytes: int,
) -> int:
    """Write `model.onnx` and return its opset."""
    import onnx
    import torch

    path = Path(request.folder) / "model.onnx"
    try:
        with torch.no_grad():
            torch.onnx.export(
                module,
                tuple(torch.tensor(array) for array in tensors.values()),
                path,
                dynamo=True,
                opset_version=request.opset,
                input_names=list(tensors),
                output_names=outputs,
                dynamic_shapes=_dynamic_shapes(module, model, request),
                external_data=weights_bytes > ONE_FILE_BYTES,
            )
        onnx.checker.check_model(path, full_check=True)  # by its path: what is above 2 GiB cannot be checked otherwise
    except MemoryError:
        raise
    except Exception as exc:  # the exporter raises its own and torch's errors; all mean that there is no ONNX file
        free = " with free dimensions " + ", ".join(request.dynamic) if request.dynamic else ""
        raise failed(f"torch.onnx cannot export it at opset {request.opset}{free}", exc) from exc
    opsets = onnx.load(path, load_external_data=False).opset_import
    return next((int(entry.version) for entry in opsets if entry.domain in ("", "ai.onnx")), request.opset)


def _dynamic_shapes(module: torch.nn.Module, model: Model, request: protocol.Export) -> tuple[Any, ...] | None:
    import torch

    if not request.dynamic:
        return None
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in request.dynamic.items()}
    rows: list[Any] = []
    for spec in model.inputs:
        free = {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str) and size in dims}
        rows.append(free or None)
    # What `forward(self, *inputs)` gathers is one argument to torch.export: a tuple.
    parameters = list(inspect.signature(module.forward).parameters.values())
    gathers = next((i for i, parameter in enumerate(parameters) if parameter.kind is parameter.VAR_POSITIONAL), None)
    return tuple(rows) if gathers is None else (*rows[:gathers], tuple(rows[gathers:]))


def _write_weights(module: torch.nn.Module, path: Path) -> int:
    """Write the state dict and return its size in bytes, each storage counted once.

    Buffers that are no part of the state dict are written too: a user's module may have drawn them at random.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    size = 0
    state = {}
    for name, tensor in {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict()}.items():
        address = tensor.untyped_storage().data_ptr()
        shared = address in seen and tensor.numel() > 0
        seen.add(address)
        size += 0 if shared else tensor.numel() * tensor.element_size()
        # Tied weights share storage, which safetensors refuses. Copies of all would double what a large model takes.
        state[name] = tensor.contiguous().clone() if shared or not tensor.is_contiguous() else tensor
    save_file(state, path)
    return size


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
