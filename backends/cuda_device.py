"""An NVIDIA device without a framework: what the driver reports, and memory with a stream of its own.

The driver is asked through ctypes: TensorRT's objects end the process where it is missing, so nothing of
TensorRT may be made before `driver()` has answered. Memory and stream go through cuda-bindings, NVIDIA's
Python form of the CUDA runtime, whose functions return a tuple that starts with an error code.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from harness.errors import OutOfMemory, RunError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

DRIVER_BRANCH = {12: "r535", 13: "r580"}
"""CUDA major version that a distribution is built for -> the oldest driver branch NVIDIA names for it."""

_NAMED_FOR = re.compile(r"-cu(\d\d)(?=-|$)")
_BUILT_FOR = re.compile(r"\+cu(\d\d)\d")
_LISTED = 3

_GONE = (
    "see whether nvidia-smi still lists the device, whether its compute mode is Default, and what dmesg says of NVRM"
)
_HIDDEN = "see whether nvidia-smi lists the device, and whether CUDA_VISIBLE_DEVICES hides it"
_OLD = "update the NVIDIA driver, or install a cuda-bindings of the CUDA version that it serves"
_HINTS = {
    "cudaErrorDevicesUnavailable": _GONE,
    "cudaErrorECCUncorrectable": _GONE,
    "cudaErrorHardwareStackError": _GONE,
    "cudaErrorUnknown": _GONE,
    "cudaErrorNoDevice": _HIDDEN,
    "cudaErrorInvalidDevice": _HIDDEN,
    "cudaErrorInsufficientDriver": _OLD,
    "cudaErrorCallRequiresNewerDriver": _OLD,
    "cudaErrorSystemDriverMismatch": "the driver was updated while it was in use: restart the machine",
    "cudaErrorLaunchTimeout": "the device drives a screen, whose watchdog ended a kernel: use another one",
}
"""Errors that lie with the device or its driver -> what to look at. Others lie with what runs there."""

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


def cuda_parts() -> dict[int, list[str]]:
    """Return CUDA major version -> the installed distributions whose name or version says that they are for it."""
    found: dict[int, set[str]] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        said = _NAMED_FOR.search(name) or _BUILT_FOR.search(distribution.version or "")
        if said:
            found.setdefault(int(said[1]), set()).add(name)
    return {major: sorted(names) for major, names in sorted(found.items())}


def mixture(parts: dict[int, list[str]]) -> str:
    """Return what to say of parts for more than one CUDA major version in one environment; empty where there is one."""
    if len(parts) < 2:
        return ""
    return "parts for two CUDA versions lie in this environment: " + "; ".join(
        f"{', '.join(names[:_LISTED])}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''}"
        for names in parts.values()
    )


def require(driver: Driver, name: str, major: int) -> None:
    """Check that a driver serves the CUDA version that a distribution is built for.

    Raises:
        UnavailableError: It is too old; the hint names the branch to update to, and a mixed environment.
    """
    if driver.cuda[0] >= major:
        return
    branch = DRIVER_BRANCH.get(major)
    advice = f"update the NVIDIA driver to {branch} or newer" if branch else "update the NVIDIA driver"
    raise UnavailableError(
        f"the NVIDIA driver is too old: it serves CUDA {'.'.join(map(str, driver.cuda))}, {name} needs CUDA {major}",
        hint="; ".join(filter(None, (advice, mixture(cuda_parts())))),
    )


def select(index: int) -> Any:
    """Make a device the current one of this thread, and return the module of the CUDA runtime.

    Raises:
        UnavailableError: There is no such device, it is taken or gone, or the driver is too old.
    """
    cudart = importlib.import_module("cuda.bindings.runtime")
    try:
        call(cudart, "cudaSetDevice", index)
    except RunError as exc:
        raise (UnavailableError(exc.message, hint=exc.hint) if exc.hint else exc) from exc
    return cudart


def call(cudart: Any, function: str, *arguments: object) -> Any:
    """Call a function of the CUDA runtime and return what follows its error code, if anything.

    Raises:
        OutOfMemory: The device, or the host's page-locked memory, has not enough left.
        RunError: Any other error. It has a hint where the device or the driver is at fault.
    """
    error, *results = getattr(cudart, function)(*arguments)
    if error == cudart.cudaError_t.cudaSuccess:
        return results[0] if results else None
    text = cudart.cudaGetErrorString(error)[1]
    message = f"{function} failed: {error.name}: {text.decode() if isinstance(text, bytes) else text}"
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        where = "host" if function == "cudaMallocHost" else "device"
        raise OutOfMemory(message, hint=f"free {where} memory, or lower --batch")
    raise RunError(message, hint=_HINTS.get(error.name))


class DeviceMemory:
    """Memory on one device, page-locked memory beside it, and one stream, all freed together by `close()`.

    The default stream would add synchronisation with every other stream of the process.
    """

    def __init__(self, index: int) -> None:
        """Open the device.

        Raises:
            UnavailableError: It cannot be used.
            OutOfMemory: It has not enough memory left for a context.
        """
        self._allocations: list[Any] = []
        self._pinned: list[Any] = []
        self._graph: Any = None
        self._stream: Any = None
        self._cudart = select(index)
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

    def host_array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return an array in page-locked host memory, which the device copies from and to without a detour.

        It must not be used after `close()`.

        Raises:
            OutOfMemory: The host has not enough left.
        """
        import numpy as np

        nbytes = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        pointer = self._call("cudaMallocHost", nbytes)
        self._pinned.append(pointer)
        return np.ndarray(shape, dtype, buffer=memoryview((ctypes.c_char * nbytes).from_address(int(pointer))))

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

    def capture(self, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts on the stream in a CUDA graph, without running it, for `replay()`.

        All addresses in it must stay as they are until `close()`.

        Raises:
            RunError: It did something that a graph cannot hold, or nothing at all.
            OutOfMemory: The graph does not fit on the device.
        """
        # Thread-local: what other threads of the process do meanwhile must not end the capture.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:  # whatever ends it, the stream must not stay in a state in which it can do nothing else
            error, *graphs = self._cudart.cudaStreamEndCapture(self._stream)
            if error == self._cudart.cudaError_t.cudaSuccess:
                self._cudart.cudaGraphDestroy(*graphs)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            error, _, nodes = self._cudart.cudaGraphGetNodes(graph)
            if error == self._cudart.cudaError_t.cudaSuccess and not nodes:
                raise RunError("the captured graph is empty: the work went to another stream")
            self._graph = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._cudart.cudaGraphDestroy(graph)

    def replay(self) -> None:
        """Enqueue the captured graph."""
        self._call("cudaGraphLaunch", self._graph, self._stream)

    def forget_graph(self) -> None:
        """Free the captured graph, if there is one."""
        if self._graph is not None:
            self._cudart.cudaGraphExecDestroy(self._graph)
            self._graph = None

    def close(self) -> None:
        """Free everything; safe to call again."""
        self.forget_graph()
        while self._allocations:
            self._cudart.cudaFree(self._allocations.pop())
        while self._pinned:
            self._cudart.cudaFreeHost(self._pinned.pop())
        if self._stream is not None:
            self._cudart.cudaStreamDestroy(self._stream)
            self._stream = None

    def _call(self, function: str, *arguments: object) -> Any:
        return call(self._cudart, function, *arguments)
