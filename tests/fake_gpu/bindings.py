"""Stands for `cuda.bindings.runtime`, which would look in a driver for more than the fake one has."""

from __future__ import annotations

import ctypes
import sys
import types
from enum import Enum
from typing import Any


class Runtime(types.ModuleType):
    """As much of it as the backends use, over the fake runtime library."""

    class cudaError_t(Enum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorInvalidDevice = 101
        cudaErrorIllegalAddress = 700

    class cudaMemcpyKind(Enum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.library = ctypes.CDLL("libcudart.so.13")
        self.library.fake_log.restype = self.library.cudaGetErrorString.restype = ctypes.c_char_p
        for name in ("fake_live_blocks", "fake_live_streams"):
            getattr(self.library, name).restype = ctypes.c_long

    def log(self) -> list[str]:
        """Return what was enqueued since the last call."""
        lines: list[str] = self.library.fake_log().decode().splitlines()
        self.library.fake_forget()
        return lines

    def _answer(self, code: int, *values: Any) -> tuple[Any, ...]:
        return (self.cudaError_t(code), *values)

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return self._answer(0, self.library.cudaGetErrorString(error.value))

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return self._answer(self.library.cudaSetDevice(index))

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = ctypes.c_void_p()
        return self._answer(self.library.cudaStreamCreateWithFlags(ctypes.byref(stream), flags), stream.value)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return self._answer(self.library.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._answer(self.library.cudaStreamDestroy(ctypes.c_void_p(stream)))

    def cudaMallocHost(self, nbytes: int) -> tuple[Any, ...]:
        pointer = ctypes.c_void_p()
        return self._answer(self.library.cudaMallocHost(ctypes.byref(pointer), ctypes.c_size_t(nbytes)), pointer.value)

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        return self._answer(self.library.cudaFreeHost(ctypes.c_void_p(pointer)))

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any, ...]:
        addresses = ctypes.c_void_p(to), ctypes.c_void_p(source)
        size, queue = ctypes.c_size_t(nbytes), ctypes.c_void_p(stream)
        return self._answer(self.library.cudaMemcpyAsync(*addresses, size, kind.value, queue))


def use() -> Runtime:
    """Put it in the place of the real one, in this process."""
    runtime = Runtime()
    sys.modules["cuda.bindings.runtime"] = runtime
    return runtime
