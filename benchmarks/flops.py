"""Operations of every reference model, by the ONNX graph and by torch's own counter: `python benchmarks/flops.py`.

    python benchmarks/flops.py                     all of them, at full size
    python benchmarks/flops.py resnet50 yolov8x bert-base:sequence=512

Prints a table, and ends with exit code 1 where the two differ by more than 1 %. The graph may have less: what no output
needs is not in it, such as the pooler of an embedding model. No weight is ever made: modules are built and run on
torch's meta device, and graphs are exported without weights, so that large models take no more memory than small ones.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

from harness import graph_cost, registry
from harness.api import ReferenceModel
from harness.modelspec import ModelSpec
from harness.workloads import asked_models, sweep

OPSET = 18
WITHIN = 0.01


def counted(spec: ModelSpec, folder: Path) -> tuple[float | None, float]:
    """Return a reference model's GFLOP by its ONNX graph and by torch, at the sizes that the text asks for.

    Torch counts attention as the two matrix products that it is: its counter has formulas for the fused kernels of some
    devices only, and on the meta device none of those runs.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = registry.model(spec)
    assert isinstance(model, ReferenceModel)
    dims = {name: sizes[0] for name, sizes in sweep(spec, {}, {}).items()}
    with torch.device("meta"):
        module = model.build(dims).eval()
        tensors = tuple(torch.empty(one.at(dims), dtype=getattr(torch, one.dtype)) for one in model.inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*tensors)
    path = folder / "model.onnx"
    _export(module, tensors, path)
    return graph_cost.cost(path).gflop, counter.get_total_flops() / 1e9


def _export(module: object, tensors: tuple[object, ...], path: Path) -> None:
    """Write a module's graph, its weights left out: they are inputs of the graph."""
    import onnx
    import torch
    from onnxscript import optimizer

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not optimised yet: folding constants would read weights, and there are none.
        program = torch.onnx.export(module, tensors, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    program.save(path, include_initializers=False, keep_initializers_as_inputs=True)
    onnx.save(optimizer.optimize(onnx.load(path)), path)


def _name(spec: ModelSpec) -> str:
    sizes = [f"{name}={size}" for name, size in spec.dims.items()]
    return " ".join([spec.text, *sizes])


def main() -> int:
    """Print the table."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows, worst = [], 0.0
    specs = asked_models(sys.argv[1:] or [*registry.suite(registry.WHOLE), *registry.model_names()], None, Path.cwd())
    for spec in specs:
        with tempfile.TemporaryDirectory(prefix="harness-flops-") as folder:
            ours, theirs = counted(spec, Path(folder))
        difference = abs(ours - theirs) / theirs if ours is not None and theirs else float(ours != theirs)
        worst = max(worst, difference)
        ratio = f"{ours / theirs:.6f}" if ours is not None and theirs else "-"
        rows.append((_name(spec), "-" if ours is None else f"{ours:.7g}", f"{theirs:.7g}", ratio))
        print(*rows[-1], file=sys.stderr, flush=True)
    print(
        tabulate(
            rows, headers=["model", "graph, GFLOP", "torch, GFLOP", "ratio"], tablefmt="github", disable_numparse=True
        )
    )
    print(f"\n{len(rows)} models; the largest difference is {100 * worst:.2g} %.")
    return int(worst > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
