"""The TensorRT backends: probes against broken installations, sessions on fakes, and real builds with RTX."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from filelock import FileLock

from backends import cuda_device, tensorrt, tensorrt_family
from backends.cuda_device import Driver, Gpu
from backends.tensorrt import TensorRT, timing_cache_path
from backends.tensorrt_layers import LAYERS
from backends.tensorrt_rtx import RUNTIME_CACHE, TARGETS, TensorRTRTX
from backends.tensorrt_session import CARD, PLAN
from harness.api import Availability, DynamicShapes
from harness.errors import CompileError, HarnessError, OutOfMemory, RunError, UnavailableError, UnsupportedError
from harness.measure import profile
from harness.precisions import PRECISIONS
from tests.fake_cuda import ADA, FakeCudart
from tests.fake_tensorrt import Asked, FakeTensorRT, make_artifact


class FakeNative(TensorRT):
    modules = ("fake_tensorrt",)


class FakeRtx(TensorRTRTX):
    modules = ("fake_tensorrt",)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def no_answer() -> Driver:
    raise UnavailableError("no NVIDIA driver on this machine", hint="install it")


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "driver", no_answer)


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    """An RTX 4090 whose memory is the host's."""
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(ADA,)))
    return fake


@pytest.fixture
def trt(cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(cudart)
    monkeypatch.setitem(sys.modules, "fake_tensorrt", fake)
    return fake


# --- probes ----------------------------------------------------------------------------------------------------


def probe_with(module: str, source: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Availability:
    """Probe the native backend with a package of the given source in place of TensorRT."""
    if source is not None:
        (folder / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    probed: type[TensorRT] = type("Probed", (TensorRT,), {"modules": (module,)})
    return probed.probe()


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("trt_absent", None, "trt_absent is not installed"),
        (
            "trt_bare",
            "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file or directory')",
            "trt_bare is installed without its libraries: libnvinfer.so.11 is missing",
        ),
        (
            "trt_broken",
            "raise RuntimeError('on purpose')",
            "trt_broken is installed but cannot be imported: RuntimeError: on purpose",
        ),
        (
            "trt_crash",
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "trt_crash is installed but cannot be imported: the import ended with signal 11",
        ),
        (
            "trt_exit",
            "import os; os._exit(3)",
            "trt_exit is installed but cannot be imported: the import ended with code 3",
        ),
        ("trt_old", "__version__ = '8.6.0'", "tensorrt 8.6.0 is not supported: this backend is written for 10 and 11"),
        ("trt_chatty", "print('hello'); __version__ = '11.4.0'", "no NVIDIA driver on this machine"),
        ("trt_odd", "version = '11'", "trt_odd is installed but cannot be imported: AttributeError: "),
    ],
)
def test_the_probe_tells_broken_installations_apart(
    module: str, source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_driver: None
) -> None:
    answer = probe_with(module, source, tmp_path, monkeypatch)
    assert not answer.available
    assert answer.reason is not None and answer.reason.startswith(reason)
    assert answer.hint


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that distributions are installed: name -> version."""

    def install(**versions: str) -> None:
        found = {name.replace("_", "-"): version for name, version in versions.items()}
        listed = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in found.items()]
        pretended = SimpleNamespace(distributions=lambda: listed, version=found.__getitem__)
        for module in (cuda_device, tensorrt_family):
            monkeypatch.setattr(module, "metadata", pretended)

    return install


def test_the_probe_refuses_a_driver_that_is_too_old_for_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[..., None]
) -> None:
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(12, 8), gpus=(ADA,)))
    installed(trt_new_cu13="11.4.0", cuda_bindings="12.9.1")
    answer = probe_with("trt_new", "__version__ = '11.4.0'", tmp_path, monkeypatch)
    assert answer.reason == "the NVIDIA driver is too old: it serves CUDA 12.8, trt-new-cu13 needs CUDA 13"
    assert answer.hint == "update the NVIDIA driver to r580 or newer"


def test_the_probe_refuses_a_driver_that_is_too_old_for_cuda_bindings_and_names_a_mixed_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[..., None]
) -> None:
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(12, 8), gpus=(ADA,)))
    installed(trt_cu12="11.4.0", nvidia_cudnn_cu13="9.0", torch="2.13.0+cu130", cuda_bindings="13.0.3")
    answer = probe_with("trt", "__version__ = '11.4.0'", tmp_path, monkeypatch)
    assert answer.reason == "the NVIDIA driver is too old: it serves CUDA 12.8, cuda-bindings 13.0.3 needs CUDA 13"
    assert answer.hint == (
        "update the NVIDIA driver to r580 or newer; "
        "parts for two CUDA versions lie in this environment: trt-cu12; nvidia-cudnn-cu13, torch"
    )


@pytest.mark.parametrize(
    ("served", "hint"),
    [
        (13, "pip uninstall trt-cu12 trt-cu12-libs, then: pip install --force-reinstall trt-cu13"),
        (12, "pip uninstall trt-cu13, then: pip install --force-reinstall trt-cu12 trt-cu12-libs"),
    ],
)
def test_the_probe_refuses_one_package_for_two_cuda_versions(
    served: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[..., None]
) -> None:
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(served, 0), gpus=(ADA,)))
    installed(trt_cu12="11.4.0", trt_cu12_libs="11.4.0", trt_cu13="11.4.0", trt_other="1")
    answer = probe_with("trt", "raise AssertionError('it must not be imported')", tmp_path, monkeypatch)
    assert not answer.available
    assert answer.reason == (
        "trt is installed for two CUDA versions, whose files overwrite each other: "
        "trt-cu12, trt-cu12-libs for CUDA 12; trt-cu13 for CUDA 13"
    )
    assert answer.hint == hint


def test_every_usable_device_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Callable[..., None]
) -> None:
    two = Gpu(index=1, name="NVIDIA L4", target="sm_89")
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(ADA, two)))
    installed(trt_good_cu13="11.4.0", cuda_bindings="13.0.3")
    answer = probe_with("trt_good", "__version__ = '11.4.0'", tmp_path, monkeypatch)
    assert answer.available and answer.devices == ("cuda:0", "cuda:1")


def test_without_cuda_bindings_nothing_runs_but_rtx_still_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(ADA,)))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cuda" else find(name))
    answer = TensorRTRTX.probe()
    assert answer.available and not answer.devices and answer.hint == "pip install 'cuda-bindings<14'"
    assert answer.reason == (
        "engines can be built but not run: cuda-bindings, which moves data to the device, is not installed"
    )


def test_a_probe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(importlib.util, "find_spec", burst)
    assert TensorRT.probe().reason == "the probe failed: ValueError: tensorrt.__spec__ is None"


# --- native TensorRT on fakes ----------------------------------------------------------------------------------


def test_native_compiles_runs_and_loads_on_fakes(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    request = asked.request(FakeNative)
    inputs = request.artifact.input_set(0)
    with FakeNative().compile(request) as session:
        session.bind(inputs)
        session.execute()
        session.synchronize()
        np.testing.assert_array_equal(session.outputs()["output"], 2 * inputs["input"])
        session.save(request.engine_dir)
        assert session.stream == 77 and session.provider == "TensorRT sm_89"
        assert session.placement() == {"cuda": 3}
        assert session.facts() == {
            "target": "sm_89",
            "tf32": False,
            "builder_optimization_level": 3,
            "timing_cache": "cold",
            "plan_bytes": 4,
            "network_layers": 3,
            "layers": 3,
        }
    assert not cudart.leaks
    assert asked.stages == ["load", "build"]
    with FakeNative().load(request.engine_dir, request) as loaded:
        loaded.bind(inputs)
        loaded.execute()
        np.testing.assert_array_equal(loaded.outputs()["output"], 2 * inputs["input"])
        assert loaded.placement() == {"cuda": 3}
        loaded.save(asked.root / "copy")
    assert not cudart.leaks
    with FakeNative().load(asked.root / "copy", request) as again:
        assert again.placement() == {"cuda": 3}


def test_every_native_option_reaches_the_builder(trt: FakeTensorRT, asked: Asked) -> None:
    for precision in PRECISIONS:  # TensorRT's own default is on
        FakeNative().compile(asked.request(FakeNative, precision=precision)).close()
        assert ("TF32" in trt.seen.flags) is (precision == "tf32")
    FakeNative().compile(asked.request(FakeNative, workspace_mb=64, builder_optimization_level=5)).close()
    assert trt.seen.workspace == 64 << 20
    assert trt.config.builder_optimization_level == 5


def test_an_engine_is_built_on_the_device_that_was_asked_for(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Gpu(index=1, name="NVIDIA L4", target="sm_89")
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(ADA, two)))
    cudart.devices = 2
    for device in ("cuda:1", "cuda:0"):
        request = asked.request(FakeNative, device=device)
        with FakeNative().compile(request) as session:
            assert f"cuda:{trt.seen.built_on}" == f"cuda:{cudart.current}" == device
            session.save(request.engine_dir)
    with pytest.raises(
        RunError, match=r"built on NVIDIA GeForce RTX 4090, and this device is another \(cuda:1: NVIDIA"
    ):
        FakeNative().load(request.engine_dir, asked.request(FakeNative, device="cuda:1"))
    with pytest.raises(UnavailableError, match="no device 'cuda:2' on this machine; it has cuda:0, cuda:1"):
        FakeNative().compile(asked.request(FakeNative, device="cuda:2"))
    assert not cudart.leaks


def test_native_builds_for_no_target_but_its_device(trt: FakeTensorRT, asked: Asked) -> None:
    with pytest.raises(UnsupportedError, match=r"tensorrt cannot build for sm_89 without the device$"):
        FakeNative().compile(asked.request(FakeNative, target="sm_89"))


class Untouchable:
    """A module that ends the process when anything of it is used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used before the driver had answered")


def test_nothing_of_tensorrt_is_used_before_the_driver_has_answered(
    trt: FakeTensorRT, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked.request(FakeNative)
    with FakeNative().compile(request) as session:
        session.save(request.engine_dir)
    monkeypatch.setattr(cuda_device, "driver", no_answer)
    monkeypatch.setitem(sys.modules, "fake_tensorrt", Untouchable())
    with pytest.raises(UnavailableError, match="no NVIDIA driver"):
        FakeNative().compile(request)
    for backend in (FakeNative, FakeRtx):
        (request.engine_dir / CARD).write_text(
            (request.engine_dir / CARD).read_text().replace('"tensorrt"', f'"{backend.name}"')
        )
        with pytest.raises(RunError, match="this engine was built for sm_89: no NVIDIA driver"):
            backend().load(request.engine_dir, request)


@pytest.mark.parametrize("level", [-1, 6, "3"])
def test_a_level_outside_0_to_5_is_refused(level: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"builder_optimization_level": level}, type=TensorRT.Options)


def test_the_timing_cache_is_reused_and_a_damaged_one_replaced(trt: FakeTensorRT, asked: Asked) -> None:
    request = asked.request(FakeNative)
    path = timing_cache_path(request.cache_dir, trt.__version__, ADA)
    assert path.name == "timing-11.4.0.106-sm_89-NVIDIA-GeForce-RTX-4090.cache"
    facts = []
    for before in (None, None, b"damaged"):
        if before:
            path.write_bytes(before)
        with FakeNative().compile(request) as session:
            facts.append(session.facts()["timing_cache"])
        assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
        assert path.read_bytes() == b"timings"
    assert facts == ["cold", "warm, 7 bytes", "cold"]
    assert trt.seen.accepted == [b"", b"timings", b""]


def test_two_builds_at_once_keep_what_both_have_timed(trt: FakeTensorRT, asked: Asked) -> None:
    request = asked.request(FakeNative)
    path = timing_cache_path(request.cache_dir, trt.__version__, ADA)
    path.parent.mkdir(parents=True)
    trt.seen.meanwhile = lambda: path.write_bytes(b"timings-of-another")
    FakeNative().compile(request).close()
    assert path.read_bytes() == b"timings timings-of-another"


def test_a_locked_timing_cache_costs_no_engine(
    trt: FakeTensorRT, asked: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tensorrt, "CACHE_LOCK_WITHIN_S", 0)
    request = asked.request(FakeNative)
    path = timing_cache_path(request.cache_dir, trt.__version__, ADA)
    path.parent.mkdir(parents=True)
    with FileLock(f"{path}.lock"):
        FakeNative().compile(request).close()
    assert not path.exists() and "the layer timings of this build are lost" in caplog.text


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"other": np.zeros((1, 4, 4), np.float32)},
        {"input": np.zeros((1, 4, 4), np.float64)},
        {"input": np.zeros((4, 4), np.float32)},
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Any], trt: FakeTensorRT, asked: Asked) -> None:
    with FakeNative().compile(asked.request(FakeNative)) as session, pytest.raises(RunError, match="expected"):
        session.bind(inputs)


