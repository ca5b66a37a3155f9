"""The driver's answers and device memory, on fakes."""

from __future__ import annotations

import ast
import ctypes
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import cuda_device
from backends.cuda_device import DeviceMemory, Driver
from harness.errors import OutOfMemory, RunError, UnavailableError
from tests.fake_cuda import ADA, FakeCudart, fake_libcuda


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


def test_driver_lists_devices_with_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "_library", fake_libcuda)
    assert cuda_device.driver() == Driver(cuda=(12, 8), gpus=(ADA,))


def test_driver_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "_library", lambda: fake_libcuda(init=100))
    with pytest.raises(UnavailableError, match=r"cuInit returned 100 \(CUDA_ERROR_NO_DEVICE\)"):
        cuda_device.driver()


def test_a_missing_driver_library_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UnavailableError, match=r"no NVIDIA driver.*libcuda\.so\.1"):
        cuda_device.driver()


def test_a_device_that_is_not_there_is_named() -> None:
    driver = Driver(cuda=(13, 0), gpus=(ADA,))
    assert driver.gpu("cuda") == driver.gpu("cuda:0") == ADA
    with pytest.raises(UnavailableError, match="no device 'cuda:1' on this machine; it has cuda:0"):
        driver.gpu("cuda:1")


def test_device_memory_gives_everything_back(cudart: FakeCudart) -> None:
    memory = DeviceMemory(0)
    memory.allocate(16)
    memory.allocate(0)
    memory.host_array((2, 3), "float32")[...] = 1.0
    assert memory.host_array((0, 3), "int64").shape == (0, 3)
    memory.capture(lambda: cudart.do(lambda: None))
    with pytest.raises(OutOfMemory, match="cudaMalloc failed: cudaErrorMemoryAllocation: says the fake"):
        memory.allocate(1 << 30)
    assert (len(cudart.blocks), len(cudart.pinned), len(cudart.graphs), memory.stream) == (2, 2, 1, 77)
    memory.close()
    memory.close()
    assert not cudart.leaks


def test_a_recording_that_is_interrupted_leaves_nothing_behind(cudart: FakeCudart) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    memory = DeviceMemory(0)
    with pytest.raises(KeyboardInterrupt):
        memory.capture(interrupted)
    memory.synchronize()
    memory.close()
    assert not cudart.leaks


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("cudaErrorInvalidDevice", "CUDA_VISIBLE_DEVICES"),
        ("cudaErrorDevicesUnavailable", "compute mode"),
        ("cudaErrorInsufficientDriver", "update the NVIDIA driver"),
    ],
)
def test_a_device_that_cannot_be_opened_is_unavailable(error: str, hint: str, cudart: FakeCudart) -> None:
    cudart.fails["cudaSetDevice"] = error
    with pytest.raises(UnavailableError, match=f"cudaSetDevice failed: {error}") as caught:
        DeviceMemory(0)
    assert hint in (caught.value.hint or "")


def test_other_errors_are_run_errors_without_advice(cudart: FakeCudart) -> None:
    cudart.fails["cudaSetDevice"] = cudart.fails["cudaMalloc"] = "cudaErrorIllegalAddress"
    with pytest.raises(RunError, match="cudaSetDevice failed: cudaErrorIllegalAddress") as caught:
        DeviceMemory(0)
    assert caught.value.hint is None


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver here")
def test_the_real_runtime_says_what_is_missing_where_there_is_no_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(UnavailableError, match="cudaSetDevice failed: cudaErrorInsufficientDriver") as caught:
        DeviceMemory(0)
    assert caught.value.hint


# --- what is installed -----------------------------------------------------------------------------------------


def test_distributions_are_sorted_by_the_cuda_version_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "nvidia_cublas_cu12": "12.8", "tensorrt-cu13": "11.4", "tensorrt_cu13_libs": "11.4", "torch": "2.13.0+cu128",
        "numpy": "2.0", "cucumber": "1", "curl-cu": "1", "torchvision": "0.2+cpu",
    }  # fmt: skip
    listed = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in installed.items()]
    monkeypatch.setattr(cuda_device, "metadata", SimpleNamespace(distributions=lambda: listed))
    parts = cuda_device.cuda_parts()
    assert parts == {12: ["nvidia-cublas-cu12", "torch"], 13: ["tensorrt-cu13", "tensorrt-cu13-libs"]}
    assert cuda_device.mixture(parts) == (
        "parts for two CUDA versions lie in this environment: "
        "nvidia-cublas-cu12, torch; tensorrt-cu13, tensorrt-cu13-libs"
    )


def test_one_cuda_version_is_no_mixture() -> None:
    assert cuda_device.mixture({}) == cuda_device.mixture({13: ["tensorrt-cu13"]}) == ""
    many = {12: list("abcde"), 13: ["f"]}
    assert cuda_device.mixture(many).endswith("a, b, c and 2 more; f")


def test_a_driver_is_held_against_the_cuda_version_of_a_wheel() -> None:
    driver = Driver(cuda=(13, 0), gpus=(ADA,))
    cuda_device.require(driver, "x", 12)
    cuda_device.require(driver, "x", 13)
    with pytest.raises(UnavailableError, match=r"too old: it serves CUDA 13\.0, x needs CUDA 14") as caught:
        cuda_device.require(driver, "x", 14)
    assert (caught.value.hint or "").startswith("update the NVIDIA driver")


# --- names -----------------------------------------------------------------------------------------------------


def test_every_name_of_the_cuda_runtime_that_is_used_exists() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(Path(cuda_device.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    used = {name for name in used if re.fullmatch(r"cuda[A-Z]\w*", name)}
    assert {"cudaMallocHost", "cudaGraphInstantiate", "cudaError_t", "cudaErrorDevicesUnavailable"} <= used
    places = (real, real.cudaError_t, real.cudaMemcpyKind, real.cudaStreamCaptureMode)
    faked = {name for name in dir(FakeCudart) if name.startswith("cuda")}
    assert not {name for name in used | faked if not any(hasattr(place, name) for place in places)}
