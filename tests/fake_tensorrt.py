"""Stand-ins for TensorRT's Python API, over the fake CUDA runtime, and requests to try backends with.

What they cannot show is that an engine computes the right thing on a GPU: the conformance suite does, where there
is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.api import Artifact, Backend, CompileRequest, DynamicShapes, TensorSpec
from harness.artifact import Manifest, write_tensors
from harness.modelspec import ModelSpec
from tests.fake_cuda import FakeCudart


class Seen:
    """What the fakes below were told, and how they are to behave."""

    def __init__(self, cudart: FakeCudart) -> None:
        self.cudart = cudart
        self.logger: Any = None
        self.built_on: int | None = None
        """The device that was the current one when the builder was made."""
        self.flags = {"TF32"}
        self.workspace = 0
        self.capability: Any = None
        self.accepted: list[bytes] = []
        """Timing caches that were taken."""
        self.meanwhile: Callable[[], object] = lambda: None
        """Happens while the engine is built."""
        self.profile: FakeProfile | None = None
        self.runtime_config: FakeRuntimeConfig | None = None
        self.runtime_caches: list[FakeRuntimeCache] = []
        self.kernels: Buffer | None = Buffer(b"kernels")
        """What a runtime cache is written as; None where it cannot be."""
        self.addresses: dict[str, int] = {}
        self.enqueues = 0
        self.broken = ""
        """What an enqueue that fails logs."""
        self.unrecordable = ""
        """What an enqueue that fails only while the stream records logs."""
        self.deserializes = True
        self.deserialize_error = "wrong magic tag. In throwUnlessHeaderOk at /_src/runtime.cpp:48"
        self.graph_warning = ""
        """What making a context logs where a CUDA graph was asked for."""
        self.shape_tensor = False
        self.shape_error = ""
        """What inferring shapes logs where it fails."""
        self.dtype: Any = np.float32
        self.shape: tuple[int, ...] = ()
        self.layers: list[Any] = ["/conv + /relu", "/fc", "reformat"]
        """What the inspector tells."""

    def log(self, severity: str, message: str) -> None:
        self.logger.log(self.logger.Severity[severity], message)


class Fake:
    """Base of what stands for a class of TensorRT. Its public names are names that the real class has."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen


class Buffer(bytes):
    """Stands for `IHostMemory`."""

    @property
    def nbytes(self) -> int:
        return len(self)


class FakeTensorRT(types.ModuleType):
    """As much of TensorRT's Python API as the backends use; its engine doubles its input."""

    class TensorIOMode(Enum):
        INPUT = 1
        OUTPUT = 2

    TensorLocation = Enum("TensorLocation", "DEVICE HOST")
    BuilderFlag = Enum("BuilderFlag", "TF32")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")
    ProfilingVerbosity = Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")
    LayerInformationFormat = Enum("LayerInformationFormat", "JSON")
    ComputeCapability = Enum("ComputeCapability", "SM86 SM89 SM120")
    CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
    DynamicShapesKernelSpecializationStrategy = Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER")
    NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    __version__ = "11.4.0.106"

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class IProgressMonitor:
        pass

    class IProfiler:
        pass

    def __init__(self, cudart: FakeCudart) -> None:
        super().__init__("fake_tensorrt")
        self.seen = Seen(cudart)

    @property
    def config(self) -> FakeConfig:
        return self._config

    def Builder(self, logger: Any) -> FakeBuilder:
        self.seen.logger = logger
        self.seen.built_on = self.seen.cudart.current
        self._config = FakeConfig(self.seen)
        return FakeBuilder(self.seen, self._config)

    def OnnxParser(self, network: Any, logger: Any) -> FakeParser:
        return FakeParser(self.seen)

    def Runtime(self, logger: Any) -> FakeRuntime:
        self.seen.logger = logger
        return FakeRuntime(self.seen)

    def nptype(self, dtype: Any) -> Any:
        return dtype


class FakeBuilder(Fake):
    """Stands for `Builder`."""

    max_threads = 1

    def __init__(self, seen: Seen, config: FakeConfig) -> None:
        super().__init__(seen)
        self._config = config

    def create_network(self, flags: int) -> FakeNetwork:
        assert flags == 1 << FakeTensorRT.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return FakeNetwork(self._seen)

    def create_builder_config(self) -> FakeConfig:
        return self._config

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile(self._seen)

    def build_serialized_network(self, network: Any, config: FakeConfig) -> Buffer | None:
        watch = config.progress_monitor
        watch.phase_start("Building", None, 2)
        watch.phase_start("Timing", "Building", 3)
        watch.step_complete("Timing", 0)
        watch.phase_finish("Timing")
        watch.step_complete("Building", 0)
        watch.phase_finish("Building")
        self._seen.meanwhile()
        config._cache.combine(FakeTimingCache(b"timings"), ignore_mismatch=False)
        return Buffer(b"plan")


