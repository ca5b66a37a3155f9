"""The driver's answers and device memory, on fakes."""

from __future__ import annotations

import ctypes
import sys

import pytest

from backends import cuda_device
from backends.cuda_device import DeviceMemory, Driver
from harness.errors import OutOfMemory, RunError, UnavailableError
from tests.fake_tensorrt import ADA, FakeCudart, fake_libcuda


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
    with pytest.raises(OutOfMemory, match="cudaMalloc failed: cudaErrorMemoryAllocation: says the fake"):
        memory.allocate(1 << 30)
    assert len(cudart.blocks) == 2 and memory.stream == 77
    memory.close()
    memory.close()
    assert not cudart.blocks and not cudart.streams


def test_device_memory_on_a_wrong_device_is_a_run_error(cudart: FakeCudart) -> None:
    with pytest.raises(RunError, match="cudaSetDevice failed: cudaErrorInvalidDevice"):
        DeviceMemory(1)
