"""What ONNX Runtime needs beneath it on a GPU: finding it, loading it, and saying what is missing.

ONNX Runtime answers a provider that it cannot make with a session on the CPU and a line in a log. Here the reason is
found again, so that the case says which library is missing.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from backends import cuda_device
from backends.cuda_device import Gpu
from backends.onnxruntime_providers import CUDA, RTX, TENSORRT, TENSORRT_HINT, Provider
from harness.api import Scalar
from harness.errors import FallbackError, HarnessError, OutOfMemory, UnavailableError, UnsupportedError

RTX_PACKAGE, TENSORRT_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx", "tensorrt"
"""Distributions, without the CUDA version that their names end in."""

_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""What every ONNX Runtime up to 1.31 links: TensorRT 11 does not serve it."""
_CUDA_FAILURE = re.compile(r"(CUDA failure \d+: [^;]+?) ;.*?expr=([^;]+)", re.DOTALL)
_PREFIX = re.compile(r"^(?:/\S+ .*?)?\[ONNXRuntimeError\] : \d+ : \w+ : ", re.DOTALL)
_OUT_OF_MEMORY = re.compile(r"out of memory|Failed to allocate memory|bad_alloc", re.IGNORECASE)
_ON_CPU = re.compile(r"fallback to (?:the )?CPU EP has been explicitly disabled|disable_cpu_ep_fallback")
_NO_KERNEL = re.compile(r"Could not find an implementation for|Type '.*' of input parameter .* is invalid")
_WHILE_CAPTURING = re.compile(r"CUDA failure 90[0-8]:|cudaErrorStreamCapture|stream is capturing")
"""The CUDA runtime's errors of a capture, by number or by name."""
_NO_GRAPH = re.compile(r"cannot use the graph capture feature as requested by the user\s+as (.*)", re.DOTALL)


def timings(cache_dir: Path, gpu: Gpu, version: Scalar) -> Path:
    """Return the folder of the layer timings of one TensorRT version on one kind of device."""
    return cache_dir / re.sub(r"[^\w.]+", "-", f"timing-{version}-{gpu.target}-{gpu.name}").strip("-")


def require(provider: Provider, onnxruntime: Any, device: str) -> Gpu:
    """Check that a provider of the GPU can be had here, load its libraries, and return the device.

    Raises:
        UnavailableError: A package, a library or the driver is missing; the message says which.
    """
    plugin = provider.full_name == RTX
    if plugin and not installed(RTX_PACKAGE):
        raise UnavailableError(f"{RTX_PACKAGE} is not installed", hint=provider.hint)
    if not plugin and provider.full_name not in onnxruntime.get_available_providers():
        raise UnavailableError(f"this build of onnxruntime has no {provider.full_name}", hint=provider.hint)
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        missing = "cuda-bindings, which moves data to the device, is not installed"
        raise UnavailableError(missing, hint="pip install cuda-bindings")
    driver = cuda_device.driver()
    gpu = driver.gpu(device)
    if not plugin:
        if major := cuda_major(onnxruntime):
            cuda_device.require(driver, f"onnxruntime-gpu {onnxruntime.__version__}", major)
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # NVIDIA's wheels lie where no loader looks
    if provider.full_name == TENSORRT:
        _load_tensorrt()
    return gpu


def cuda_major(onnxruntime: Any) -> int | None:
    """Return the CUDA major version that this build is for; None for one without CUDA."""
    major = str(getattr(onnxruntime, "cuda_version", "") or "").partition(".")[0]
    return int(major) if major.isdigit() else None


def _load_tensorrt() -> None:
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    for library in _TENSORRT_LIBRARIES:
        path = next((folder / library for folder in folders if (folder / library).is_file()), Path(library))
        try:
            ctypes.CDLL(str(path))
        except OSError as exc:
            other = installed(TENSORRT_PACKAGE)
            beside = f"; TensorRT {other}, which is installed here, does not serve it" if other else ""
            hint = f"in an environment of its own: {TENSORRT_HINT}" if other else TENSORRT_HINT
            raise UnavailableError(f"provider tensorrt needs TensorRT 10: {exc}{beside}", hint=hint) from exc


def installed(package: str) -> str | None:
    """Return the version of a package that has one distribution for each CUDA major version; None without any."""
    for major in cuda_device.DRIVER_BRANCH:
        try:
            return metadata.version(f"{package}-cu{major}")
        except metadata.PackageNotFoundError:
            continue
    return None