def test_an_input_that_is_not_contiguous_is_copied_right(trt: FakeTensorRT, asked: Asked) -> None:
    turned = np.arange(16, dtype=np.float32).reshape(1, 4, 4).swapaxes(1, 2)
    with FakeNative().compile(asked.request(FakeNative)) as session:
        session.bind({"input": turned})
        session.execute()
        np.testing.assert_array_equal(session.outputs()["output"], 2 * turned)


def test_binding_again_waits_for_the_copies_before(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    request = asked.request(FakeNative)
    with FakeNative().compile(request) as session:
        inputs = request.artifact.input_set(0)
        session.bind(inputs)
        session.execute()
        assert cudart.waits == 0
        session.bind({"input": inputs["input"] + 1})  # its page-locked array may still be read
        assert cudart.waits == 1
        session.synchronize()
        session.bind(inputs)
        assert cudart.waits == 2


def test_copies_go_through_page_locked_memory_and_outputs_are_owned(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeNative)
    with FakeNative().compile(request) as session:
        assert len(cudart.pinned) == len(cudart.blocks) == 2
        for _ in range(3):
            session.bind(request.artifact.input_set(0))
            session.execute()
            outputs = session.outputs()
        assert len(cudart.pinned) == len(cudart.blocks) == 2 and cudart.pageable == 0
    assert outputs["output"].flags.owndata
    np.testing.assert_array_equal(outputs["output"], 2 * request.artifact.input_set(0)["input"])


@pytest.mark.parametrize(
    ("logged", "kind"),
    [("illegal memory access", RunError), ("Error Code 2: OutOfMemory (Requested ...)", OutOfMemory)],
)
def test_a_failing_enqueue_says_why(
    logged: str, kind: type[HarnessError], trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    with FakeNative().compile(asked.request(FakeNative)) as session:
        trt.seen.broken = logged
        with pytest.raises(kind, match="could not enqueue the engine: ") as caught:
            session.execute()
        assert logged in caught.value.message
    assert not cudart.leaks


@pytest.mark.parametrize(
    ("function", "error", "kind", "hint"),
    [
        ("cudaSetDevice", "cudaErrorDevicesUnavailable", UnavailableError, "nvidia-smi"),
        ("cudaSetDevice", "cudaErrorInsufficientDriver", UnavailableError, "update the NVIDIA driver"),
        ("cudaMalloc", "cudaErrorMemoryAllocation", OutOfMemory, "free device memory"),
        ("cudaMallocHost", "cudaErrorMemoryAllocation", OutOfMemory, "free host memory"),
        ("cudaStreamCreateWithFlags", "cudaErrorMemoryAllocation", OutOfMemory, "free device memory"),
    ],
)
def test_a_device_that_cannot_be_used_is_told_while_compiling(
    function: str,
    error: str,
    kind: type[HarnessError],
    hint: str,
    trt: FakeTensorRT,
    cudart: FakeCudart,
    asked: Asked,
) -> None:
    cudart.fails[function] = error
    with pytest.raises(kind, match=f"{function} failed: {error}: says the fake") as caught:
        FakeNative().compile(asked.request(FakeNative))
    assert hint in (caught.value.hint or "")
    assert not cudart.leaks


def test_a_device_that_is_lost_while_running_is_a_run_error(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    with FakeNative().compile(asked.request(FakeNative)) as session:
        cudart.fails["cudaStreamSynchronize"] = "cudaErrorDevicesUnavailable"
        session.execute()
        with pytest.raises(RunError, match="cudaStreamSynchronize failed: cudaErrorDevicesUnavailable") as caught:
            session.synchronize()
        assert "dmesg" in (caught.value.hint or "")


def test_an_engine_that_does_not_fit_on_the_device_is_out_of_memory(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    trt.seen.deserializes = False
    trt.seen.deserialize_error = "[defaultAllocator.cpp::allocateAsync::48] Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(OutOfMemory, match=r"cannot be deserialized by 11.4.0.106: .*\(out of memory\)"):
        FakeNative().compile(asked.request(FakeNative))
    assert not cudart.leaks


@pytest.mark.parametrize(("code", "kind"), [(2, OutOfMemory), (35, UnavailableError), (46, UnavailableError)])
def test_a_builder_that_cannot_be_made_says_why(
    code: int, kind: type[HarnessError], trt: FakeTensorRT, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(logger: Any) -> None:
        logger.log(logger.Severity.WARNING, "some warning")
        logger.log(logger.Severity.ERROR, f"CUDA initialization failure with error: {code}. Please check")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", refuse)
    with pytest.raises(kind, match=f"TensorRT cannot be initialised: CUDA initialization failure with error: {code}"):
        FakeNative().compile(asked.request(FakeNative))


def test_an_engine_that_does_not_fit_the_artifact_is_refused_and_freed(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    trt.seen.dtype = np.float16
    with pytest.raises(RunError, match=r"'input' is float16\[1, 4, 4\] in the engine, expected float32\[1, 4, 4\]"):
        FakeNative().compile(asked.request(FakeNative))
    assert not cudart.leaks


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CARD).unlink(), "engine.json is missing"),
        (lambda folder: (folder / PLAN).unlink(), "engine.plan is missing"),
        (lambda folder: (folder / CARD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / PLAN).write_bytes(b"pl"), "expected 4 bytes, got 2"),
        (
            lambda folder: (folder / PLAN).write_bytes(b"nalp"),
            r"cannot be deserialized by 11.4.0.106: wrong magic tag$",
        ),
        (
            lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace("sm_89", "sm_120")),
            r"built for sm_120, and this device is sm_89 \(cuda:0: NVIDIA GeForce RTX 4090\)",
        ),
        (
            lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace("RTX 4090", "RTX 4080")),
            "built on NVIDIA GeForce RTX 4080, and this device is another",
        ),
        (
            lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace("11.4.0", "11.3.0")),
            "built by tensorrt 11.3.0.106, and this is 11.4.0.106",
        ),
        (
            lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace('"tensorrt"', '"other"')),
            "built by other, not by tensorrt",
        ),
    ],
)
def test_a_damaged_or_foreign_engine_is_a_run_error(
    damage: Callable[[Path], object], message: str, trt: FakeTensorRT, asked: Asked
) -> None:
    request = asked.request(FakeNative)
    with FakeNative().compile(request) as session:
        session.save(request.engine_dir)
    damage(request.engine_dir)
    with pytest.raises(RunError, match=message):
        FakeNative().load(request.engine_dir, request)


