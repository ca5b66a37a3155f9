"""AOTInductor packages: one graph, compiled ahead of time, that a later process opens without compiling."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.torch_cuda import Place
from backends.torch_errors import tell
from backends.torch_module import options_of
from backends.torch_shapes import export_shapes, not_free, ones
from harness.api import CompileRequest
from harness.errors import RunError

if TYPE_CHECKING:
    import torch

PACKAGE = "model.pt2"


def build_package(
    module: torch.nn.Module, arguments: Sequence[torch.Tensor], request: CompileRequest, config: dict[str, Any]
) -> dict[str, int]:
    """Write the package into the engine's folder. Return device kind -> how many of the graph's nodes compute there.

    Raises:
        UnsupportedError: The model cannot leave the dimensions of the sweep free.
    """
    import torch
    import torch._inductor

    if ones(request.dynamic):
        # Code for sizes from 2 on is right for 1 too; a package would refuse it. Too large a size is still refused.
        config["aot_inductor.check_lowerbound"] = False
    with torch.inference_mode():
        try:
            program = torch.export.export(
                module,
                tuple(arguments),
                dynamic_shapes=export_shapes(module, request) if request.dynamic else None,
            )
        except torch._dynamo.exc.UserError as exc:
            if request.dynamic is None:
                raise
            raise not_free(request.dynamic, exc) from exc
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(request.engine_dir / PACKAGE), inductor_configs=config
        )
    return _nodes(program)


def open_package(engine_dir: Path, request: CompileRequest, place: Place) -> Any:  # torch's own kind of callable
    """Open what `build_package()` wrote.

    Raises:
        RunError: It is missing or damaged.
    """
    import torch._inductor

    try:
        return torch._inductor.aoti_load_package(
            str(engine_dir / PACKAGE),
            # What guards it against concurrent calls waits for events, which a capture refuses.
            run_single_threaded=options_of(request).cuda_graph,
            device_index=-1 if place.device.index is None else place.device.index,
        )
    except RuntimeError as exc:
        tell(exc)
        raise RunError(f"the AOTInductor package does not load: {exc}") from exc


def _nodes(program: torch.export.ExportedProgram) -> dict[str, int]:
    from torch.utils import _pytree

    found: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            values = _pytree.tree_leaves(node.meta.get("val"))
            found.update({value.device.type for value in values if hasattr(value, "device")})
    return dict(found)