class FakeNetwork(Fake):
    """Stands for `INetworkDefinition`."""

    num_layers, num_inputs, num_outputs = 3, 1, 1

    def get_input(self, index: int) -> FakeTensor:
        return FakeTensor(self._seen)


class FakeTensor(Fake):
    """Stands for `ITensor`."""

    name = "input"

    @property
    def is_shape_tensor(self) -> bool:
        return self._seen.shape_tensor


class FakeParser(Fake):
    """Stands for `OnnxParser`."""

    num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        return Path(path).is_file()

    def get_error(self, index: int) -> FakeParserError:
        raise AssertionError("it has none")


class FakeParserError:
    """Stands for `ParserError`."""

    def __init__(self, code: str, text: str, node: int = 0, name: str = "", operator: str = "") -> None:
        self._code, self._text, self._node, self._name, self._operator = code, text, node, name, operator

    def code(self) -> Any:
        return types.SimpleNamespace(name=self._code)

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator


class FakeRuntime(Fake):
    """Stands for `Runtime`."""

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan == b"plan" and self._seen.deserializes:
            return FakeEngine(self._seen)
        self._seen.log("ERROR", self._seen.deserialize_error)
        return None


class FakeEngine(Fake):
    """Stands for `ICudaEngine`."""

    num_io_tensors = 2

    @property
    def num_layers(self) -> int:
        return len(self._seen.layers)

    def create_execution_context(self, runtime_config: FakeRuntimeConfig | None = None) -> FakeContext:
        strategy = runtime_config and runtime_config.cuda_graph_strategy
        if strategy is FakeTensorRT.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE and self._seen.graph_warning:
            self._seen.log("WARNING", self._seen.graph_warning)
        return FakeContext(self._seen)

    def create_engine_inspector(self) -> FakeInspector:
        return FakeInspector(self._seen)

    def create_runtime_config(self) -> FakeRuntimeConfig:
        self._seen.runtime_config = FakeRuntimeConfig(self._seen)
        return self._seen.runtime_config

    def get_tensor_name(self, index: int) -> str:
        return ("input", "output")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return FakeTensorRT.TensorIOMode.INPUT if name == "input" else FakeTensorRT.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return FakeTensorRT.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return self._seen.dtype


class FakeInspector(Fake):
    """Stands for `EngineInspector`."""

    execution_context: Any = None

    def get_engine_information(self, form: Any) -> str:
        assert form is FakeTensorRT.LayerInformationFormat.JSON and isinstance(self.execution_context, FakeContext)
        return json.dumps({"Layers": self._seen.layers, "Bindings": ["input", "output"]})


class FakeContext(Fake):
    """Stands for `IExecutionContext`."""

    nvtx_verbosity: Any = FakeTensorRT.ProfilingVerbosity.DETAILED
    profiler: Any = None

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._seen.shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._seen.shape = shape
        low, high = self._seen.profile._range if self._seen.profile else (shape, shape)
        if all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return True
        self._seen.log("ERROR", "Static dimension mismatch")
        return False

    def infer_shapes(self) -> list[str]:
        if self._seen.shape_error:
            self._seen.log("ERROR", self._seen.shape_error)
            raise RuntimeError("infer_shapes error code: -1")
        return []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._seen.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        seen = self._seen
        assert stream == 77 and self.nvtx_verbosity is FakeTensorRT.ProfilingVerbosity.LAYER_NAMES_ONLY
        seen.enqueues += 1
        if failure := seen.broken or (seen.unrecordable if seen.cudart.recording is not None else ""):
            seen.log("ERROR", failure)
            return False

        def double() -> None:
            block = seen.cudart.blocks[seen.addresses["input"]]
            doubled = 2 * np.frombuffer(block, np.float32)
            ctypes.memmove(seen.addresses["output"], doubled.ctypes.data, doubled.nbytes)

        seen.cudart.do(double)
        if self.profiler is not None:
            for number, layer in enumerate(seen.layers, 1):
                self.profiler.report_layer_time(layer if isinstance(layer, str) else layer["Name"], number / 1000)
        return True


