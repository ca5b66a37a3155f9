"""Stand-ins for the NVIDIA driver and the CUDA runtime, over host memory."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from enum import Enum
from typing import Any

from backends.cuda_device import Gpu

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
    """`cuda.bindings.runtime` over host memory. Copies happen at once; what is allocated is counted.

    While a stream records, what would run is kept instead, and a graph runs it again.
    """

    class cudaError_t(Enum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorInsufficientDriver = 35
        cudaErrorDevicesUnavailable = 46
        cudaErrorInvalidDevice = 101
        cudaErrorIllegalAddress = 700
        cudaErrorStreamCaptureInvalidated = 901

    class cudaMemcpyKind(Enum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(Enum):
        cudaStreamCaptureModeThreadLocal = 1

    cudaStreamNonBlocking = 1

    def __init__(self, free: int = 1 << 20, devices: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.free = free
        self.devices = devices
        self.fails: dict[str, str] = {}
        """Function -> name of the error that it returns."""
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: list[list[Callable[[], None]]] = []
        self.current: int | None = None
        self.recording: list[Callable[[], None]] | None = None
        self.launches = 0
        self.waits = 0
        self.pageable = 0
        """Copies whose host side was not page-locked."""

    def __getattribute__(self, name: str) -> Any:
        function = super().__getattribute__(name)
        fails = super().__getattribute__("fails") if name.startswith("cuda") else {}
        return (lambda *_: (self.cudaError_t[fails[name]], None)) if name in fails else function

    @property
    def leaks(self) -> bool:
        """Whether anything that was made is still there."""
        return bool(self.blocks or self.pinned or self.streams or self.graphs)

    def do(self, work: Callable[[], None]) -> None:
        """Do what was put on the stream, or record it."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        if index >= self.devices:
            return (self.cudaError_t.cudaErrorInvalidDevice,)
        self.current = index
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking and self.current is not None
        self.streams.add(77)
        return (self.cudaError_t.cudaSuccess, 77)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams and self.recording is None
        self.waits += 1
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert stream in self.streams and mode is self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.recording = []
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams and self.recording is not None
        graph, self.recording = self.recording, None
        self.graphs.append(graph)
        return (self.cudaError_t.cudaSuccess, graph)

    def cudaGraphGetNodes(self, graph: list[Any]) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaSuccess, [], len(graph))

    def cudaGraphInstantiate(self, graph: list[Any], flags: int) -> tuple[Any, ...]:
        self.graphs.append(list(graph))
        return (self.cudaError_t.cudaSuccess, self.graphs[-1])

    def cudaGraphLaunch(self, graph: list[Callable[[], None]], stream: int) -> tuple[Any, ...]:
        assert stream in self.streams and any(graph is known for known in self.graphs)
        self.launches += 1
        for work in graph:
            work()
        return (self.cudaError_t.cudaSuccess,)

    def _drop(self, graph: list[Any]) -> tuple[Any, ...]:
        self.graphs = [known for known in self.graphs if known is not graph]
        return (self.cudaError_t.cudaSuccess,)

    def cudaGraphDestroy(self, graph: list[Any]) -> tuple[Any, ...]:
        return self._drop(graph)

    def cudaGraphExecDestroy(self, graph: list[Any]) -> tuple[Any, ...]:
        return self._drop(graph)

    def cudaMalloc(self, nbytes: int) -> tuple[Any, ...]:
        if nbytes > self.free:
            return (self.cudaError_t.cudaErrorMemoryAllocation, None)
        block = ctypes.create_string_buffer(nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return (self.cudaError_t.cudaSuccess, ctypes.addressof(block))

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        del self.blocks[pointer]
        return (self.cudaError_t.cudaSuccess,)

    def cudaMallocHost(self, nbytes: int) -> tuple[Any, ...]:
        block = ctypes.create_string_buffer(nbytes)
        self.pinned[ctypes.addressof(block)] = block
        return (self.cudaError_t.cudaSuccess, ctypes.addressof(block))

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        del self.pinned[pointer]
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: Any, stream: int) -> tuple[Any, ...]:
        upload = kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice
        device, host = (to, source) if upload else (source, to)
        assert stream in self.streams and nbytes <= len(self.blocks[device]) and self.recording is None
        self.pageable += host not in self.pinned
        ctypes.memmove(to, source, nbytes)
        return (self.cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaSuccess, b"says the fake")
