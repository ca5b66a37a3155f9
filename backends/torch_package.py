"""AOTInductor packages: graphs, compiled ahead of time, that a later process opens without compiling."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.torch_cuda import Place
from backends.torch_errors import tell
from backends.torch_module import TorchOptions, options_of
from backends.torch_session import FACTS
from backends.torch_shapes import Region, bounds, cut, export_shapes, not_free, rest
from harness.api import CompileRequest, DynamicShapes, SavedEngine
from harness.errors import RunError

if TYPE_CHECKING:
    import torch


_OPENS_ONE = """\
package = torch._inductor.aoti_load_package(str(ENGINE / "{package}"))
"""
_OPENS_SEVERAL = """\
regions = json.loads((ENGINE / "{facts}").read_text())["regions"]  # smallest and largest shape, input by input
names = ["model.pt2", *(f"model-{{index}}.pt2" for index in range(1, len(regions)))]
packages = [torch._inductor.aoti_load_package(str(ENGINE / name)) for name in names]


def package(*tensors):
    for region, run in zip(regions, packages):
        if all(
            low <= size <= high
            for (lows, highs), tensor in zip(region, tensors)
            for low, size, high in zip(lows, tensor.shape, highs)
        ):
            return run(*tensors)
    raise ValueError(f"the engine holds for {{regions}}, got {{[tuple(tensor.shape) for tensor in tensors]}}")
"""


def package(index: int = 0) -> str:
    """Return the name of the package for the region of this number."""
    return f"model-{index}.pt2" if index else "model.pt2"


def build_packages(
    module: torch.nn.Module, arguments: Sequence[torch.Tensor], request: CompileRequest, config: dict[str, Any]
) -> tuple[dict[str, int], list[Region]]:
    """Write a package into the engine's folder; for a sweep one for each range of sizes that torch tells apart.

    Returns:
        Device kind -> how many nodes of the first graph compute there; what each package of a sweep holds for.

    Raises:
        UnsupportedError: The model cannot leave the dimensions of the sweep free.
    """
    if request.dynamic is None:
        program = _build(module, tuple(arguments), None, request.engine_dir / package(), config)
        return _nodes(program), []
    pending: list[Region] = [dict(request.dynamic.ranges)]
    built: list[Region] = []
    nodes: dict[str, int] = {}
    while pending:
        region = pending.pop(0)
        # Code for sizes from 2 on is right for 1 too; a package would refuse it. Too large a size is still refused.
        checks = {} if all(low > 1 for low, _ in region.values()) else {"aot_inductor.check_lowerbound": False}
        program = _build(
            module,
            tuple(cut(arguments, bounds(request, region))),
            (request.dynamic, export_shapes(module, request, region)),
            request.engine_dir / package(len(built)),
            config | checks,
        )
        part = _holds_for(program, request, region)
        pending += rest(region, part)
        built.append(part)
        nodes = nodes or _nodes(program)
    return nodes, built


def open_package(engine_dir: Path, request: CompileRequest, place: Place, index: int) -> Any:  # torch's own callable
    """Open what `build_packages()` wrote for a region.

    Raises:
        RunError: It is missing or damaged.
    """
    import torch._inductor

    try:
        return torch._inductor.aoti_load_package(
            str(engine_dir / package(index)),
            # What guards it against concurrent calls waits for events, which a capture refuses.
            run_single_threaded=options_of(request).cuda_graph,
            device_index=-1 if place.device.index is None else place.device.index,
        )
    except RuntimeError as exc:
        tell(exc)
        raise RunError(f"the AOTInductor package does not load: {exc}") from exc


def loader(engine: SavedEngine) -> str:
    """Return the lines that open packages without harness; see `Backend.snippet()`."""
    options = engine.options
    assert isinstance(options, TorchOptions)
    names = ", ".join(f'"{spec.name}"' for spec in engine.inputs)
    layout = "t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t"
    lay_out = f"\n    tensors = [{layout} for t in tensors]" if options.channels_last else ""
    opening = _OPENS_SEVERAL.format(facts=FACTS) if options.dynamic else _OPENS_ONE.format(package=package())
    imports = "import json\n\n" if options.dynamic else ""
    return f"""\
{imports}import torch
import torch._inductor

torch.set_num_threads({engine.threads})
{opening}

def run(inputs):
    tensors = [torch.tensor(inputs[name]) for name in ({names},)]{lay_out}
    with torch.inference_mode():
        outputs = package(*tensors)
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
"""


def _build(
    module: torch.nn.Module,
    arguments: tuple[torch.Tensor, ...],
    free: tuple[DynamicShapes, dict[str, Any]] | None,
    path: Path,
    config: dict[str, Any],
) -> torch.export.ExportedProgram:
    import torch
    import torch._inductor

    with torch.inference_mode():
        try:
            program = torch.export.export(module, arguments, dynamic_shapes=free[1] if free else None)
        except torch._dynamo.exc.UserError as exc:
            if free is None:
                raise
            raise not_free(free[0], exc) from exc
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=config)
    return program


def _holds_for(program: torch.export.ExportedProgram, request: CompileRequest, region: Region) -> Region:
    """Return the part of a region that a program's code holds for, which is known once it was compiled."""
    import torch

    assert request.dynamic is not None
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    out = dict(region)
    for given, spec in zip(program.graph_signature.user_inputs, request.artifact.inputs, strict=True):
        for axis, name in request.dynamic.axes.get(spec.name, {}).items():
            size = nodes[given].meta["val"].shape[axis]
            if name in out and isinstance(size, torch.SymInt):
                low = int(size.node.shape_env.bound_sympy(size.node.expr).lower)
                if low > 2:  # torch takes every free size for 2 or more
                    out[name] = (max(out[name][0], low), out[name][1])
    return out


def _nodes(program: torch.export.ExportedProgram) -> dict[str, int]:
    from torch.utils import _pytree

    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            values = _pytree.tree_leaves(node.meta.get("val"))
            found.update({value.device.type for value in values if hasattr(value, "device")})
    return dict(found)