class FakeRuntimeConfig(Fake):
    """Stands for `IRuntimeConfig` of TensorRT-RTX."""

    cuda_graph_strategy: Any = FakeTensorRT.CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy: Any = FakeTensorRT.DynamicShapesKernelSpecializationStrategy.LAZY
    _cache: Any = None

    def create_runtime_cache(self) -> FakeRuntimeCache:
        self._seen.runtime_caches.append(FakeRuntimeCache(self._seen))
        return self._seen.runtime_caches[-1]

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._cache = cache
        return True


class FakeRuntimeCache(Fake):
    """Stands for `IRuntimeCache`; accepts only what it wrote."""

    def deserialize(self, known: bytes) -> bool:
        return known == self._seen.kernels

    def serialize(self) -> Buffer | None:
        return self._seen.kernels


class FakeProfile(Fake):
    """Stands for `IOptimizationProfile` of a network with one input."""

    _range: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def set_shape(self, name: str, smallest: Any, tuned: Any, largest: Any) -> None:
        assert name == "input" and tuned == largest
        self._range = (smallest, largest)


class FakeTimingCache:
    """Stands for `ITimingCache`: a set of words."""

    def __init__(self, content: bytes) -> None:
        self._words = set(content.split())

    def combine(self, other: FakeTimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if not all(word.startswith(b"timing") for word in other._words):
            return False
        self._words |= other._words
        return True

    def serialize(self) -> Buffer:
        return Buffer(b" ".join(sorted(self._words)))


class FakeConfig(Fake):
    """Stands for `IBuilderConfig`."""

    builder_optimization_level = -1
    num_compute_capabilities = 0
    profiling_verbosity: Any = None
    progress_monitor: Any = None

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen)
        self._cache = FakeTimingCache(b"")

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self._seen.capability = capability
        return index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self._seen.profile = profile
        return 0 if all(low <= high for low, high in zip(*profile._range, strict=True)) else -1

    def set_flag(self, flag: Any) -> None:
        self._seen.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._seen.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        self._seen.workspace = nbytes

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._seen.workspace

    def create_timing_cache(self, known: bytes) -> FakeTimingCache:
        return FakeTimingCache(known)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        if not self._cache.combine(cache, ignore_mismatch):
            return False
        self._seen.accepted.append(bytes(cache.serialize()))
        return True

    def get_timing_cache(self) -> FakeTimingCache:
        return self._cache


def make_artifact(folder: Path, onnx: bytes = b"an onnx file", batch: int = 1) -> Artifact:
    """Write the toy model's artifact: one input and one output of [batch, 4, 4]."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx)
    values = np.arange(16 * batch, dtype=np.float32).reshape(batch, 4, 4)
    write_tensors(folder / "inputs-0.safetensors", {"input": values})
    manifest = Manifest(
        model=ModelSpec(name="toy"),
        dims={"batch": batch},
        axes={"input": {0: "batch"}},
        weights="seeded",
        seed=0,
        opset=18,
        inputs=(TensorSpec(name="input", dtype="float32", shape=values.shape),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=values.shape),),
        input_sets=1,
        parameters=0,
        weights_bytes=0,
        deterministic=True,
        golden=False,
        export_s=0.0,
        onnx_max_abs=0.0,
        versions={},
        files={},
    )
    return Artifact(folder, manifest)


class Asked:
    """Makes requests and keeps what was reported through them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: list[str] = []
        self.progress: list[Any] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def request(
        self,
        backend: type[Backend],
        onnx: bytes = b"an onnx file",
        device: str = "cuda:0",
        report: Any = None,
        batches: tuple[int, int] | None = None,
        target: str | None = None,
        precision: str = "fp32",
        **options: Any,
    ) -> CompileRequest:
        """Ask for an engine of the toy; with `batches`, for one that takes all sizes from the first to the second."""
        artifact = make_artifact(self.root / "artifact", onnx)
        axes = artifact.manifest.axes
        return CompileRequest(
            artifact=artifact,
            options=msgspec.convert(options | {"dynamic": batches is not None}, type=backend.Options),
            device=device,
            target=target,
            precision=precision,
            dynamic=DynamicShapes(axes=axes, ranges={"batch": batches}) if batches else None,
            engine_dir=self.root / "engine",
            cache_dir=self.root / "cache",
            stage=self.stage,
            progress=report or (lambda *step: self.progress.append(step)),
        )
