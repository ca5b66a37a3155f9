"""Run an ONNX graph as it stands: the reference of a model that has nothing else, and the check of an exported one.

ONNX Runtime without graph optimisation, on the CPU: every node as the file says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import graph_cost, inputs, protocol, shapes, weights
from harness.api import GraphModel
from harness.artifact import read_tensors
from harness.errors import ExportError
from harness.measure import StageClock
from harness.references import failed, specs, write_set
from harness.weights import OWN

BITS = (8, 16, 32, 64)
COMPARED = tuple(
    f"tensor({name})"
    for name in ("float", "double", "float16", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in BITS))
)
"""Types of outputs that numpy has."""
TOLERANCE = 1e-3
"""Largest relative L2 distance between an exported graph and the module that it came from."""


def check(folder: Path, input_sets: int, threads: int) -> protocol.Checked:
    """Run the exported graph and compare with the reference outputs beside it.

    Runs in a process of its own: exporter, session and module together would hold the weights three times.

    Raises:
        ExportError: The graph gives other outputs than the module: relative L2 distance above 1e-3.
    """
    try:
        import onnxruntime  # noqa: F401 - asked for here, used below
    except ImportError:
        return protocol.Checked(max_abs=None)
    session = open_as_it_stands(folder / "model.onnx", threads=threads, what="the exported graph does not load")
    worst_abs = worst_l2 = 0.0
    for index in range(input_sets):
        results = _run(session, read_tensors(folder / f"inputs-{index}.safetensors"))
        for name, expected in read_tensors(folder / f"reference-{index}.safetensors").items():
            got = results[name]
            if got.shape != expected.shape or not np.isfinite(got).all():
                raise ExportError(
                    f"the exported graph does not equal the module: '{name}' has shape {list(got.shape)}, expected "
                    f"{list(expected.shape)}, with {int((~np.isfinite(got)).sum())} values that are not finite"
                )
            difference = got.astype(np.float64) - expected
            worst_abs = max(worst_abs, float(np.abs(difference).max(initial=0.0)))
            # Of an output that is zero everywhere the distance itself is judged.
            norm = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
            worst_l2 = max(worst_l2, float(np.linalg.norm(difference)) / norm)
    if worst_l2 > TOLERANCE:
        raise ExportError(
            f"the exported graph does not equal the module: relative L2 distance {worst_l2:.2g}, at most "
            f"{TOLERANCE:g} expected",
            hint="try another --opset",
        )
    return protocol.Checked(max_abs=worst_abs)


def export_graph(
    model: GraphModel, request: protocol.Export, progress: Callable[[str, int | None, int | None], None]
) -> protocol.Exported:
    """Write the user's graph with its shapes fixed, inputs and references into the request's folder.

    Raises:
        UsageError: A free dimension is not set, or what the user gave does not fit the graph.
        ExportError: The file is damaged, or ONNX Runtime cannot run it.
    """
    import onnx

    runtime = _runtime()
    folder = Path(request.folder)
    if request.weights != OWN:
        weights.load(model, request.weights, {}, request.seed, request.model)  # says why there are no others
    dims = shapes.settle(model, request)
    progress(f"reading {request.model.label}", None, None)
    clock = StageClock()
    with clock.stage("export"):
        model.write(folder / "model.onnx", dims, request.dynamic)
    sets = inputs.sets(model, request, dims)
    outputs, deterministic = _references(folder, request, sets, progress)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    sizes = [_elements(tensor) for tensor in graph.graph.initializer]
    costs = graph_cost.cost(folder / "model.onnx")
    return protocol.Exported(
        inputs=specs(sets[0]),
        outputs=specs(outputs),
        input_sets=len(sets),
        dims=dims,
        axes=shapes.free_axes(model.inputs),
        module=False,
        reference=f"ONNX Runtime {runtime.__version__} without graph optimisation",
        weights=OWN,
        weights_bytes=sum(count * itemsize for count, itemsize, _ in sizes),
        gflop=costs.gflop,
        least_bytes=costs.least_bytes,
        parameters=sum(count for count, _, floating in sizes if floating),
        opset=next((int(entry.version) for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 1),
        task=model.task,
        deterministic=deterministic,
        golden=False,
        export_s=clock.seconds["export"],
        onnx_max_abs=0.0,
        versions={module.__name__: str(module.__version__) for module in (onnx, runtime)},
        sources=sorted({*inputs.sources(model), *sets.files}),
        notes=[*inputs.notes(model), *sets.notes],
    )


def _references(
    folder: Path, request: protocol.Export, sets: inputs.Sets, progress: Callable[[str, int | None, int | None], None]
) -> tuple[dict[str, np.ndarray], bool]:
    session = open_as_it_stands(
        folder / "model.onnx", threads=request.threads, what="ONNX Runtime cannot load the file"
    )
    for output in session.get_outputs():
        if output.type not in COMPARED:
            raise ExportError(f"output '{output.name}' is {output.type}, which cannot be compared")
    deterministic = True
    outputs: dict[str, np.ndarray] = {}
    for index in range(len(sets)):
        progress("running the reference", index, len(sets))
        tensors = sets[index]
        try:
            outputs = _run(session, tensors)
            if index == 0:
                again = _run(session, tensors)
                deterministic = all(np.array_equal(array, again[name]) for name, array in outputs.items())
        except Exception as exc:  # ONNX Runtime raises many kinds; all mean that the graph does not run
            raise failed("ONNX Runtime cannot run the file", exc) from exc
        write_set(folder, index, tensors, outputs)
    return outputs, deterministic


def _elements(tensor: Any) -> tuple[int, int, bool]:  # a TensorProto, which is not typed
    """Return how many elements an initialiser has, the bytes of one, and whether it is of floating point."""
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims), int(kind.itemsize), bool(np.issubdtype(kind, np.floating))


def _runtime() -> Any:  # the module, which is not typed
    try:
        import onnxruntime
    except ImportError as exc:
        raise ExportError(
            "an ONNX file needs ONNX Runtime, which gives the reference, and it is not installed here",
            hint="pip install 'harness[onnxruntime]'",
        ) from exc
    return onnxruntime


def open_as_it_stands(path: Path, *, threads: int, what: str) -> Any:  # an InferenceSession, which is not typed
    """Return a session that runs every node of a graph as the file says it.

    Raises:
        ExportError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads  # without a number it also ties each thread to a CPU of its own choice
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime raises many kinds; all mean that it cannot run this graph
        newer = any(word in str(exc) for word in ("opset", "IR version"))
        raise failed(what, exc, hint="pip install --upgrade onnxruntime" if newer else None) from exc


def _run(session: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(tensors)), strict=True))
