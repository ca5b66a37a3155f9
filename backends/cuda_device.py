"""An NVIDIA device without a framework: what the driver reports, and memory with a stream of its own.

The driver is asked through ctypes: TensorRT's objects end the process where it is missing, so nothing of
TensorRT may be made before `driver()` has answered. Memory and stream go through cuda-bindings, NVIDIA's
Python form of the CUDA runtime, whose functions return a tuple that starts with an error code.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import OutOfMemory, RunError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

# Values of CUdevice_attribute in cuda.h, a stable ABI.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device that the driver offers to this process."""

    index: int
    name: str
    target: str
    """Compute capability as `sm_89`."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The driver and its devices."""

    cuda: tuple[int, int]
    """Newest CUDA version that the driver serves: major, minor."""
    gpus: tuple[Gpu, ...]

    def gpu(self, device: str) -> Gpu:
        """Return the device that `cuda` or `cuda:N` names.

        Raises:
            UnavailableError: This machine has no such device.
        """
        number = device.partition(":")[2] or "0"
        for gpu in self.gpus:
            if str(gpu.index) == number:
                return gpu
        known = ", ".join(f"cuda:{gpu.index}" for gpu in self.gpus)
        raise UnavailableError(f"no device '{device}' on this machine; it has {known}")


def driver() -> Driver:
    """Initialise the NVIDIA driver and list its devices.

    Raises:
        UnavailableError: There is no driver, or it offers no device; the message says which.
    """
    library = _library()
    code = int(library.cuInit(0))
    if code:
        raise UnavailableError(
            f"the NVIDIA driver offers no device: cuInit returned {code}{_error_name(library, code)}",
            hint="see whether nvidia-smi lists a GPU, and whether CUDA_VISIBLE_DEVICES hides it",
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    # cuDriverGetVersion answers 1000 * major + 10 * minor.
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Driver(cuda=cuda, gpus=tuple(_gpu(library, index) for index in range(count.value)))


def _library() -> Any:  # a ctypes library: its functions are looked up by name
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        raise UnavailableError(
            f"no NVIDIA driver on this machine: {exc}",
            hint="install the NVIDIA driver, or run on a machine with an NVIDIA GPU",
        ) from exc


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return f" ({name.value.decode()})" if name.value else ""


def _gpu(library: Any, index: int) -> Gpu:
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), index)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, index)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, index)
    return Gpu(index=index, name=name.value.decode(), target=f"sm_{major.value}{minor.value}")


class DeviceMemory:
    """Allocations on one device and one stream beside the default one, freed together by `close()`.

    The default stream would add synchronisation with every other stream of the process.
    """

    def __init__(self, index: int) -> None:
        self._cudart: Any = importlib.import_module("cuda.bindings.runtime")
        self._allocations: list[Any] = []
        self._stream: Any = None
        self._call("cudaSetDevice", index)
        self._stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def allocate(self, nbytes: int) -> int:
        """Return the address of new device memory.

        Raises:
            OutOfMemory: The device has not enough left.
        """
        # Size zero gives a null pointer, which TensorRT refuses as a tensor's address.
        pointer = self._call("cudaMalloc", max(nbytes, 1))
        self._allocations.append(pointer)
        return int(pointer)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Enqueue a copy of a C-contiguous array to the device. The array must live until `synchronize()`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Enqueue a copy into a C-contiguous array, whose content is valid after `synchronize()`."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until all that was enqueued on the stream is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free everything; safe to call again."""
        while self._allocations:
            self._cudart.cudaFree(self._allocations.pop())
        if self._stream is not None:
            self._cudart.cudaStreamDestroy(self._stream)
            self._stream = None

    def _call(self, function: str, *arguments: object) -> Any:
        error, *results = getattr(self._cudart, function)(*arguments)
        if error == self._cudart.cudaError_t.cudaSuccess:
            return results[0] if results else None
        text = self._cudart.cudaGetErrorString(error)[1]
        message = f"{function} failed: {error.name}: {text.decode() if isinstance(text, bytes) else text}"
        if error == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemory(message, hint="free device memory, or lower --batch")
        raise RunError(message)
