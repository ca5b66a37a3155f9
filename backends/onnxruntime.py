"""ONNX Runtime with its CPU, CUDA, TensorRT and TensorRT-RTX execution providers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backends import cuda_device, onnxruntime_providers, onnxruntime_releases
from backends.onnxruntime_libraries import RTX_PACKAGE, TENSORRT_PACKAGE, installed
from backends.onnxruntime_opening import Opening
from backends.onnxruntime_providers import (
    CPU,
    CUDA,
    GPU_HINT,
    HINT,
    LACKS,
    RTX,
    SUPPORTED,
    TENSORRT,
    OnnxRuntimeOptions,
)
from backends.onnxruntime_session import GRAPH, OnnxRuntimeSession
from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, OnnxLimits, SavedEngine
from harness.errors import UnavailableError, UnsupportedError


class OnnxRuntime(Backend):
    """Optimises the ONNX graph and gives its nodes to execution providers."""

    name = "onnxruntime"
    summary = "ONNX Runtime (CPU, CUDA, TensorRT and TensorRT-RTX execution providers)"
    capabilities = Capabilities(
        source="onnx", devices=("cpu", "cuda"), precisions=SUPPORTED, lacks=LACKS, dynamic_shapes=True
    )
    modules = ("onnxruntime",)
    Options = OnnxRuntimeOptions

    @classmethod
    def probe(cls) -> Availability:
        try:
            import onnxruntime
        except ImportError as exc:
            return Availability(available=False, reason=f"onnxruntime cannot be imported: {exc}", hint=HINT)
        # get_available_providers() lists what was built in, not what works; a session tells the truth when it is made.
        built = onnxruntime.get_available_providers()
        plugin, tensorrt = installed(RTX_PACKAGE), installed(TENSORRT_PACKAGE)
        versions = {"onnxruntime": onnxruntime.__version__}
        versions |= {RTX_PACKAGE: plugin} if plugin else {}
        versions |= {TENSORRT_PACKAGE: tensorrt} if tensorrt and TENSORRT in built else {}
        host_only = Availability(available=True, versions=versions, devices=("cpu",))
        try:
            gpus = cuda_device.driver().gpus
        except UnavailableError as exc:
            return replace(host_only, reason=f"runs on the CPU only: {exc.message}", hint=exc.hint)
        if CUDA not in built and not plugin:
            return replace(host_only, reason="this build of onnxruntime is for the CPU only", hint=GPU_HINT)
        return replace(host_only, devices=("cpu", *(f"cuda:{gpu.index}" for gpu in gpus)))

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        assert isinstance(options, OnnxRuntimeOptions)
        return onnxruntime_releases.distribution(options, kind)

    @classmethod
    def companions(cls, version: str, options: BackendOptions, kind: str) -> tuple[str, ...]:
        assert isinstance(options, OnnxRuntimeOptions)
        return onnxruntime_releases.companions(options, kind)

    @classmethod
    def reads(cls, version: str) -> OnnxLimits | None:
        return onnxruntime_releases.reads(version)

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        assert isinstance(options, OnnxRuntimeOptions)
        onnxruntime_providers.check(options)

    @classmethod
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        assert isinstance(options, OnnxRuntimeOptions)
        return onnxruntime_providers.environment(options)

    @classmethod
    def snippet(cls, engine: SavedEngine) -> str:
        if engine.provider != CPU:
            raise UnsupportedError(
                f"an engine of {engine.provider} needs what harness tells its provider to be loaded",
                hint="only an engine of the CPU provider is a graph that loads by itself",
            )
        return f"""\
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {engine.threads}
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
session = onnxruntime.InferenceSession(ENGINE / "{GRAPH}", options, providers=["{engine.provider}"])


def run(inputs):
    return session.run(None, inputs)
"""

    def compile(self, request: CompileRequest) -> OnnxRuntimeSession:
        request.engine_dir.mkdir(parents=True, exist_ok=True)
        with _opening(request) as opening:
            if opening.provider.full_name != CPU:
                with request.stage("load"):
                    opening.acquire()
            with request.stage("build"):
                # One call parses, optimises and prepares the kernels, and writes the optimised graph on its way.
                return opening.compile()

    def load(self, engine_dir: Path, request: CompileRequest) -> OnnxRuntimeSession:
        with _opening(request) as opening:
            if opening.provider.full_name != CPU:
                opening.acquire()
            return opening.load(engine_dir)


def _opening(request: CompileRequest) -> Opening:
    options = request.options
    assert isinstance(options, OnnxRuntimeOptions)
    provider = onnxruntime_providers.choose(options, request.device, request.precision)
    if request.dynamic is not None and options.cuda_graph:
        raise UnsupportedError(
            "a CUDA graph replays one shape, and this engine is for all shapes of a sweep",
            hint="leave out cuda_graph or dynamic",
        )
    if request.dynamic is not None and provider.full_name == RTX:
        raise UnsupportedError("provider nv-tensorrt-rtx is for fixed shapes here", hint="use the backend tensorrt-rtx")
    return Opening(request, provider)
