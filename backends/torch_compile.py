"""torch.compile with the Inductor code generator, just in time or ahead of time (AOTInductor)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from backends.torch_cuda import Place, Recording, watch
from backends.torch_errors import INSTALL, in_words, tell
from backends.torch_int8 import INT8, left_in_float, lowered
from backends.torch_module import (
    NO_FP8,
    PRECISIONS,
    TorchOptions,
    described,
    prepare,
    probe_torch,
    settle,
)
from backends.torch_package import build_packages, loader, open_package
from backends.torch_placement import placement
from backends.torch_session import Inputs, SavedFacts, TorchSession, saved_facts
from backends.torch_shapes import (
    Bounds,
    Region,
    bounds,
    cut,
    holding,
    mark,
    narrower,
    not_free,
    rest,
    split_at_one,
    told,
    too_many,
)
from harness.api import (
    Availability,
    Backend,
    BackendOptions,
    Capabilities,
    CompileRequest,
    SavedEngine,
    Scalar,
    Session,
)
from harness.errors import CompileError, UnavailableError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

ON_A_CPU_ONLY = (
    "Inductor has kernels for a calibrated module on a CPU only, and elsewhere multiplies in float32 what it has just "
    "dequantised"
)
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes in which Inductor replays CUDA graphs."""


class TorchCompileOptions(TorchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of torch.compile."""

    mode: Annotated[
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        msgspec.Meta(description="torch.compile's mode"),
    ] = "default"
    fullgraph: Annotated[bool, msgspec.Meta(description="fail at a graph break instead of splitting the graph")] = False
    freezing: Annotated[bool, msgspec.Meta(description="fold weights into the code as constants")] = False
    aot: Annotated[bool, msgspec.Meta(description="build an AOTInductor package, loadable without compiling")] = False


class TorchCompile(Backend):
    """Traces the module with Dynamo and compiles the graphs with Inductor."""

    name = "torch-compile"
    summary = "torch.compile (Inductor), just in time or as an AOTInductor package"
    capabilities = Capabilities(
        source="torch",
        devices=("cpu", "cuda"),
        precisions={**PRECISIONS, "cpu": (*PRECISIONS["cpu"], "int8")},
        lacks={"cpu": {"fp8": NO_FP8}, "cuda": {"int8": ON_A_CPU_ONLY, "fp8": NO_FP8}},
        dynamic_shapes=True,
    )
    modules = ("torch", "torch._inductor")
    Options = TorchCompileOptions

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        return "torch"

    @classmethod
    def probe(cls) -> Availability:
        return probe_torch()

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        assert isinstance(options, TorchCompileOptions)
        if options.aot and options.fullgraph:
            raise UsageError("torch-compile: aot=true always captures the full graph; leave out fullgraph")
        if options.aot and options.mode == "reduce-overhead":
            raise UsageError(
                "torch-compile: mode=reduce-overhead does nothing in a package, which aot=true builds",
                hint="aot=true,cuda_graph=true replays a package as one CUDA graph",
            )
        if options.cuda_graph and not options.aot:
            raise UsageError(
                "torch-compile: cuda_graph=true is for packages, which aot=true builds",
                hint="mode=reduce-overhead lets Inductor record CUDA graphs itself",
            )

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
        if (engine.device, engine.precision) != ("cpu", "fp32"):
            on = f"{engine.precision} on {engine.device}"
            raise UnsupportedError(f"loading a package by itself was tried in fp32 on a CPU only, not in {on}")
        return loader(engine)

    def compile(self, request: CompileRequest) -> Session:
        options = _options(request)
        with in_words():
            with request.stage("load"):
                module, place, facts = prepare(request)
                _require_triton(place)
                inputs = _inputs(request, place)
            with request.stage("build"):
                if options.aot:
                    nodes, regions = build_packages(module, inputs.tensors, request, _inductor_config(request))
                    facts |= {"graphs": len(regions) or 1, "graph_breaks": 0, "aot": True, **lowered(module, request)}
                    saved = SavedFacts(
                        facts=facts,
                        notes=[*left_in_float(facts), *told(regions, "packages")],
                        placement=nodes,
                        card=place.card(),
                        regions=[bounds(request, region) for region in regions],
                    )
                    return _packaged(request.engine_dir, request, place, saved, inputs)
                traced, regions = _all_calls(module, inputs, request, place)
            facts |= {**traced.facts, **lowered(module, request)}
            kind = "sets of graphs" if _breaks() else "graphs"
            notes = [*_notes(facts), *left_in_float(facts), *traced.notes, *told(regions, kind)]
            if options.mode == "reduce-overhead" and place.stream is None:
                notes.append("mode=reduce-overhead means CUDA graphs: on a CPU it changes nothing")
            saved = SavedFacts(
                facts=facts, notes=notes, card=place.card(), regions=[bounds(request, region) for region in regions]
            )
            return _session(traced.compiled, module, request, place, saved, inputs)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        import torch._inductor.config
        from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

        with in_words():
            if _options(request).aot:
                place, _ = settle(request)
                return _packaged(engine_dir, request, place, saved_facts(engine_dir, place), _inputs(request, place))
            # Nothing is left to compile: a pool of compiler processes would only take memory and start-up time.
            torch._inductor.config.compile_threads = 1
            _build_no_headers()
            saved = saved_facts(engine_dir, settle(request)[0])  # an engine that does not fit costs no loading
            module, place, _ = prepare(request)
            _require_triton(place)
            inputs = _inputs(request, place)
            region = saved.regions[holding(saved.regions, request)] if request.dynamic else None
            try:
                traced = _first_calls(module, inputs.tensors, request, place, region)
            except ConstraintViolationError as exc:
                assert request.dynamic is not None
                raise not_free(request.dynamic, exc) from exc
            notes = list(dict.fromkeys([*saved.notes, *traced.notes]))
            if not traced.facts["cache_hits"] or (request.dynamic and _missed()):
                notes.append("a warm start found no graph for this shape in Inductor's cache and compiled it anew")
            saved = msgspec.structs.replace(saved, notes=notes)
            return _session(traced.compiled, module, request, place, saved, inputs)


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """A compiled module after its first calls, in which everything was compiled and recorded."""

    compiled: Any
    facts: dict[str, Scalar]
    notes: list[str]


def _options(request: CompileRequest) -> TorchCompileOptions:
    assert isinstance(request.options, TorchCompileOptions)
    return request.options


def _require_triton(place: Place) -> None:
    from torch.utils._triton import has_triton_package

    if place.stream is not None and not has_triton_package():
        raise UnavailableError(
            "Inductor needs Triton on a CUDA device, and it is not installed", hint=f"{INSTALL}, which brings Triton"
        )


def _inputs(request: CompileRequest, place: Place) -> Inputs:
    """Return the session's inputs, filled: what is traced and recorded with them then fits the session exactly."""
    import torch

    inputs = Inputs(request, place)
    with torch.inference_mode():
        inputs.fill(request.artifact.input_set(0).values())
    if _records(request, place) and request.dynamic is None:
        for tensor in inputs.tensors:
            # Else a copy of each would be part of every replay, which no other backend's CUDA graph pays.
            torch._dynamo.mark_static_address(tensor)
    return inputs


def _records(request: CompileRequest, place: Place) -> bool:
    """Return whether Inductor is asked to record CUDA graphs."""
    options = _options(request)
    return place.stream is not None and options.mode in CUDA_GRAPHS and not options.aot


def _inductor_config(request: CompileRequest) -> dict[str, Any]:
    import torch._inductor

    options = _options(request)
    config: dict[str, Any] = dict(torch._inductor.list_mode_options().get(options.mode, {}))
    if options.freezing or request.precision == INT8:  # only weights that are constants are laid out for int8 kernels
        config["freezing"] = True
    return config


def _all_calls(
    module: torch.nn.Module, inputs: Inputs, request: CompileRequest, place: Place
) -> tuple[_Traced, list[Region]]:
    """Compile by calling: for a sweep until every size of it has its graph.

    Returns:
        What was compiled, and for a sweep what each graph holds for, the largest sizes first.

    Raises:
        UnsupportedError: The model cannot leave the dimensions of the sweep free, or takes too many graphs for it.
    """
    import torch
    from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

    dynamic = request.dynamic
    if dynamic is None:
        return _first_calls(module, inputs.tensors, request, place, None), []
    first: _Traced | None = None
    covered: list[Region] = []
    pending, refused = split_at_one(dynamic), 0
    while pending:
        if (count := len(covered) + len(pending)) > (limit := torch._dynamo.config.recompile_limit):
            raise too_many(dynamic, count, limit)
        region = pending.pop(0)
        sizes = bounds(request, region)
        arguments = cut(inputs.tensors, sizes)
        try:
            if first is None:
                first = _first_calls(module, arguments, request, place, sizes)
            else:
                _call(first.compiled, arguments, sizes)
        except ConstraintViolationError as exc:
            # Inductor has compiled the graph by now, and finds it in its cache when it is asked for less.
            refused += 1
            part = narrower(region, exc, module, request)
            pending = [part, *rest(region, part), *pending]
        else:
            covered.append(region)
    assert first is not None
    facts = {**first.facts, "graphs": _graphs() - refused, "graph_breaks": _breaks()}
    return dataclasses.replace(first, facts=facts), covered


def _first_calls(
    module: torch.nn.Module,
    arguments: Sequence[torch.Tensor],
    request: CompileRequest,
    place: Place,
    region: Bounds | None,
) -> _Traced:
    """Compile by calling; where Inductor uses CUDA graphs, twice more: to record them, and to replay them."""
    import torch
    import torch._inductor.config

    options, config = _options(request), _inductor_config(request)
    # Dynamo, which decides whether weights are arguments of a graph, looks at the setting for the whole process only.
    torch._inductor.config.freezing = bool(config.get("freezing"))
    compiled: Any = torch.compile(module, fullgraph=options.fullgraph, options=config)
    if not _records(request, place):
        _call(compiled, arguments, region)
        return _Traced(compiled=compiled, facts=_counted(), notes=[])
    with watch(place.device) as recording, torch.inference_mode():
        _call(compiled, arguments, region)
        for _ in range(2):
            compiled(*arguments)
        place.stream.synchronize()
    facts = {**_counted(), "cuda_graphs": recording.graphs}
    return _Traced(compiled=compiled, facts=facts, notes=_left_out(recording, options.mode))


def _left_out(recording: Recording, mode: str) -> list[str]:
    """Say what runs without a CUDA graph though the mode asks for them."""
    reasons = "; ".join(recording.skipped)
    if not recording.graphs:
        return [f"mode={mode} recorded no CUDA graph: {reasons or 'Inductor gives no reason'}"]
    return [f"parts run outside of the {recording.graphs} CUDA graph(s): {reasons}"] if reasons else []


def _call(
    compiled: Any, arguments: Sequence[torch.Tensor], region: Bounds | None
) -> Any:  # whatever the module returns
    """Call for the first time at a shape, which compiles; with a region for all of its sizes."""
    import torch

    if region is not None:
        mark(arguments, region)
    try:
        with torch.inference_mode():
            return compiled(*arguments)
    except torch._dynamo.exc.Unsupported as exc:
        raise UnsupportedError(f"graph break with fullgraph=true: {exc}", hint="leave out fullgraph") from exc
    except torch._dynamo.exc.TorchDynamoException as exc:
        tell(exc)
        raise CompileError(f"{type(exc).__name__}: {exc}") from exc


def _counted() -> dict[str, Scalar]:
    """Return what this process' counters say after the first call."""
    from torch._dynamo.utils import counters

    return {
        "graphs": _graphs(),
        "graph_breaks": _breaks(),
        "cache_hits": int(counters["inductor"]["fxgraph_cache_hit"]),
    }


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _breaks() -> int:
    from torch._dynamo.utils import counters

    return int(sum(counters["graph_break"].values()))


def _missed() -> int:
    """Return how many graphs this process did not find in Inductor's cache."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_miss"])


def _build_no_headers() -> None:
    """Have Inductor precompile no headers in this process.

    It does so before it looks whether any code is left to compile, once in every process whose temporary folder is
    fresh: more than half of the time that loading a small model takes. The hook is private; where it is gone, loading
    only takes longer.
    """
    from torch._inductor import codecache

    for name in ("CppPythonBindingsCodeCache", "CppWrapperCodeCache"):
        kind: Any = getattr(codecache, name, None)
        if hasattr(kind, "_get_uncompiled_header"):
            kind._get_uncompiled_header = classmethod(lambda cls, device: None)


def _notes(facts: dict[str, Scalar]) -> list[str]:
    breaks = facts["graph_breaks"]
    return (
        [f"{breaks} graph break(s): parts of the model run in Python between {facts['graphs']} graphs"]
        if breaks
        else []
    )


def _packaged(
    engine_dir: Path, request: CompileRequest, place: Place, saved: SavedFacts, inputs: Inputs
) -> TorchSession:
    session = TorchSession(
        open_package(engine_dir, request, place, holding(saved.regions, request) if request.dynamic else 0),
        request,
        place,
        provider=described(request, "aot-inductor"),
        inputs=inputs,
        saved=saved,
    )
    if _options(request).cuda_graph:
        session.capture()
    return session


def _session(
    compiled: Any,  # a module, as torch.compile returns it
    module: torch.nn.Module,
    request: CompileRequest,
    place: Place,
    saved: SavedFacts,
    inputs: Inputs,
) -> TorchSession:
    return TorchSession(
        compiled,
        request,
        place,
        provider=described(request, "inductor"),
        inputs=inputs,
        saved=saved,
        locate=partial(placement, module, request, place),
        compilations=_graphs,
    )