def test_one_engine_runs_every_batch_of_its_profile(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    request = asked.request(FakeNative, batches=(1, 1))
    request = dataclasses.replace(
        request,
        artifact=make_artifact(asked.root / "four", batch=4),
        dynamic=DynamicShapes(axes={"input": {0: "batch"}}, ranges={"batch": (1, 4)}),
    )
    with FakeNative().compile(request) as session:
        assert session.facts()["profile"] == "batch 1 to 4, tuned for 4"
        session.save(request.engine_dir)
    assert trt.seen.profile is not None and trt.seen.profile._range == ((1, 4, 4), (4, 4, 4))
    for batch in (4, 2, 1):
        point = request.artifact.fed_by(make_artifact(asked.root / "point", batch=batch))
        inputs = point.input_set(0)
        with FakeNative().load(request.engine_dir, dataclasses.replace(request, artifact=point)) as loaded:
            loaded.bind(inputs)
            loaded.execute()
            np.testing.assert_array_equal(loaded.outputs()["output"], 2 * inputs["input"])
    outside = request.artifact.fed_by(make_artifact(asked.root / "point", batch=5))
    with pytest.raises(RunError, match=r"'input' cannot have shape \[5, 4, 4\]: Static dimension mismatch"):
        FakeNative().load(request.engine_dir, dataclasses.replace(request, artifact=outside))
    assert not cudart.leaks


def test_a_profile_that_is_refused_is_a_compile_error(trt: FakeTensorRT, asked: Asked) -> None:
    with pytest.raises(CompileError, match="its range of shapes was refused"):
        FakeNative().compile(asked.request(FakeNative, batches=(2, 1)))


def test_shapes_that_depend_on_an_inputs_values_are_unsupported(trt: FakeTensorRT, asked: Asked) -> None:
    trt.seen.shape_tensor = True
    with pytest.raises(UnsupportedError, match="shapes depend on the values of 'input'"):
        FakeNative().compile(asked.request(FakeNative, batches=(1, 4)))


def test_shapes_that_cannot_be_inferred_are_an_error_with_its_reason(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    trt.seen.shape_error = "/reshape: volume mismatch"
    with pytest.raises(RunError, match="its shapes cannot be inferred: /reshape: volume mismatch"):
        FakeNative().compile(asked.request(FakeNative))
    assert not cudart.leaks


# --- CUDA graphs, layers, progress ------------------------------------------------------------------------------


def test_a_recorded_graph_replays_the_engine_on_what_is_bound(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeNative, cuda_graph=True)
    inputs = request.artifact.input_set(0)["input"]
    with FakeNative().compile(request) as session:
        assert session.facts()["cuda_graph"] is True and trt.seen.enqueues == 0
        session.save(request.engine_dir)
    with FakeNative().load(request.engine_dir, request) as session:
        for run in range(4):
            session.bind({"input": inputs + run})
            session.execute()
            np.testing.assert_array_equal(session.outputs()["output"], 2 * (inputs + run))
            assert cudart.launches == run and trt.seen.enqueues == 2  # one run as usual, one recorded
    assert not cudart.leaks


def test_without_the_option_there_is_no_graph(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    with FakeNative().compile(asked.request(FakeNative)) as session:
        session.bind(asked.request(FakeNative).artifact.input_set(0))
        for _ in range(3):
            session.execute()
        assert "cuda_graph" not in session.facts()
    assert cudart.launches == 0 and trt.seen.enqueues == 3


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_an_engine_that_no_graph_can_hold_is_unsupported(
    function: str, trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeNative, cuda_graph=True)
    with FakeNative().compile(request) as session:
        session.bind(request.artifact.input_set(0))
        cudart.fails[function] = "cudaErrorStreamCaptureInvalidated"
        with pytest.raises(UnsupportedError, match=f"cannot run this engine as a CUDA graph: {function}") as caught:
            session.execute()
        assert caught.value.hint == "leave out cuda_graph=true"
    assert not cudart.leaks


def test_an_enqueue_that_fails_while_it_is_recorded_leaves_no_recording_stream(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeNative, cuda_graph=True)
    with FakeNative().compile(request) as session:
        session.bind(request.artifact.input_set(0))
        trt.seen.unrecordable = "operation not permitted"
        with pytest.raises(UnsupportedError, match="could not enqueue the engine: operation not permitted"):
            session.execute()
        session.synchronize()
    assert not cudart.leaks


def test_a_graph_without_work_is_not_taken_for_one(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked.request(FakeNative, cuda_graph=True)
    with FakeNative().compile(request) as session:
        session.bind(request.artifact.input_set(0))
        monkeypatch.setattr(cudart, "do", lambda work: None)
        with pytest.raises(UnsupportedError, match="the captured graph is empty"):
            session.execute()
    assert not cudart.leaks


def test_a_device_that_fails_while_a_graph_is_recorded_is_not_the_engines_fault(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeNative, cuda_graph=True)
    with FakeNative().compile(request) as session:
        session.bind(request.artifact.input_set(0))
        cudart.fails["cudaGraphInstantiate"] = "cudaErrorDevicesUnavailable"
        with pytest.raises(RunError, match="cudaErrorDevicesUnavailable"):
            session.execute()
        cudart.fails["cudaGraphInstantiate"] = "cudaErrorMemoryAllocation"
        with pytest.raises(OutOfMemory):
            session.execute()
    assert not cudart.leaks


def test_the_layers_lie_beside_the_plan(trt: FakeTensorRT, asked: Asked) -> None:
    trt.seen.layers = [
        {
            "Name": "/conv + /relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Row major Int8 format"}],
            "Outputs": [{"Format/Datatype": "Half"}],
        },
        {"Name": "/fc", "LayerType": "gemm", "Inputs": [], "Outputs": [{"DataType": "Float"}]},
    ]
    request = asked.request(FakeNative)
    with FakeNative().compile(request) as session:
        assert session.facts()["layer_outputs"] == "float16 1, float32 1"
        session.save(request.engine_dir)
    assert trt.config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    kept = json.loads((request.engine_dir / LAYERS).read_text())
    assert kept["schema"] == 1 and kept["layers"][0] == {
        "name": "/conv + /relu",
        "kind": "CaskConvolution",
        "inputs": ["int8"],
        "outputs": ["float16"],
    }
    assert len((request.engine_dir / LAYERS).read_text().splitlines()) == 4  # one a line


def test_layers_are_profiled_in_a_context_of_their_own(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    request = asked.request(FakeNative)
    write_graph(request.artifact.onnx_path)
    with FakeNative().compile(request) as session:
        session.bind(request.artifact.input_set(0))
        enqueues = trt.seen.enqueues
        found, durations_ns = profile(session, iterations=4)
        assert trt.seen.enqueues == enqueues + 5, "one before the profiler looks"
        assert len(durations_ns) == 4
        assert [(one.name, one.nodes, one.calls, one.total_ns) for one in found.operators] == [
            ("/conv + /relu", ("/conv", "/relu"), 4, 4_000),
            ("/fc", ("/fc",), 4, 8_000),
            ("reformat", (), 4, 12_000),
        ]
        session.execute()
        assert [one.calls for one in found.operators] == [4, 4, 4], "the session's own context has no profiler"
    with FakeNative().compile(asked.request(FakeNative, cuda_graph=True)) as session, pytest.raises(UnsupportedError):
        profile(session, iterations=1)


def write_graph(path: Path) -> None:
    """Write a graph whose nodes have the names that the fake engine's layers have."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Identity", ["input"], ["a"], name="/conv"),
        helper.make_node("Relu", ["a"], ["b"], name="/relu"),
        helper.make_node("Identity", ["b"], ["output"], name="/fc"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "toy", values[:1], values[1:])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def test_a_build_reports_its_progress(trt: FakeTensorRT, asked: Asked) -> None:
    FakeNative().compile(asked.request(FakeNative)).close()
    assert asked.progress == [
        ("Building", 0, 2),
        ("Timing 0/3", 0, 2),
        ("Timing 1/3", 0, 2),
        ("Building", 1, 2),
    ]


# --- TensorRT-RTX on fakes -------------------------------------------------------------------------------------


def test_rtx_runs_once_while_compiling_and_keeps_its_kernels(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeRtx)
    with FakeRtx().compile(request) as session:
        assert session.runnable and trt.seen.enqueues == 1
        assert trt.seen.capability is trt.ComputeCapability.SM89 and trt.config.num_compute_capabilities == 1
        config = trt.seen.runtime_config
        assert config is not None and [config._cache] == trt.seen.runtime_caches
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.dynamic_shapes_kernel_specialization_strategy is eager
        assert config.cuda_graph_strategy is trt.CudaGraphStrategy.DISABLED
        assert session.facts()["jit"] == "compiled in this process" and session.placement() == {"cuda": 3}
        session.save(request.engine_dir)
    for content, jit in ((b"kernels", "from a runtime cache of 7 bytes"), (b"foreign", "compiled in this process")):
        (request.engine_dir / RUNTIME_CACHE).write_bytes(content)
        with FakeRtx().load(request.engine_dir, request) as loaded:
            assert loaded.facts()["jit"] == jit
    assert not cudart.leaks


def test_rtx_profiles_with_the_kernels_that_the_session_has(trt: FakeTensorRT, asked: Asked) -> None:
    request = asked.request(FakeRtx)
    write_graph(request.artifact.onnx_path)
    with FakeRtx().compile(request) as session:
        own = trt.seen.runtime_config
        session.bind(request.artifact.input_set(0))
        profile(session, iterations=1)
        other = trt.seen.runtime_config
        assert own is not None and other is not None and own is not other
        # Whatever the first context was given must outlive it.
        assert [own._cache] == [other._cache] == trt.seen.runtime_caches


def test_rtx_kernels_that_cannot_be_kept_cost_no_engine(trt: FakeTensorRT, asked: Asked) -> None:
    request = asked.request(FakeRtx)
    trt.seen.kernels = None
    with FakeRtx().compile(request) as session:
        session.save(request.engine_dir)
    assert not (request.engine_dir / RUNTIME_CACHE).exists()
    with FakeRtx().load(request.engine_dir, request) as loaded:
        assert loaded.facts()["jit"] == "compiled in this process"


def test_rtx_leaves_cuda_graphs_to_tensorrt(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    request = asked.request(FakeRtx, cuda_graph=True)
    with FakeRtx().compile(request) as session:
        assert trt.seen.runtime_config is not None and cudart.launches == 0
        assert trt.seen.runtime_config.cuda_graph_strategy is trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert trt.seen.enqueues == 2  # it records in the second
        assert session.facts()["cuda_graph"] is True


def test_rtx_without_the_graph_that_was_asked_for_is_unsupported(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    trt.seen.graph_warning = "The engine is not graph capturable. Falling back to not using CUDA graphs."
    FakeRtx().compile(asked.request(FakeRtx)).close()
    with pytest.raises(UnsupportedError, match="as a CUDA graph: The engine is not graph capturable") as caught:
        FakeRtx().compile(asked.request(FakeRtx, cuda_graph=True))
    assert caught.value.hint == "leave out cuda_graph=true"
    assert not cudart.leaks


def test_rtx_frees_the_device_when_the_first_run_fails(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    trt.seen.broken = "illegal memory access"
    with pytest.raises(RunError, match="tensorrt-rtx could not enqueue the engine"):
        FakeRtx().compile(asked.request(FakeRtx))
    assert not cudart.leaks


@pytest.mark.parametrize(("device", "target"), [("cuda:0", "sm_120"), ("cuda:0", "sm_89"), ("cpu", None)])
def test_rtx_only_builds_for_a_target_or_without_asking_for_the_device(
    device: str, target: str | None, trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    with FakeRtx().compile(asked.request(FakeRtx, device=device, target=target)) as session:
        assert not session.runnable and cudart.current is None
        assert session.facts()["target"] == (target or "sm_89") and session.placement() is None


def test_rtx_says_why_it_only_builds(trt: FakeTensorRT, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "driver", no_answer)
    for device, target, why in (
        ("cuda:0", None, ": no NVIDIA driver on this machine"),
        ("cuda:0", "sm_89", ""),
        ("cpu", None, ""),
    ):
        with FakeRtx().compile(asked.request(FakeRtx, device=device, target=target)) as session:
            assert session.notes() == [f"built for sm_89; nothing was run{why}"]


def test_rtx_builds_for_no_target_that_it_does_not_have(trt: FakeTensorRT, asked: Asked) -> None:
    with pytest.raises(UnsupportedError, match="cannot build for sm_90 without the device; it builds for sm_75, sm_80"):
        FakeRtx().compile(asked.request(FakeRtx, target="sm_90"))


def test_a_device_that_rtx_has_no_target_for_is_unsupported(
    trt: FakeTensorRT, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = Gpu(index=0, name="NVIDIA H100", target="sm_90")
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(hopper,)))
    with pytest.raises(UnsupportedError, match="tensorrt-rtx cannot build for sm_90; it builds for sm_75, sm_80"):
        FakeRtx().compile(asked.request(FakeRtx))


# --- TensorRT-RTX, built for real ------------------------------------------------------------------------------


def onnx_model(operator: str = "MatMul", domain: str = "", batch: int | str = 1) -> bytes:
    """Return a model of one node, `/toy`, with [batch, 4, 4] in and out; a name for the batch leaves it free."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    names = ["input", "input"] if operator == "MatMul" else ["input"]
    node = helper.make_node(operator, names, ["output"], name="/toy", domain=domain)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, 4, 4)) for name in ("input", "output")]
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph([node], "toy", values[:1], values[1:])
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


