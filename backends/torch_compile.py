"""torch.compile with the Inductor code generator, just in time or ahead of time (AOTInductor)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from backends.torch_module import TorchSession, prepare, probe_torch, saved_facts
from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, Scalar, Session
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
    dynamic: Annotated[bool, msgspec.Meta(description="compile for dynamic shapes")] = False
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
        if options.aot and options.dynamic:
            raise UsageError("torch-compile: aot=true is built for static shapes here; leave out dynamic")

    @classmethod
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        # Cold means an empty cache: the engine's own folder starts empty, and a warm load finds it filled.
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(engine_dir / "inductor"),
            "TRITON_CACHE_DIR": str(engine_dir / "triton"),
            "AOTI_RUNTIME_CHECK_INPUTS": "1",  # without it a package built for batch 1 silently truncates a batch of 2
        }

    def compile(self, request: CompileRequest) -> Session:
        options = _options(request)
        with request.stage("load"):
            module = prepare(request, channels_last=options.channels_last)
            arguments = _arguments(request, channels_last=options.channels_last)
        with request.stage("build"):
            if options.aot:
                return self._build_package(module, arguments, request, options)
            call, facts = _compile_lazily(module, arguments, options)
        return self._session(call, request, options, facts=facts, notes=_notes(facts))

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
        call, found = _compile_lazily(module, arguments, options)
        if not found["cache_hits"]:
            notes = [*notes, "a warm start found nothing in Inductor's cache and compiled everything again"]
        return self._session(call, request, options, facts=facts, notes=notes)

    def _build_package(
        self,
        module: torch.nn.Module,
        arguments: list[torch.Tensor],
        request: CompileRequest,
        options: TorchCompileOptions,
    ) -> Session:
        import torch
        import torch._inductor

        with torch.inference_mode():
            program = torch.export.export(module, tuple(arguments))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(request.engine_dir / PACKAGE), inductor_configs=_inductor_config(options)
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


def _compile_lazily(
    module: torch.nn.Module, arguments: list[torch.Tensor], options: TorchCompileOptions
) -> tuple[Any, dict[str, Scalar]]:
    import torch
    from torch._dynamo.utils import counters

    compiled = torch.compile(
        module, fullgraph=options.fullgraph, dynamic=options.dynamic or None, options=_inductor_config(options)
    )
    try:
        with torch.inference_mode():
            compiled(*arguments)  # compilation happens at the first call
    except torch._dynamo.exc.Unsupported as exc:
        raise UnsupportedError(f"graph break with fullgraph=true: {exc}", hint="leave out fullgraph") from exc
    except torch._dynamo.exc.TorchDynamoException as exc:
        raise CompileError(f"{type(exc).__name__}: {exc}") from exc
    facts: dict[str, Scalar] = {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
        "cache_hits": int(counters["inductor"]["fxgraph_cache_hit"]),
    }
    return compiled, facts


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
