"""The worker's half of an export: build the module, write the ONNX file, inputs, references and weights.

Imports torch, so only workers import this module. `harness/export.py` is the parent's half.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from harness import protocol, registry
from harness.artifact import read_tensors, write_tensors
from harness.errors import ExportError
from harness.measure import StageClock

if TYPE_CHECKING:
    import torch

    from harness.api import ReferenceModel

INPUT_SEED = 1000
"""Input set `i` is drawn with this plus the run's seed plus `i`, so that inputs and weights differ."""
GOLDEN_MEMORY_FACTOR = 6
"""A float64 copy and its activations may take this many times the float32 weights; without room it is left out."""


def export(request: protocol.Export, progress: Callable[[str, int | None, int | None], None]) -> protocol.Exported:
    """Write `model.onnx`, weights, inputs, references and golden values into the request's folder.

    Raises:
        ExportError: The module cannot be built, run or exported.
    """
    import torch

    folder = Path(request.folder)
    model = registry.model(request.model)
    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    progress(f"building {model.name}", None, None)
    torch.manual_seed(request.seed)
    module = model.build().eval()
    _write_weights(module, folder / "weights.safetensors")
    sets = [
        model.example_inputs(batch=request.batch, seed=INPUT_SEED + request.seed + index)
        for index in range(request.input_sets)
    ]
    progress("running the reference", None, None)
    outputs, deterministic = _references(module, model, sets, folder)
    golden = _golden(module, model, sets, folder)
    progress("exporting to ONNX", None, None)
    clock = StageClock()
    with clock.stage("export"):
        _to_onnx(module, model, sets[0], request.opset, folder / "model.onnx")
    return protocol.Exported(
        inputs=_specs(sets[0]),
        outputs=_specs(outputs),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        task=model.task,
        deterministic=deterministic,
        golden=golden,
        export_s=clock.seconds["export"],
        versions=_versions(),
    )


def check(folder: Path, input_sets: int) -> protocol.Checked:
    """Run the exported graph without optimisation and compare with the reference outputs beside it.

    Runs in a process of its own: exporter, session and module together would hold the weights three times.

    Raises:
        ExportError: The graph gives other outputs than eager: relative L2 distance above 1e-3.
    """
    try:
        import onnxruntime
    except ImportError:
        return protocol.Checked(max_abs=None)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime raises many kinds; all mean that the graph is not valid
        raise ExportError(f"the exported graph does not load: {exc}") from exc
    worst_abs = worst_l2 = 0.0
    for index in range(input_sets):
        inputs = read_tensors(folder / f"inputs-{index}.safetensors")
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, inputs), strict=True))
        for name, expected in read_tensors(folder / f"reference-{index}.safetensors").items():
            got = results[name]
            if got.shape != expected.shape or not np.isfinite(got).all():
                raise ExportError(
                    f"the exported graph does not equal eager: '{name}' has shape {list(got.shape)}, expected "
                    f"{list(expected.shape)}, with {int((~np.isfinite(got)).sum())} values that are not finite"
                )
            difference = got.astype(np.float64) - expected
            worst_abs = max(worst_abs, float(np.abs(difference).max(initial=0.0)))
            # Of an output that is zero everywhere the distance itself is judged.
            norm = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
            worst_l2 = max(worst_l2, float(np.linalg.norm(difference)) / norm)
    if worst_l2 > 1e-3:
        raise ExportError(
            f"the exported graph does not equal eager: relative L2 distance {worst_l2:.2g}, at most 1e-3 expected",
            hint="try another --opset",
        )
    return protocol.Checked(max_abs=worst_abs)


def call(module: torch.nn.Module, model: ReferenceModel, inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Run a module on a set of inputs and name its outputs."""
    import torch

    with torch.inference_mode():
        result = module(*[torch.from_numpy(array) for array in inputs.values()])
    return dict(zip(model.output_names, result if isinstance(result, (tuple, list)) else [result], strict=True))


def _references(
    module: torch.nn.Module, model: ReferenceModel, sets: list[dict[str, np.ndarray]], folder: Path
) -> tuple[dict[str, np.ndarray], bool]:
    deterministic = True
    outputs: dict[str, np.ndarray] = {}
    for index, inputs in enumerate(sets):
        try:
            outputs = {name: tensor.numpy() for name, tensor in call(module, model, inputs).items()}
        except Exception as exc:  # a model is the user's code: it may raise anything
            raise ExportError(f"eager cannot run {model.name}: {type(exc).__name__}: {exc}") from exc
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise ExportError(f"the reference output '{name}' holds NaN or infinite values (input set {index})")
        again = call(module, model, inputs)
        deterministic &= all(np.array_equal(array, again[name].numpy()) for name, array in outputs.items())
        write_tensors(folder / f"inputs-{index}.safetensors", inputs)
        write_tensors(folder / f"reference-{index}.safetensors", outputs)
    return outputs, deterministic


def _golden(module: torch.nn.Module, model: ReferenceModel, sets: list[dict[str, np.ndarray]], folder: Path) -> bool:
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if weights * GOLDEN_MEMORY_FACTOR > psutil.virtual_memory().available:
        return False
    try:
        double = copy.deepcopy(module).double()
        for index, inputs in enumerate(sets):
            widened = {
                name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()
            }
            outputs = {name: tensor.numpy() for name, tensor in call(double, model, widened).items()}
            write_tensors(folder / f"golden-{index}.safetensors", outputs)
    except (RuntimeError, TypeError, NotImplementedError, MemoryError):
        # Some operators exist in float32 only; the float32 reference then judges alone.
        for path in folder.glob("golden-*.safetensors"):
            path.unlink()
        return False
    return True


def _to_onnx(
    module: torch.nn.Module, model: ReferenceModel, inputs: dict[str, np.ndarray], opset: int, path: Path
) -> None:
    import onnx
    import torch

    arguments = tuple(torch.from_numpy(array) for array in inputs.values())
    try:
        torch.onnx.export(
            module,
            arguments,
            path,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(model.output_names),
            external_data=_bytes(module) > 1 << 30,  # protobuf cannot hold more than 2 GiB in one file
        )
        onnx.checker.check_model(path, full_check=True)
    except Exception as exc:  # the exporter raises its own and torch's errors; all mean that there is no ONNX file
        raise ExportError(f"torch.onnx cannot export {model.name} at opset {opset}: {exc}") from exc


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # Tied weights share storage, which safetensors refuses: each name gets its own copy.
    save_file({name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}, path)


def _bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _specs(tensors: dict[str, Any]) -> list[tuple[str, str, list[int]]]:
    return [(name, str(array.dtype), list(array.shape)) for name, array in tensors.items()]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}