@pytest.fixture
def rtx(no_driver: None) -> Any:
    return pytest.importorskip("tensorrt_rtx")


def test_the_table_of_targets_is_tensorrt_rtx_own(rtx: Any) -> None:
    assert set(TARGETS.values()) == set(rtx.ComputeCapability.__members__) - {"NONE", "CURRENT"}


def test_rtx_is_available_without_a_driver_and_says_what_it_cannot_do(rtx: Any) -> None:
    answer = TensorRTRTX.probe()
    assert answer.available and answer.devices == ()
    assert answer.reason == "engines can be built but not run: no NVIDIA driver on this machine"
    assert answer.versions == {"tensorrt_rtx": rtx.__version__}


@pytest.mark.parametrize("target", [None, "sm_89", "sm_120"])
def test_rtx_builds_and_saves_an_engine_without_a_device(target: str | None, rtx: Any, asked: Asked) -> None:
    request = asked.request(TensorRTRTX, onnx_model(), target=target)
    built_for = target or "sm_89"
    with TensorRTRTX().compile(request) as session:
        session.save(request.engine_dir)
        facts = session.facts()
        assert not session.runnable and session.provider == f"TensorRT-RTX {built_for}"
        why = "" if target else ": no NVIDIA driver on this machine"
        assert session.notes() == [f"built for {built_for}; nothing was run{why}"]
        with pytest.raises(UnsupportedError, match=built_for):
            session.execute()
    assert facts["target"] == built_for and facts["tf32"] is False and facts["network_layers"] == 1
    assert facts["plan_bytes"] == (request.engine_dir / PLAN).stat().st_size > 0
    assert asked.stages == ["load", "build"]
    assert not (request.engine_dir / LAYERS).exists()  # the inspector needs an engine that is loaded on its device
    with pytest.raises(RunError, match=f"built for {built_for}: no NVIDIA driver"):
        TensorRTRTX().load(request.engine_dir, request)


