"""From a request to a session of ONNX Runtime: the device first, then the session, then what is true of both."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from backends.cuda_device import DeviceMemory, Gpu
from backends.onnxruntime_libraries import ep_device, failure, library_facts, missing_library, require, timings
from backends.onnxruntime_providers import (
    CPU,
    CUDA,
    ENGINES,
    LIBRARIES_HINT,
    RTX,
    TENSORRT,
    TF32_OVERRIDE,
    OnnxRuntimeOptions,
    Provider,
    tell,
)
from backends.onnxruntime_session import (
    GRAPH,
    Assigned,
    DeviceSession,
    EngineCard,
    HostSession,
    Kind,
    OnnxRuntimeSession,
    assigned,
    copies_in,
    host_tensors,
    loose_outputs,
    node_note,
)
from harness.api import CompileRequest, Scalar
from harness.errors import CompileError, FallbackError, RunError, UnsupportedError

LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
NO_CUDNN = (
    "onnxruntime: cuDNN 9 was not found, and convolutions run without it: pip install 'harness[onnxruntime-gpu]'."
)


class Opening:
    """Makes one session. A context manager, which gives the device back where there comes to be none."""

    def __init__(self, request: CompileRequest, provider: Provider) -> None:
        import onnxruntime

        assert isinstance(request.options, OnnxRuntimeOptions)
        self.provider = provider
        self._wanted = provider.full_name
        self._runtime: Any = onnxruntime
        self._request = request
        self._options = request.options
        self._gpu: Gpu | None = None
        self._memory: DeviceMemory | None = None
        self._told: dict[str, dict[str, str]] = {}
        self._libraries: dict[str, Scalar] = {}
        self._warm = False

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        if exc is not None and self._memory is not None:
            self._memory.close()

    def acquire(self) -> None:
        """Load the libraries that the provider needs, and open the device.

        Raises:
            UnavailableError: This machine lacks one of them.
            OutOfMemory: The device has nothing left.
        """
        self._gpu = require(self.provider, self._runtime, self._request.device)
        self._memory = DeviceMemory(self._gpu.index)
        self._libraries = library_facts(self.provider)
        kept = timings(self._request.cache_dir, self._gpu, self._libraries.get("tensorrt"))
        self._told = tell(self.provider, self._request, self._memory.stream, self._gpu, kept)
        told = self._told[self._wanted]
        for key in ("trt_engine_cache_path", "trt_timing_cache_path", "nv_runtime_cache_path"):
            if key in told:
                Path(told[key]).mkdir(parents=True, exist_ok=True)
        if self._wanted == TENSORRT:
            self._warm = any(kept.iterdir())

    def compile(self) -> OnnxRuntimeSession:
        """Optimise the exported graph, and write down what came of it where that can be loaded again."""
        graph = self._request.engine_dir / GRAPH
        settings = self._settings(self._options.level)
        if self._wanted in (CPU, CUDA):
            settings.optimized_model_filepath = str(graph)
            if self._request.artifact.manifest.weights_bytes > 1 << 30:  # protobuf ends at 2 GiB
                key = "session.optimized_model_external_initializers_file_name"
                settings.add_session_config_entry(key, f"{GRAPH}.data")
        elif self._wanted == RTX:
            # Not embedded: protobuf would end at 2 GiB here too.
            for key, value in {"enable": "1", "embed_mode": "0", "file_path": str(graph)}.items():
                settings.add_session_config_entry(f"ep.context_{key}", value)
        session = self._session(self._request.artifact.onnx_path, settings, CompileError)
        facts, found = self._facts(session), assigned(session)
        if self._wanted == CUDA:
            facts["host_copies"] = copies_in(graph)
        if self._wanted == TENSORRT:
            facts |= {"engines": len(self._engines()), "timing_cache": "warm" if self._warm else "cold"}
        kind: Kind = "context" if self._wanted == RTX else "graph"
        if facts.get("host_copies"):
            # ONNX Runtime may not load a graph again that has its copies in it: it would add them once more.
            for file in self._request.engine_dir.glob(f"{GRAPH}*"):
                file.unlink()
        if not graph.is_file():
            kind = "source"
        return self._open(session, self._card(kind, facts, found), found, graph)

    def load(self, engine_dir: Path) -> OnnxRuntimeSession:
        """Start from an engine. An optimised graph is not optimised again: it would only cost time."""
        expected = self._card("source", {}, {})
        card = EngineCard.read(engine_dir, expected)
        path = self._request.artifact.onnx_path if card.kind == "source" else engine_dir / GRAPH
        before = self._engines()
        settings = self._settings("disable" if card.kind == "graph" else self._options.level)
        session = self._session(path, settings, RunError)
        if anew := len(self._engines() - before):
            card.notes.append(f"onnxruntime: a warm start built {anew} TensorRT engines anew, its cache did not fit.")
        return self._open(session, card, assigned(session), path)

    def _settings(self, level: str) -> Any:
        settings = self._runtime.SessionOptions()
        settings.intra_op_num_threads = self._request.threads
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = getattr(self._runtime.GraphOptimizationLevel, LEVELS[level])
        if hasattr(self._runtime.InferenceSession, "get_provider_graph_assignment_info"):
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        elif self._wanted != CPU:  # before 1.24: nodes that cannot be counted may not go astray
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return settings

    def _session(self, path: Path, settings: Any, otherwise: type[CompileError] | type[RunError]) -> Any:
        choice: list[Any] | None = [CPU] if self._wanted == CPU else list(self._told.items())
        if self._wanted == RTX:
            assert self._gpu is not None
            settings.add_provider_for_devices([ep_device(self._runtime, self._gpu.index)], self._told[RTX])
            choice = None
        try:
            # Its own answer to an error is to try once more on the CPU.
            session = self._runtime.InferenceSession(str(path), settings, providers=choice, enable_fallback=0)
        except Exception as exc:  # ONNX Runtime's errors share no base class but Exception
            error = failure(exc, otherwise)
            if isinstance(error, FallbackError) and missing_library(self.provider, self._runtime):
                error = self._fallback(CPU)
            raise error from exc
        self._refuse_fallback(session)
        return session

    def _refuse_fallback(self, session: Any) -> None:
        running = session.get_providers()
        if self._wanted not in running:
            raise self._fallback(running[0])
        found = assigned(session)
        if found and self._wanted not in found:
            nodes = ", ".join(f"{sum(operators.values())} to {name}" for name, operators in sorted(found.items()))
            raise FallbackError(
                f"asked for {self._wanted}, and it was given no node: {nodes}", hint="choose another provider"
            )
        if self._options.cuda_graph and (read := host_tensors(session)):
            raise UnsupportedError(
                f"no CUDA graph can be recorded: nodes on the CPU use {', '.join(sorted(read))}, "
                "and a replay would not run them",
                hint="leave out cuda_graph",
            )
        if self._options.cuda_graph and (loose := loose_outputs(session, self._request.artifact)):
            raise UnsupportedError(
                f"no CUDA graph can be recorded: the size of {', '.join(loose)} is not known before a run, and a "
                "replay writes where the first one did",
                hint="leave out cuda_graph",
            )

    def _fallback(self, running: str) -> FallbackError:
        why = missing_library(self.provider, self._runtime)
        text = f"asked for {self._wanted}, ONNX Runtime runs {running}" + (f": {why}" if why else "")
        return FallbackError(text, hint=LIBRARIES_HINT)

    def _profiled(self, graph: Path, trace: Path) -> Any:
        settings = self._settings("disable")
        settings.enable_profiling = True
        settings.profile_file_prefix = str(trace)
        return self._session(graph, settings, RunError)

    def _open(self, session: Any, card: EngineCard, found: Assigned, graph: Path) -> OnnxRuntimeSession:
        if self._memory is None or self._gpu is None:
            return HostSession(
                session,
                self._request.artifact,
                card,
                found,
                graph=graph if card.kind == "graph" else None,
                profiled=self._profiled,
            )
        return DeviceSession(session, self._request.artifact, card, found, memory=self._memory, index=self._gpu.index)

    def _card(self, kind: Kind, facts: dict[str, Scalar], found: Assigned) -> EngineCard:
        no_cudnn = [NO_CUDNN] if facts.get("cudnn") == "missing" else []
        return EngineCard(
            kind=kind,
            provider=self._wanted,
            version=str(self._runtime.__version__),
            device=f"{self._gpu.name} ({self._gpu.target})" if self._gpu else "cpu",
            facts=facts,
            notes=[*node_note(found, facts.get("host_copies")), *no_cudnn] if self._gpu else [],
        )

    def _facts(self, session: Any) -> dict[str, Scalar]:
        """Return what must be known of a GPU's provider. What ONNX Runtime was told is read back from it."""
        if self._gpu is None:
            return {}
        effective = session.get_provider_options().get(self._wanted, {})
        tf32 = os.environ.get(TF32_OVERRIDE) != "0" and effective.get("use_tf32") != "0"
        facts: dict[str, Scalar] = {"tf32": tf32, "cuda_graph": self._options.cuda_graph}
        if self._wanted == CUDA:
            facts["cudnn_search"] = effective.get("cudnn_conv_algo_search", "").lower()
        if self._wanted == TENSORRT:
            facts["builder_optimization_level"] = int(effective.get("trt_builder_optimization_level", -1))
        return facts | self._libraries

    def _engines(self) -> set[Path]:
        return set((self._request.engine_dir / ENGINES).glob("*.engine"))
