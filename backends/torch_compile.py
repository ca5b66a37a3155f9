"""torch.compile with the Inductor code generator, just in time or ahead of time (AOTInductor)."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from backends.torch_module import TorchSession, prepare, probe_torch, saved_facts
from harness.api import (
    Availability,
    Backend,
    BackendOptions,
    Capabilities,
    CompileRequest,
    DynamicShapes,
    SavedEngine,
    Scalar,
    Session,
    TensorSpec,
)
from harness.errors import CompileError, RunError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

PACKAGE = "model.pt2"


class TorchCompileOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of torch.compile."""

    mode: Annotated[
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        msgspec.Meta(description="torch.compile's mode"),
    ] = "default"
    fullgraph: Annotated[bool, msgspec.Meta(description="fail at a graph break instead of splitting the graph")] = False
    freezing: Annotated[bool, msgspec.Meta(description="fold weights into the code as constants")] = False
    channels_last: Annotated[bool, msgspec.Meta(description="store images as NHWC")] = False
    aot: Annotated[bool, msgspec.Meta(description="build an AOTInductor package, loadable without compiling")] = False


class TorchCompile(Backend):
    """Traces the module with Dynamo and compiles the graphs with Inductor."""

    name = "torch-compile"
    summary = "torch.compile (Inductor), just in time or as an AOTInductor package"
    capabilities = Capabilities(source="torch", devices=("cpu", "cuda"), dynamic_shapes=True)
    modules = ("torch", "torch._inductor")
    Options = TorchCompileOptions

    @classmethod
    def probe(cls) -> Availability:
        return probe_torch()

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        assert isinstance(options, TorchCompileOptions)
        if options.aot and options.fullgraph:
            raise UsageError("torch-compile: aot=true always captures the full graph; leave out fullgraph")

    @classmethod
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        # Cold means an empty cache: the engine's own folder starts empty, and a warm load finds it filled.
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(engine_dir / "inductor"),
            "TRITON_CACHE_DIR": str(engine_dir / "triton"),
            "AOTI_RUNTIME_CHECK_INPUTS": "1",  # without it a package built for batch 1 silently truncates a batch of 2
        }

    @classmethod
    def snippet(cls, engine: SavedEngine) -> str:
        options = engine.options
        assert isinstance(options, TorchCompileOptions)
        if not options.aot:
            raise UnsupportedError(
                "what torch.compile saves is a cache, for a program that compiles the same module again",
                hint="measure torch-compile:aot=true, which builds a package that loads by itself",
            )
        names = ", ".join(f'"{spec.name}"' for spec in engine.inputs)
        layout = "t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t"
        lay_out = f"\n    tensors = [{layout} for t in tensors]" if options.channels_last else ""
        return f"""\
import torch
import torch._inductor

torch.set_num_threads({engine.threads})
package = torch._inductor.aoti_load_package(str(ENGINE / "{PACKAGE}"))


def run(inputs):
    tensors = [torch.tensor(inputs[name], device="{engine.device}") for name in ({names},)]{lay_out}
    with torch.inference_mode():
        outputs = package(*tensors)
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
"""

    def compile(self, request: CompileRequest) -> Session:
        options = _options(request)
        with request.stage("load"):
            module = prepare(request, channels_last=options.channels_last)
            arguments = _arguments(request, channels_last=options.channels_last)
        with request.stage("build"):
            if options.aot:
                return self._build_package(module, arguments, request, options)
            compiled = _compiled(module, options)
            facts = _trace(compiled, arguments, request.dynamic, request.artifact.inputs)
            notes = _notes(facts)
            for ones in _ones(request.dynamic):
                # Sizes of 1 have code of their own; the sweep will ask for it, and it belongs to this engine.
                cut = _cut(arguments, request, ones)
                facts["graphs"] = _trace(compiled, cut, request.dynamic, request.artifact.inputs)["graphs"]
        return self._session(compiled, request, options, facts=facts, notes=notes)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        import torch._inductor.config

        options = _options(request)
        facts, notes = saved_facts(engine_dir)
        # Nothing is left to compile: a pool of compiler processes would only take memory and start-up time.
        torch._inductor.config.compile_threads = 1
        if options.aot:
            return self._session(_open_package(engine_dir, request), request, options, facts=facts, notes=notes)
        module = prepare(request, channels_last=options.channels_last)
        arguments = _arguments(request, channels_last=options.channels_last)
        compiled = _compiled(module, options)
        found = _trace(compiled, arguments, request.dynamic, request.artifact.inputs)
        if ones := _sizes_of_one(request):
            notes = [*notes, f"torch.compile does not generalise over sizes of 1: {ones} runs a graph of its own"]
        if not found["cache_hits"] or (request.dynamic and _missed()):
            notes = [*notes, "a warm start found no graph for this shape in Inductor's cache and compiled it anew"]
        return self._session(compiled, request, options, facts=facts, notes=notes)

    def _build_package(
        self,
        module: torch.nn.Module,
        arguments: list[torch.Tensor],
        request: CompileRequest,
        options: TorchCompileOptions,
    ) -> Session:
        import torch
        import torch._inductor

        config = _inductor_config(options)
        if _ones(request.dynamic):
            # Code for sizes from 2 on is right for 1 too; a package would refuse it. Too large a size is still refused.
            config["aot_inductor.check_lowerbound"] = False
        with torch.inference_mode():
            try:
                program = torch.export.export(
                    module,
                    tuple(arguments),
                    dynamic_shapes=_export_shapes(module, request) if request.dynamic else None,
                )
            except torch._dynamo.exc.UserError as exc:
                if request.dynamic is None:
                    raise
                raise _not_free(request.dynamic, exc) from exc
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(request.engine_dir / PACKAGE), inductor_configs=config
            )
        facts: dict[str, Scalar] = {"graphs": 1, "graph_breaks": 0, "aot": True}
        return self._session(_open_package(request.engine_dir, request), request, options, facts=facts, notes=[])

    @staticmethod
    def _session(
        call: Any,  # a compiled module or a package
        request: CompileRequest,
        options: TorchCompileOptions,
        *,
        facts: dict[str, Scalar],
        notes: list[str],
    ) -> Session:
        provider = ("aot-inductor" if options.aot else "inductor") + f" {request.device}"
        return TorchSession(
            call, request, provider=provider, channels_last=options.channels_last, facts=facts, notes=notes
        )