def test_rtx_reports_the_steps_of_one_outermost_phase(rtx: Any, asked: Asked) -> None:
    TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model())).close()
    texts, done, totals = zip(*asked.progress, strict=True)
    assert len(set(totals)) == 1 and list(done) == sorted(done)
    assert 0 == done[0] < done[-1] <= totals[0]
    assert any(text[-1].isdigit() for text in texts), "no phase within the outermost was named"


@pytest.mark.parametrize("target", ["sm_89", "sm_120"])
def test_rtx_builds_one_engine_for_a_range_of_batches(target: str, rtx: Any, asked: Asked) -> None:
    request = asked.request(TensorRTRTX, onnx_model(batch="batch"), batches=(1, 4), target=target)
    with TensorRTRTX().compile(request) as session:
        facts = session.facts()
        assert facts["profile"] == "batch 1 to 4, tuned for 4" and facts["specialization"] == "eager"
        assert facts["plan_bytes"] and facts["target"] == target


def test_rtx_says_why_a_range_does_not_fit_the_graph(rtx: Any, asked: Asked) -> None:
    with pytest.raises(CompileError, match="static dimensions that don't match"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(batch=1), batches=(1, 4)))
    with pytest.raises(CompileError, match=r"its range of shapes was refused: .*MIN<=OPT<=MAX"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(batch="batch"), batches=(4, 2)))


