"""Stand-ins for what the TensorRT backends reach outside: the driver, the CUDA runtime, TensorRT's Python API.

What they cannot show is that an engine computes the right thing on a GPU: the conformance suite does, where there
is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends.cuda_device import Gpu
from harness.api import Artifact, Backend, CompileRequest, DynamicShapes, TensorSpec
from harness.artifact import Manifest, write_tensors
from harness.modelspec import ModelSpec

ADA = Gpu(index=0, name="NVIDIA GeForce RTX 4090", target="sm_89")


def fake_libcuda(init: int = 0) -> Any:
    def set_int(value: int) -> Callable[..., int]:
        def call(out: Any, *_: object) -> int:
            out._obj.value = value
            return 0

        return call

    def name(buffer: Any, size: int, index: int) -> int:
        buffer.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def attribute(out: Any, which: int, index: int) -> int:
        out._obj.value = {75: 8, 76: 9}[which]
        return 0

    def error_name(code: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    return types.SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=set_int(12080),
        cuDeviceGetCount=set_int(1),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=attribute,
        cuGetErrorName=error_name,
    )


class FakeCudart(types.ModuleType):
    """`cuda.bindings.runtime` over host memory. Copies happen at once; what is allocated is counted."""

    class cudaError_t(Enum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorInvalidDevice = 101

    class cudaMemcpyKind(Enum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    cudaStreamNonBlocking = 1

    def __init__(self, free: int = 1 << 20) -> None:
        super().__init__("cuda.bindings.runtime")
        self.free = free
        self.blocks: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.ok = self.cudaError_t.cudaSuccess

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (self.ok if index == 0 else self.cudaError_t.cudaErrorInvalidDevice,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        self.streams.add(77)
        return (self.ok, 77)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        return (self.ok,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return (self.ok,)

    def cudaMalloc(self, nbytes: int) -> tuple[Any, ...]:
        if nbytes > self.free:
            return (self.cudaError_t.cudaErrorMemoryAllocation, None)
        block = ctypes.create_string_buffer(nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return (self.ok, ctypes.addressof(block))

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        del self.blocks[pointer]
        return (self.ok,)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: Any, stream: int) -> tuple[Any, ...]:
        device = to if kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert stream in self.streams and nbytes <= len(self.blocks[device])
        ctypes.memmove(to, source, nbytes)
        return (self.ok,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return (self.ok, b"says the fake")


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
    ComputeCapability = Enum("ComputeCapability", "SM86 SM89 SM120")
    NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    __version__ = "11.4.0.106"

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class IProgressMonitor:
        pass

    def __init__(self, cudart: FakeCudart) -> None:
        super().__init__("fake_tensorrt")
        self.cudart, self.config = cudart, FakeConfig()
        self.num_io_tensors, self.num_layers, self.num_inputs, self.num_outputs = 2, 3, 1, 1
        self.shape_tensor = False
        self.enqueues = 0
        self.broken = False
        self.dtype: Any = np.float32
        self.addresses: dict[str, int] = {}
        self.runtime_cache = FakeRuntimeCache()

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        return types.SimpleNamespace(
            create_network=lambda flags: self,
            create_builder_config=lambda: self.config,
            create_optimization_profile=FakeProfile,
            build_serialized_network=self.build,
        )

    def build(self, network: Any, config: Any) -> Buffer:
        config.progress_monitor.phase_start("Building", None, 1)
        config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        config.cache = Buffer(b"timings")
        return Buffer(b"plan")

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return types.SimpleNamespace(parse_from_file=lambda path: Path(path).is_file())

    def get_input(self, index: int) -> Any:
        return types.SimpleNamespace(name="input", is_shape_tensor=self.shape_tensor)

    def Runtime(self, logger: Any) -> Any:
        return types.SimpleNamespace(deserialize_cuda_engine=self.deserialize)

    def deserialize(self, plan: bytes) -> Any:
        if plan == b"plan":
            return self
        self.logger.log(self.ILogger.Severity.ERROR, "wrong magic tag. In throwUnlessHeaderOk at /_src/runtime.cpp:48")
        return None

    def nptype(self, dtype: Any) -> Any:
        return dtype

    # From here on the engine and its context.
    def create_execution_context(self, runtime_config: Any = None) -> Any:
        self.runtime_config = runtime_config
        return self

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace(
            create_runtime_cache=lambda: self.runtime_cache, set_runtime_cache=self.runtime_cache.attach
        )

    def get_tensor_name(self, index: int) -> str:
        return ("input", "output")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.TensorIOMode.INPUT if name == "input" else self.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        low, high = self.config.profile.range if self.config.profile else (shape, shape)
        if all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return True
        self.logger.log(self.ILogger.Severity.ERROR, "Static dimension mismatch")
        return False

    def infer_shapes(self) -> list[str]:
        return []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.enqueues += 1
        if self.broken:
            self.logger.log(self.ILogger.Severity.ERROR, "illegal memory access")
            return False
        block = self.cudart.blocks[self.addresses["input"]]
        doubled = 2 * np.frombuffer(block, np.float32)
        ctypes.memmove(self.addresses["output"], doubled.ctypes.data, doubled.nbytes)
        return True


class FakeRuntimeCache:
    """Stands for `IRuntimeCache`; accepts only what it wrote."""

    attached = False

    def attach(self, cache: Any) -> bool:
        self.attached = cache is self
        return self.attached

    def deserialize(self, known: bytes) -> bool:
        return known == b"kernels"

    def serialize(self) -> Buffer:
        return Buffer(b"kernels")


class FakeProfile:
    """Stands for `IOptimizationProfile` of a network with one input."""

    range: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def set_shape(self, name: str, smallest: Any, tuned: Any, largest: Any) -> None:
        assert name == "input" and tuned == largest
        self.range = (smallest, largest)


class FakeConfig:
    """Stands for `IBuilderConfig`."""

    profile: FakeProfile | None = None

    def __init__(self) -> None:
        self.flags, self.workspace, self.cache, self.progress_monitor = {"TF32"}, 0, Buffer(), None
        self.builder_optimization_level = -1
        self.num_compute_capabilities = 0
        self.capability: Any = None
        self.accepted: list[bytes] = []

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capability = capability
        return index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profile = profile
        return 0 if all(low <= high for low, high in zip(*profile.range, strict=True)) else -1

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        self.workspace = nbytes

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.workspace

    def create_timing_cache(self, known: bytes) -> bytes:
        return known

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache not in (b"", b"timings"):
            return False
        self.accepted.append(cache)
        return True

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: self.cache)


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
        **options: Any,
    ) -> CompileRequest:
        """Ask for an engine of the toy; with `batches`, for one that takes all sizes from the first to the second."""
        artifact = make_artifact(self.root / "artifact", onnx)
        axes = artifact.manifest.axes
        return CompileRequest(
            artifact=artifact,
            options=msgspec.convert(options | {"dynamic": batches is not None}, type=backend.Options),
            device=device,
            dynamic=DynamicShapes(axes=axes, ranges={"batch": batches}) if batches else None,
            engine_dir=self.root / "engine",
            cache_dir=self.root / "cache",
            stage=self.stage,
            progress=report or (lambda *step: self.progress.append(step)),
        )