def library_facts(provider: Provider) -> dict[str, Scalar]:
    """Return the versions of the libraries beneath a provider that were loaded; a missing cuDNN is said."""
    facts: dict[str, Scalar] = {}
    if provider.full_name == TENSORRT:
        version = int(ctypes.CDLL(_TENSORRT_LIBRARIES[0]).getInferLibVersion())  # 101611 is 10.16.11
        facts["tensorrt"] = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    if provider.full_name in (CUDA, TENSORRT):
        try:
            cudnn = ctypes.CDLL("libcudnn.so.9")
        except OSError:  # newer versions of ONNX Runtime then run without it
            facts["cudnn"] = "missing"
        else:
            cudnn.cudnnGetVersion.restype = ctypes.c_size_t
            version = int(cudnn.cudnnGetVersion())  # 92000 is 9.20.0
            facts["cudnn"] = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    return facts


def missing_library(provider: Provider, onnxruntime: Any) -> str:
    """Return why a provider's library does not load; empty where it does.

    Only for after ONNX Runtime has tried: it hands its own addresses to the library as that is loaded, and one that was
    loaded before would hold none.
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    stem = {CUDA: "cuda", TENSORRT: "tensorrt"}.get(provider.full_name)
    if stem is None:
        return ""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{stem}.so"))
    except OSError as exc:
        return str(exc)
    return ""


def ep_device(onnxruntime: Any, index: int) -> Any:
    """Register NVIDIA's TensorRT-RTX plug-in and return its handle of a device.

    Raises:
        UnavailableError: The plug-in cannot be loaded, or it offers no such device.
    """
    package = importlib.import_module(RTX_PACKAGE.replace("-", "_"))
    library = package.get_library_path()
    try:
        # It lies beside the plug-in, under a name that no loader looks for.
        for cudart in Path(library).parent.glob("libcudart.so.*"):
            ctypes.CDLL(str(cudart))
        onnxruntime.register_execution_provider_library(RTX, library)
    except Exception as exc:  # ONNX Runtime's errors share no base class but Exception
        if "already registered" not in str(exc):
            raise UnavailableError(
                f"{RTX_PACKAGE} cannot be loaded: {plain(exc)}",
                hint="it needs libcuda.so.1 and libnvidia-ml.so.1, which a driver for CUDA 13 brings",
            ) from exc
    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == RTX]
    # The plug-in orders devices by their place on the bus. Where there are several, it must say which is which.
    numbered = {str(one.ep_options.get("device_id", one.ep_metadata.get("device_id", ""))): one for one in devices}
    found = devices[0] if len(devices) == 1 and index == 0 else numbered.get(str(index))
    if found is None:
        known = ", ".join(filter(None, numbered)) or len(devices) or "none"
        raise UnavailableError(
            f"{RTX} offers no device {index}; it has: {known}",
            hint="it supports GPUs from compute capability 8.6 on; hide all but one with CUDA_VISIBLE_DEVICES",
        )
    return found


def failure(exc: Exception, otherwise: type[HarnessError]) -> HarnessError:
    """Return what ONNX Runtime raised as an error of ours."""
    text = plain(exc)
    if _OUT_OF_MEMORY.search(text):
        return OutOfMemory(text, hint="free memory of the device, or lower --batch")
    if _ON_CPU.search(text):
        return FallbackError(
            f"ONNX Runtime would run nodes on the CPU: {text}",
            hint="from version 1.24 on it can say which, and they are counted instead",
        )
    if _NO_KERNEL.search(text):
        return UnsupportedError(text, hint="leave this backend out, or choose another provider or precision")
    if refused := _NO_GRAPH.search(text):
        return UnsupportedError(f"no CUDA graph can be recorded: {refused[1].strip()}", hint="leave out cuda_graph")
    if _WHILE_CAPTURING.search(str(exc)):
        return UnsupportedError(f"a CUDA graph cannot hold this model: {text}", hint="leave out cuda_graph")
    return otherwise(text)


def plain(exc: Exception) -> str:
    """Return what ONNX Runtime says, without the C++ that it says it in."""
    text = str(exc).strip()
    if failed := _CUDA_FAILURE.search(text):
        return f"{failed[1]} ({failed[2].strip()})"
    return " ".join(_PREFIX.sub("", text).split()) or type(exc).__name__