def _options(request: CompileRequest) -> TorchCompileOptions:
    assert isinstance(request.options, TorchCompileOptions)
    return request.options


def _arguments(request: CompileRequest, *, channels_last: bool) -> list[torch.Tensor]:
    import torch

    with torch.inference_mode():  # Dynamo guards on the kind of tensor: make the kind that bind() makes
        tensors = [torch.tensor(array, device=request.device) for array in request.artifact.input_set(0).values()]
        if channels_last:
            tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        return tensors


def _inductor_config(options: TorchCompileOptions) -> dict[str, Any]:
    import torch._inductor

    config: dict[str, Any] = dict(torch._inductor.list_mode_options().get(options.mode, {}))
    if options.freezing:
        config["freezing"] = True
    return config


def _compiled(module: torch.nn.Module, options: TorchCompileOptions) -> Any:
    import torch

    return torch.compile(module, fullgraph=options.fullgraph, options=_inductor_config(options))


def _trace(
    compiled: Any, arguments: list[torch.Tensor], dynamic: DynamicShapes | None, specs: tuple[TensorSpec, ...]
) -> dict[str, Scalar]:
    """Call for the first time at a shape, which compiles. Return what the process' counters say after it."""
    import torch
    from torch._dynamo.utils import counters
    from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

    if dynamic is not None:
        _mark(arguments, dynamic, specs)
    try:
        with torch.inference_mode():
            compiled(*arguments)
    except torch._dynamo.exc.Unsupported as exc:
        raise UnsupportedError(f"graph break with fullgraph=true: {exc}", hint="leave out fullgraph") from exc
    except ConstraintViolationError as exc:
        assert dynamic is not None
        raise _not_free(dynamic, exc) from exc
    except torch._dynamo.exc.TorchDynamoException as exc:
        raise CompileError(f"{type(exc).__name__}: {exc}") from exc
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
        "cache_hits": int(counters["inductor"]["fxgraph_cache_hit"]),
    }