def test_every_rtx_option_changes_the_plan(rtx: Any, asked: Asked) -> None:
    plans = {}
    for options in ({}, {"precision": "tf32"}, {"workspace_mb": 64}, {"target": "sm_120"}):  # the last is the request's
        request = asked.request(TensorRTRTX, onnx_model(), **options)
        with TensorRTRTX().compile(request) as session:
            session.save(request.engine_dir)
        plans[str(options)] = (request.engine_dir / PLAN).read_bytes()
    assert len(set(plans.values())) == 4


def test_rtx_names_operators_that_it_lacks(rtx: Any, asked: Asked) -> None:
    with pytest.raises(UnsupportedError, match=r"'toy' \(fp32, sm_89\): no converter for 'Frobnicate' at /toy"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model("Frobnicate", "my.domain")))
    with pytest.raises(UnsupportedError, match="no converter for 'Det' at /toy"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model("Det")))


@pytest.mark.parametrize("onnx", [b"\x93\xff" * 500, b""])
def test_rtx_refuses_a_damaged_file(onnx: bytes, rtx: Any, asked: Asked) -> None:
    with pytest.raises(CompileError, match=r"cannot be parsed|has no outputs") as caught:
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx))
    assert caught.value.hint == "export it again: harness cache clear --exports"


def test_a_target_that_lacks_an_operation_is_unsupported(rtx: Any, asked: Asked) -> None:
    with pytest.raises(UnsupportedError, match=r"\(fp32, sm_75\).*FP32 GEMM is not supported\)$"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(), target="sm_75"))


def test_what_progress_raises_ends_the_build_and_comes_out(rtx: Any, asked: Asked) -> None:
    steps = []

    def report(*step: object) -> None:
        steps.append(step)
        raise BrokenPipeError("the parent is gone")

    with pytest.raises(BrokenPipeError, match="the parent is gone"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(), report=report))
    assert len(steps) < 10  # a whole build has dozens


def test_errors_of_one_build_do_not_leak_into_the_next(rtx: Any, asked: Asked) -> None:
    with pytest.raises(CompileError):
        TensorRTRTX().compile(asked.request(TensorRTRTX, b"\x93\xff" * 500))
    with pytest.raises(UnsupportedError) as caught:
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(), target="sm_75"))
    assert "ParseFromCodedStream" not in caught.value.message