def _missed() -> int:
    """Return how many graphs this process did not find in Inductor's cache."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_miss"])


def _not_free(dynamic: DynamicShapes, exc: Exception) -> UnsupportedError:
    return UnsupportedError(
        f"torch cannot leave {' and '.join(dynamic.ranges)} free in this model: {exc}",
        hint="leave out dynamic=true: every shape then gets its own engine",
    )


def _mark(arguments: list[torch.Tensor], dynamic: DynamicShapes, specs: tuple[TensorSpec, ...]) -> None:
    """Leave the axes of the sweep free. An axis of size 1 cannot be: Dynamo always compiles for it alone."""
    import torch

    for tensor, spec in zip(arguments, specs, strict=True):
        for axis, (low, high) in enumerate(zip(*dynamic.bounds(spec), strict=True)):
            if low != high and tensor.shape[axis] > 1:
                torch._dynamo.mark_dynamic(tensor, axis, min=max(low, 2), max=high)


def _ones(dynamic: DynamicShapes | None) -> list[tuple[str, ...]]:
    """Return the sets of free dimensions that may be 1 together in the sweep."""
    may = [name for name, (low, _) in dynamic.ranges.items() if low == 1] if dynamic else []
    return [chosen for size in range(1, len(may) + 1) for chosen in itertools.combinations(may, size)]


def _cut(arguments: list[torch.Tensor], request: CompileRequest, ones: tuple[str, ...]) -> list[torch.Tensor]:
    """Return the arguments with the named dimensions cut to size 1."""
    import torch

    assert request.dynamic is not None
    out = []
    with torch.inference_mode():
        for tensor, spec in zip(arguments, request.artifact.inputs, strict=True):
            for axis, name in request.dynamic.axes.get(spec.name, {}).items():
                if name in ones:
                    tensor = tensor.narrow(axis, 0, 1)
            out.append(tensor.clone())
    return out


def _sizes_of_one(request: CompileRequest) -> str:
    """Return the dimensions of the sweep that are 1 in this request, such as `batch=1`."""
    if request.dynamic is None:
        return ""
    found = {
        name: None
        for spec in request.artifact.inputs
        for axis, name in request.dynamic.axes.get(spec.name, {}).items()
        if name in request.dynamic.ranges and spec.shape[axis] == 1
    }
    return ", ".join(f"{name}=1" for name in found)


def _export_shapes(module: torch.nn.Module, request: CompileRequest) -> dict[str, Any]:
    """Return torch.export's `dynamic_shapes`: parameter of `forward` -> what is free in it, nested as it is."""
    import torch

    dynamic = request.dynamic
    assert dynamic is not None
    free = {
        name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in dynamic.ranges.items() if low != high
    }
    shapes = [
        {axis: free[name] for axis, name in dynamic.axes.get(spec.name, {}).items() if name in free}
        for spec in request.artifact.inputs
    ]
    return dict(inspect.signature(module.forward).bind(*shapes).arguments)


def _notes(facts: dict[str, Scalar]) -> list[str]:
    breaks = facts["graph_breaks"]
    return (
        [f"{breaks} graph break(s): parts of the model run in Python between {facts['graphs']} graphs"]
        if breaks
        else []
    )


def _open_package(engine_dir: Path, request: CompileRequest) -> Any:
    import torch
    import torch._inductor

    torch.set_num_threads(request.threads)
    try:
        return torch._inductor.aoti_load_package(str(engine_dir / PACKAGE))
    except RuntimeError as exc:
        raise RunError(f"the AOTInductor package does not load: {exc}") from exc
