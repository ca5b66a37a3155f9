"""ONNX Runtime: options, real sessions on the CPU, sessions on a pretended device, and what may be missing."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from backends import cuda_device, onnxruntime_libraries
from backends.cuda_device import Driver
from backends.onnxruntime import OnnxRuntime
from backends.onnxruntime_libraries import failure, missing_library, plain
from backends.onnxruntime_providers import CPU, CUDA, ENGINES, PROVIDERS, RTX, TENSORRT, OnnxRuntimeOptions
from backends.onnxruntime_session import CARD, GRAPH, DeviceSession, EngineCard, HostSession, copies_in
from harness.artifact import Artifact
from harness.errors import (
    CompileError,
    FallbackError,
    OutOfMemory,
    RunError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from harness.precisions import PRECISIONS
from tests.fake_cuda import ADA, FakeCudart
from tests.fake_onnxruntime import FakeRuntime, graph, insert_copies, made
from tests.fake_tensorrt import Asked

COUNTS = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
"""From 1.24 on it says where its nodes run."""
DOUBLED = 2 * np.arange(16, dtype=np.float32).reshape(1, 4, 4)
HOST_NOTE = "onnxruntime: nodes on the CPU: 1 Det; copies between host and device in every run: 2; a warm load opt"


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    """An RTX 4090 whose memory is the host's."""
    fake = FakeCudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(ADA,)))
    return fake


@pytest.fixture
def runtime(cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(DeviceSession, "device_type", "cpu")  # the real session beneath is there
    monkeypatch.setattr(onnxruntime_libraries, "_load_tensorrt", lambda: None)
    monkeypatch.setattr("backends.onnxruntime_opening.library_facts", libraries)
    return fake


def libraries(provider: Any) -> dict[str, str]:
    return {"tensorrt": "10.16.1", "cudnn": "9.20.0"} if provider.full_name == TENSORRT else {"cudnn": "9.20.0"}


def nonzero() -> bytes:
    """Return a graph whose output is as large as values decide."""
    node = helper.make_node("NonZero", ["input"], ["output"], name="nonzero")
    return made([node], [("input", [1, 4, 4])], [("output", [3, "found"])], [], TensorProto.INT64)


def run(session: Any, artifact: Artifact) -> np.ndarray:
    session.bind(artifact.input_set(0))
    session.execute()
    session.synchronize()
    output: np.ndarray = session.outputs()["output"]
    return output


# --- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"provider": "cpu", "cuda_graph": True},
            "cuda_graph is an option of provider cuda, tensorrt, nv",
        ),
        ({"provider": "tensorrt", "cudnn_search": "heuristic"}, "cudnn_search is an option of provider cuda"),
        (
            {"provider": "cuda", "builder_optimization_level": 0},
            "builder_optimization_level is an option of provider t",
        ),
        ({"builder_optimization_level": 5}, "builder_optimization_level is an option of provider tensorrt"),
        ({"provider": "nv-tensorrt-rtx", "cudnn_search": "default"}, "cudnn_search is an option of provider cuda"),
    ],
)
def test_an_option_of_another_provider_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=f"onnxruntime: {reason}") as caught:
        OnnxRuntime.check(OnnxRuntimeOptions(**options))
    assert caught.value.hint and caught.value.hint.startswith("leave out ")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"provider": "cpu", "cuda_graph": False},
        {"cuda_graph": True, "cudnn_search": "default"},
        {"provider": "tensorrt", "builder_optimization_level": 0},
        {"provider": "nv-tensorrt-rtx", "cuda_graph": True},
    ],
)
def test_options_of_the_provider_are_taken(options: dict[str, Any]) -> None:
    OnnxRuntime.check(OnnxRuntimeOptions(**options))


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        ({"provider": "cpu"}, "cuda:0", "provider=cpu runs on cpu, and this case on cuda:0"),
        ({"provider": "tensorrt"}, "cpu", "provider=tensorrt runs on cuda, and this case on cpu"),
        ({"level": "basic", "precision": "int8"}, "cpu", "level=basic leaves quantised products in float32"),
        ({"cuda_graph": True}, "cpu", r"cuda_graph is an option of provider cuda.*; this case runs on cpu"),
    ],
)
def test_a_provider_of_another_device_is_unsupported(
    asked: Asked, options: dict[str, Any], device: str, reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), device=device, **options))


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ({}, {}),
        ({"provider": "cuda"}, {}),
        ({"provider": "tensorrt"}, {"NVIDIA_TF32_OVERRIDE": "0"}),
        ({"provider": "tensorrt", "precision": "fp16"}, {"NVIDIA_TF32_OVERRIDE": "0"}),
        ({"provider": "tensorrt", "precision": "tf32"}, {}),
        ({"provider": "nv-tensorrt-rtx"}, {"NVIDIA_TF32_OVERRIDE": "0"}),
    ],
)
def test_fp32_means_fp32_also_where_only_the_environment_can_say_so(
    options: dict[str, Any], variables: dict[str, str]
) -> None:
    assert OnnxRuntime.environment(OnnxRuntimeOptions(**options), Path(), 1) == variables


@pytest.mark.parametrize(
    ("provider", "device", "precision", "able"),
    [
        ("cpu", "cpu", "fp16", None),
        ("cuda", "cuda:0", "int8", "tensorrt"),
        ("tensorrt", "cuda:0", "fp8", "nv-tensorrt-rtx"),
    ],
)
def test_a_provider_that_would_only_seem_to_compute_in_a_precision_is_unsupported(
    asked: Asked, provider: str, device: str, precision: str, able: str | None
) -> None:
    request = asked.request(OnnxRuntime, graph(), device=device, precision=precision, provider=provider)
    with pytest.raises(
        UnsupportedError, match=f"provider {provider} does not compute in {precision}; it has fp32"
    ) as got:
        OnnxRuntime().compile(request)
    assert got.value.hint == (able and f"choose another: provider={able}")


def test_precisions_of_a_device_are_those_of_its_providers() -> None:
    capabilities = OnnxRuntime.capabilities
    assert capabilities.precisions_on("cpu") == ("fp32", "int8")
    assert capabilities.precisions_on("cuda") == PRECISIONS


# --- real sessions on the CPU ----------------------------------------------------------------------------------


def test_a_session_on_the_cpu_counts_its_nodes_and_keeps_its_buffers(asked: Asked) -> None:
    request = asked.request(OnnxRuntime, graph(host=True), device="cpu")
    session = OnnxRuntime().compile(request)
    assert isinstance(session, HostSession) and asked.stages == ["build"]
    assert (session.provider, session.placement()) == (CPU, {"cpu": 5} if COUNTS else None)
    assert (session.facts(), session.notes(), session.stream) == ({}, [], None)
    addresses = [value.data_ptr() for value in (*session._inputs.values(), *session._binding.get_outputs())]
    first = run(session, request.artifact)
    np.testing.assert_array_equal(first, DOUBLED)  # the determinant is zero
    session.bind({"input": -np.ones((1, 4, 4), np.float32)})
    session.execute()
    assert not session.outputs()["output"].any()
    np.testing.assert_array_equal(first, DOUBLED)  # the first run's outputs are their owner's
    assert addresses == [value.data_ptr() for value in (*session._inputs.values(), *session._binding.get_outputs())]


def test_an_optimised_graph_is_loaded_as_it_is(asked: Asked) -> None:
    request = asked.request(OnnxRuntime, graph(), device="cpu")
    session = OnnxRuntime().compile(request)
    session.save(request.engine_dir)
    session.close()
    (request.artifact.folder / "model.onnx").unlink()  # a warm start does not look at it
    loaded = OnnxRuntime().load(request.engine_dir, request)
    np.testing.assert_array_equal(run(loaded, request.artifact), DOUBLED)
    assert set(loaded.placement() or ()) == ({"cpu"} if COUNTS else set())


def test_an_output_whose_shape_depends_on_the_data_has_no_fixed_buffer(asked: Asked) -> None:
    request = asked.request(OnnxRuntime, nonzero(), device="cpu")
    session = OnnxRuntime().compile(request)
    assert run(session, request.artifact).shape == (3, 15)
    session.bind({"input": np.ones((1, 4, 4), np.float32)})
    session.execute()
    assert session.outputs()["output"].shape == (3, 16)


def test_free_dimensions_of_the_inputs_fix_the_outputs(asked: Asked) -> None:
    request = asked.request(OnnxRuntime, graph(free=True), device="cpu", batches=(1, 3))
    session = OnnxRuntime().compile(request)
    address = session._binding.get_outputs()[0].data_ptr()
    np.testing.assert_array_equal(run(session, request.artifact), DOUBLED)
    assert session._binding.get_outputs()[0].data_ptr() == address


def test_a_quantised_graph_is_computed_in_int8(asked: Asked, tmp_path: Path) -> None:
    request = asked.request(OnnxRuntime, quantised(), device="cpu", precision="int8")
    session = OnnxRuntime().compile(request)
    output = run(session, request.artifact)
    np.testing.assert_allclose(output, request.artifact.input_set(0)["input"], atol=0.06)
    session.save(request.engine_dir)
    loaded = OnnxRuntime().load(request.engine_dir, request)
    np.testing.assert_array_equal(run(loaded, request.artifact), output)
    if COUNTS:
        assert "MatMulIntegerToFloat" in loaded._assigned[CPU] or "QLinearMatMul" in loaded._assigned[CPU]


def quantised() -> bytes:
    """Return a product with the unit matrix between QuantizeLinear and DequantizeLinear."""
    unit = np.eye(4, dtype=np.int8)
    constants = [
        numpy_helper.from_array(np.array(0.12, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
        numpy_helper.from_array(unit, "unit"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
        helper.make_node("DequantizeLinear", ["unit", "one", "zero"], ["weight"], name="weight"),
        helper.make_node("MatMul", ["dq", "weight"], ["product"], name="product"),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["qy"], name="qy"),
        helper.make_node("DequantizeLinear", ["qy", "scale", "zero"], ["output"], name="dqy"),
    ]
    return made(nodes, [("input", [1, 4, 4])], [("output", [1, 4, 4])], constants)


def test_a_type_without_a_kernel_is_unsupported(asked: Asked) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["narrow"], to=TensorProto.BFLOAT16, name="narrow"),
        helper.make_node("MaxPool", ["narrow"], ["pooled"], kernel_shape=[1], name="pool"),
        helper.make_node("Cast", ["pooled"], ["output"], to=TensorProto.FLOAT, name="wide"),
    ]
    pooled = made(nodes, [("input", [1, 4, 4])], [("output", [1, 4, 4])], [], opset=22)
    with pytest.raises(UnsupportedError, match="Could not find an implementation for MaxPool") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, pooled, device="cpu"))
    assert caught.value.hint == "leave this backend out, or choose another provider or precision"


def test_a_run_that_fails_is_an_error_of_ours(asked: Asked) -> None:
    request = asked.request(OnnxRuntime, graph(), device="cpu")
    session = OnnxRuntime().compile(request)
    session._binding.clear_binding_inputs()
    with pytest.raises(RunError, match=r"^(?!.*ONNXRuntimeError).*[Ii]nput"):
        session.execute()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / CARD).unlink(), "no finished engine in .*: engine.json is missing"),
        (lambda folder: (folder / GRAPH).unlink(), "no finished engine in .*: model.onnx is missing"),
        (lambda folder: (folder / CARD).write_text("{"), "cannot be read"),
        (lambda folder: altered(folder, version="1.2.3"), r"built for version 1\.2\.3, and this is"),
        (
            lambda folder: altered(folder, device="NVIDIA L4 (sm_89)"),
            r"built for device NVIDIA L4 \(sm_89\), and this is cpu",
        ),
        (lambda folder: altered(folder, provider=CUDA), "built for provider CUDAExecutionProvider, and this is CPU"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(asked: Asked, change: Any, reason: str) -> None:
    request = asked.request(OnnxRuntime, graph(), device="cpu")
    OnnxRuntime().compile(request).save(request.engine_dir)
    change(request.engine_dir)
    with pytest.raises(RunError, match=reason) as caught:
        OnnxRuntime().load(request.engine_dir, request)
    assert caught.value.hint == "compile it again"


def altered(folder: Path, **changes: str) -> None:
    card = msgspec.json.decode((folder / CARD).read_bytes(), type=EngineCard)
    msgspec.structs.replace(card, **changes).write(folder)


def test_copies_are_counted_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / GRAPH
    path.write_bytes(graph(host=True))
    assert copies_in(path) == 0
    insert_copies(path)
    assert copies_in(path) == 2


def test_a_version_that_cannot_say_where_nodes_run_has_no_placement(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    if COUNTS:
        monkeypatch.delattr(
            "onnxruntime.capi.onnxruntime_inference_collection.Session.get_provider_graph_assignment_info"
        )
    session = OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), device="cpu"))
    assert session.placement() is None


# --- a pretended device ----------------------------------------------------------------------------------------


def test_cuda_is_told_its_device_its_stream_and_no_tf32(asked: Asked, runtime: FakeRuntime, cudart: FakeCudart) -> None:
    request = asked.request(OnnxRuntime, graph())
    session = OnnxRuntime().compile(request)
    (made_with,) = runtime.sessions
    assert made_with.told == {
        CUDA: {
            "device_id": "0",
            "user_compute_stream": "77",
            "use_tf32": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "enable_cuda_graph": "0",
        }
    }
    assert (asked.stages, runtime.preloads) == (["load", "build"], 1)
    assert (session.provider, session.stream, session.placement()) == (CUDA, 77, {"cuda": 2})
    assert session.facts() == {
        "tf32": False,
        "cuda_graph": False,
        "cudnn_search": "exhaustive",
        "cudnn": "9.20.0",
        "host_copies": 0,
    }
    assert session.notes() == []


def test_inputs_and_outputs_stay_on_the_device_between_runs(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    request = asked.request(OnnxRuntime, graph())
    session = OnnxRuntime().compile(request)
    assert (len(cudart.blocks), len(cudart.pinned)) == (2, 2)
    first = run(session, request.artifact)
    np.testing.assert_array_equal(first, DOUBLED)
    assert not run(session, replaced(request.artifact, -1.0)).any()
    np.testing.assert_array_equal(first, DOUBLED)
    waits = cudart.waits
    session.execute()
    assert cudart.waits == waits and runtime.sessions[0].runs == [True, True, True]
    session.synchronize()
    assert cudart.waits == waits + 1
    assert (len(cudart.blocks), len(cudart.pinned), cudart.pageable) == (2, 2, 0)
    session.close()
    assert not cudart.leaks


def replaced(artifact: Artifact, value: float) -> Any:
    return SimpleNamespace(input_set=lambda index: {"input": np.full((1, 4, 4), value, np.float32)})


def test_an_optimised_graph_of_cuda_is_loaded_as_it_is(asked: Asked, runtime: FakeRuntime, cudart: FakeCudart) -> None:
    request = asked.request(OnnxRuntime, graph(), precision="tf32", cudnn_search="heuristic", cuda_graph=True)
    session = OnnxRuntime().compile(request)
    session.save(request.engine_dir)
    session.close()
    loaded = OnnxRuntime().load(request.engine_dir, request)
    np.testing.assert_array_equal(run(loaded, request.artifact), DOUBLED)
    compiled, again = runtime.sessions
    assert (
        again.told == compiled.told
        and compiled.told[CUDA]["use_tf32"] == compiled.told[CUDA]["enable_cuda_graph"] == "1"
    )
    assert again.path == request.engine_dir / GRAPH
    assert again.settings.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert loaded.facts()["tf32"] is True and loaded.facts()["cudnn_search"] == "heuristic"
    loaded.close()
    assert not cudart.leaks


def test_nodes_on_the_cpu_are_counted_with_what_is_copied_for_them(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    request = asked.request(OnnxRuntime, graph(host=True))
    session = OnnxRuntime().compile(request)
    assert session.placement() == {"cuda": 4, "cpu": 1}
    assert session.facts()["host_copies"] == 2
    (note,) = session.notes()
    assert note.startswith(HOST_NOTE)
    session.save(request.engine_dir)
    assert not (request.engine_dir / GRAPH).exists()  # with copies in it, it could not be loaded
    loaded = OnnxRuntime().load(request.engine_dir, request)
    assert runtime.sessions[1].path == request.artifact.onnx_path
    assert runtime.sessions[1].settings.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert (loaded.placement(), loaded.notes()) == ({"cuda": 4, "cpu": 1}, [note])


def test_nodes_on_the_cpu_without_copies_are_told_apart(
    asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fake_onnxruntime.insert_copies", lambda path: None)
    session = OnnxRuntime().compile(asked.request(OnnxRuntime, graph(host=True)))
    (note,) = session.notes()
    assert note.endswith("1 Det; nothing is copied between host and device for them, as where shapes are computed.")


def test_a_tensor_that_the_host_reads_or_writes_is_bound_there(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    runtime.in_host_memory = {"input"}
    request = asked.request(OnnxRuntime, graph())
    session = OnnxRuntime().compile(request)
    assert (len(cudart.blocks), len(cudart.pinned)) == (1, 2)
    np.testing.assert_array_equal(run(session, request.artifact), DOUBLED)


def test_a_cuda_graph_that_would_replay_a_host_tensor_is_unsupported(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    runtime.in_host_memory = {"input", "output"}
    with pytest.raises(UnsupportedError, match="nodes on the CPU use input, output, and a replay would not run them"):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), cuda_graph=True))
    assert not cudart.leaks


def test_a_cuda_graph_with_an_output_of_unknown_size_is_unsupported(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    request = asked.request(OnnxRuntime, nonzero(), cuda_graph=True)
    with pytest.raises(UnsupportedError, match="the size of output is not known before a run"):
        OnnxRuntime().compile(request)
    assert not cudart.leaks


@pytest.mark.parametrize("provider", [None, "tensorrt", "nv-tensorrt-rtx"])
def test_a_cuda_graph_for_a_sweep_is_unsupported(asked: Asked, runtime: FakeRuntime, provider: str | None) -> None:
    request = asked.request(OnnxRuntime, graph(free=True), batches=(1, 3), cuda_graph=True, provider=provider)
    with pytest.raises(UnsupportedError, match="a CUDA graph replays one shape") as caught:
        OnnxRuntime().compile(request)
    assert caught.value.hint == "leave out cuda_graph or dynamic" and not runtime.sessions


def test_a_data_dependent_output_is_fetched_from_where_onnx_runtime_put_it(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    request = asked.request(OnnxRuntime, nonzero())
    session = OnnxRuntime().compile(request)
    assert run(session, request.artifact).shape == (3, 15)
    assert len(cudart.blocks) == 1


def test_a_device_without_memory_for_the_buffers_is_given_back(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart
) -> None:
    cudart.free = 8
    with pytest.raises(OutOfMemory, match="cudaMalloc failed"):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert not cudart.leaks


def test_what_onnx_runtime_raises_gives_the_device_back(asked: Asked, runtime: FakeRuntime, cudart: FakeCudart) -> None:
    runtime.raises = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : on purpose")
    with pytest.raises(CompileError, match=r"^on purpose$"):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert not cudart.leaks


# --- TensorRT, and its plug-in for RTX -------------------------------------------------------------------------


def test_tensorrt_keeps_engines_beside_the_card_and_timings_with_the_device(
    asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    request = asked.request(OnnxRuntime, graph(), provider="tensorrt", builder_optimization_level=5, cuda_graph=True)
    session = OnnxRuntime().compile(request)
    told = runtime.sessions[0].told
    timings = request.cache_dir / "timing-10.16.1-sm_89-NVIDIA-GeForce-RTX-4090"
    assert list(told) == [TENSORRT, CUDA]
    assert told[TENSORRT] == {
        "device_id": "0",
        "user_compute_stream": "77",
        "trt_fp16_enable": "False",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(request.engine_dir / ENGINES),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
        "trt_builder_optimization_level": "5",
        "trt_cuda_graph_enable": "True",
    }
    assert (told[CUDA]["user_compute_stream"], told[CUDA]["use_tf32"], told[CUDA]["enable_cuda_graph"]) == (
        "77",
        "0",
        "0",
    )
    assert not runtime.sessions[0].settings.optimized_model_filepath  # compiled nodes cannot be written as ONNX
    assert session.provider == TENSORRT and session.placement() == {"cuda": 2}
    assert session.facts() == {
        "tf32": False,
        "cuda_graph": True,
        "builder_optimization_level": 5,
        "tensorrt": "10.16.1",
        "cudnn": "9.20.0",
        "engines": 0,
        "timing_cache": "cold",
    }
    (timings / "some.timing").touch()
    assert OnnxRuntime().compile(request).facts()["timing_cache"] == "warm"


def test_tensorrt_that_builds_anew_at_a_warm_start_says_so(
    asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked.request(OnnxRuntime, graph(), provider="tensorrt")
    session = OnnxRuntime().compile(request)
    session.save(request.engine_dir)
    assert OnnxRuntime().load(request.engine_dir, request).notes() == []
    assert runtime.sessions[1].path == request.artifact.onnx_path
    make = runtime.make_session

    def building(*arguments: Any, **rest: Any) -> Any:
        (request.engine_dir / ENGINES / "other.engine").touch()
        return make(*arguments, **rest)

    monkeypatch.setattr(runtime, "make_session", building)
    (note,) = OnnxRuntime().load(request.engine_dir, request).notes()
    assert note == "onnxruntime: a warm start built 1 TensorRT engines anew, its cache did not fit."


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_tensorrt_may_compute_in_what_the_graph_says(asked: Asked, runtime: FakeRuntime, precision: str) -> None:
    OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), provider="tensorrt", precision=precision))
    told = runtime.sessions[0].told[TENSORRT]
    allowed = {key for key, value in told.items() if value == "True" and key.count("_") == 2 and "cache" not in key}
    assert allowed == {f"trt_{precision}_enable"}


def test_tensorrt_is_given_the_shapes_of_a_sweep(asked: Asked, runtime: FakeRuntime) -> None:
    OnnxRuntime().compile(asked.request(OnnxRuntime, graph(free=True), provider="tensorrt", batches=(1, 3)))
    told = runtime.sessions[0].told[TENSORRT]
    assert told["trt_profile_min_shapes"] == "input:1x4x4"
    assert told["trt_profile_opt_shapes"] == told["trt_profile_max_shapes"] == "input:3x4x4"


def test_tensorrt_that_was_given_no_node_is_a_fallback(asked: Asked, runtime: FakeRuntime, cudart: FakeCudart) -> None:
    runtime.takes[TENSORRT] = set()
    with pytest.raises(FallbackError, match=f"asked for {TENSORRT}, and it was given no node: 2 to {CUDA}"):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), provider="tensorrt"))
    assert not cudart.leaks


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's package, with a library that does not exist."""
    package: Any = importlib.util.module_from_spec(
        importlib.machinery.ModuleSpec("onnxruntime_ep_nv_tensorrt_rtx", None)
    )
    package.get_library_path = lambda: "/nowhere/libonnxruntime_providers_nv_tensorrt_rtx.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", package)
    monkeypatch.setattr(onnxruntime_libraries, "installed", lambda name: "0.5.0")


def test_the_rtx_plugin_is_registered_and_writes_a_context(
    asked: Asked, runtime: FakeRuntime, cudart: FakeCudart, plugin: None
) -> None:
    runtime.built = [CPU]  # the plug-in goes with the build for the CPU
    request = asked.request(OnnxRuntime, graph(), provider="nv-tensorrt-rtx")
    session = OnnxRuntime().compile(request)
    seen = runtime.sessions[0]
    assert runtime.registered == [(RTX, "/nowhere/libonnxruntime_providers_nv_tensorrt_rtx.so")]
    assert seen.told == {
        RTX: {
            "has_user_compute_stream": "1",
            "user_compute_stream": "77",
            "enable_cuda_graph": "0",
            "nv_runtime_cache_path": str(request.engine_dir / "runtime"),
        }
    }
    assert seen.settings.get_session_config_entry("ep.context_enable") == "1"
    assert seen.context == request.engine_dir / GRAPH
    assert runtime.preloads == 0 and session.provider == RTX
    np.testing.assert_array_equal(run(session, request.artifact), DOUBLED)
    session.save(request.engine_dir)
    session.close()
    loaded = OnnxRuntime().load(request.engine_dir, request)
    assert runtime.sessions[1].path == request.engine_dir / GRAPH and runtime.sessions[1].context is None
    np.testing.assert_array_equal(run(loaded, request.artifact), DOUBLED)


def test_the_plugins_own_cuda_runtime_is_there_before_the_plugin(
    runtime: FakeRuntime, plugin: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only its full name lies in the package, so that a machine without a CUDA toolkit would not find it.
    (tmp_path / "libcudart.so.13.4.36").touch()
    package = sys.modules["onnxruntime_ep_nv_tensorrt_rtx"]
    monkeypatch.setattr(package, "get_library_path", lambda: str(tmp_path / "plugin.so"))
    loaded: list[str] = []

    def load(path: str) -> None:
        assert not runtime.registered
        loaded.append(path)

    monkeypatch.setattr("backends.onnxruntime_libraries.ctypes.CDLL", load)
    onnxruntime_libraries.ep_device(runtime, 0)
    assert loaded == [str(tmp_path / "libcudart.so.13.4.36")] and runtime.registered


@pytest.mark.parametrize(
    ("devices", "index", "found"),
    [
        ([{}], 0, 0),
        ([{}], 1, None),
        ([], 0, None),
        ([{}, {}], 0, None),
        ([{"device_id": "1"}, {"device_id": "0"}], 0, 1),
        ([{"device_id": "1"}, {"device_id": "0"}], 1, 0),
    ],
)
def test_the_plugin_device_of_a_number_is_known_or_refused(
    runtime: FakeRuntime, plugin: None, devices: list[dict[str, str]], index: int, found: int | None
) -> None:
    others = [SimpleNamespace(ep_name=CPU, ep_options={}, ep_metadata={})]
    offered = [SimpleNamespace(ep_name=RTX, ep_options=options, ep_metadata={}) for options in devices]
    runtime.ep_devices = [*others, *offered]
    if found is None:
        with pytest.raises(UnavailableError, match=f"{RTX} offers no device {index}"):
            onnxruntime_libraries.ep_device(runtime, index)
    else:
        assert onnxruntime_libraries.ep_device(runtime, index) is offered[found]


def test_the_plugin_has_fixed_shapes_only(asked: Asked, runtime: FakeRuntime) -> None:
    request = asked.request(OnnxRuntime, graph(free=True), provider="nv-tensorrt-rtx", batches=(1, 3))
    with pytest.raises(UnsupportedError, match="for fixed shapes") as caught:
        OnnxRuntime().compile(request)
    assert caught.value.hint == "use the backend tensorrt-rtx"


# --- what is missing, with the real runtime --------------------------------------------------------------------


def test_a_build_without_cuda_is_unavailable(asked: Asked, cudart: FakeCudart) -> None:
    with pytest.raises(UnavailableError, match="this build of onnxruntime has no CUDAExecutionProvider") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert "harness[onnxruntime-gpu]" in (caught.value.hint or "")


def test_cuda_that_becomes_the_cpu_is_a_fallback_with_the_missing_library(
    asked: Asked, cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real runtime of the CPU, which takes CUDA as an order, warns, and runs on the CPU.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(
            FallbackError, match=rf"asked for {CUDA}, ONNX Runtime runs {CPU}: .*_providers_cuda\.so: cannot"
        ) as got,
    ):
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert "harness[onnxruntime-gpu]" in (got.value.hint or "") and not cudart.leaks


def test_tensorrt_without_its_libraries_is_unavailable(
    asked: Asked, cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, *_: Any) -> Any:
        raise OSError(f"{Path(name).name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ctypes, "CDLL", missing)
    request = asked.request(OnnxRuntime, graph(), provider="tensorrt")
    monkeypatch.setattr(onnxruntime_libraries, "installed", lambda name: None)
    with pytest.raises(UnavailableError, match=r"needs TensorRT 10: libnvinfer\.so\.10: cannot open") as caught:
        OnnxRuntime().compile(request)
    assert (caught.value.hint or "").startswith("pip install 'harness[onnxruntime-tensorrt]'")
    monkeypatch.setattr(onnxruntime_libraries, "installed", lambda name: "11.4.0.106")
    with pytest.raises(
        UnavailableError, match=r"TensorRT 11\.4\.0\.106, which is installed here, does not serve it"
    ) as caught:
        OnnxRuntime().compile(request)
    assert (caught.value.hint or "").startswith("in an environment of its own: ")


def test_tensorrt_is_loaded_from_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "libnvinfer.so.10").touch()
    monkeypatch.syspath_prepend(tmp_path)
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name))
    onnxruntime_libraries._load_tensorrt()
    assert loaded == [str(folder / "libnvinfer.so.10"), "libnvonnxparser.so.10"]


def test_an_rtx_plugin_that_cannot_be_loaded_is_unavailable(asked: Asked, cudart: FakeCudart, plugin: None) -> None:
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        pytest.skip("this version has no plug-ins")
    with pytest.raises(UnavailableError, match=r"rtx cannot be loaded: .*/nowhere/lib.*rtx\.so: cannot open") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), provider="nv-tensorrt-rtx"))
    assert "ONNXRuntimeError" not in caught.value.message and not cudart.leaks


def test_an_rtx_plugin_that_is_not_installed_is_unavailable(asked: Asked, cudart: FakeCudart) -> None:
    with pytest.raises(UnavailableError, match="onnxruntime-ep-nv-tensorrt-rtx is not installed") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph(), provider="nv-tensorrt-rtx"))
    assert caught.value.hint == "pip install 'harness[onnxruntime-rtx]'"


def test_a_driver_that_is_too_old_is_unavailable(
    asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(12, 8), gpus=(ADA,)))
    with pytest.raises(UnavailableError, match=r"it serves CUDA 12\.8, onnxruntime-gpu [\d.]+ needs CUDA 13") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert "r580" in (caught.value.hint or "")


def test_without_nvidias_bindings_there_is_no_device(
    asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="cuda-bindings, which moves data") as caught:
        OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert caught.value.hint == "pip install cuda-bindings"


def test_a_missing_cudnn_is_said(asked: Asked, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.onnxruntime_opening.library_facts", lambda provider: {"cudnn": "missing"})
    session = OnnxRuntime().compile(asked.request(OnnxRuntime, graph()))
    assert session.notes() == [
        "onnxruntime: cuDNN 9 was not found, and convolutions run without it: pip install 'harness[onnxruntime-gpu]'."
    ]


def test_versions_of_the_libraries_beneath_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "libnvinfer.so.10": SimpleNamespace(getInferLibVersion=lambda: 101611),
        "libcudnn.so.9": SimpleNamespace(cudnnGetVersion=lambda: 92000),
    }
    known["libcudnn.so.9"].cudnnGetVersion = type("F", (), {"__call__": lambda self: 92000})()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: known[name])
    facts = onnxruntime_libraries.library_facts(PROVIDERS["tensorrt"])
    assert facts == {"tensorrt": "10.16.11", "cudnn": "9.20.0"}
    assert onnxruntime_libraries.library_facts(PROVIDERS["nv-tensorrt-rtx"]) == {}


def test_a_library_that_loads_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: None)
    assert missing_library(PROVIDERS["cuda"], onnxruntime) == ""
    assert missing_library(PROVIDERS["nv-tensorrt-rtx"], onnxruntime) == ""


SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, Status> "
TOLD = {  # as ONNX Runtime 1.31.1 for CUDA 13 wrote them; what a capture ends with is put in the same form
    f"{SOURCE}{SOURCE}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; "
    "hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); ": (
        CompileError,
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version "
        "(cudaSetDevice(info_.device_id))",
    ),
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::"
    "CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions(const onnxruntime::"
    "ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:182 Parse Unknown provider option: "
    '"nonsense".\n': (
        CompileError,
        'provider_options_utils.h:182 Parse Unknown provider option: "nonsense".',
    ),
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user  as "
    "all compute graph nodes have not been partitioned to the CUDAExecutionProvider": (
        UnsupportedError,
        "no CUDA graph can be recorded: all compute graph nodes have not been partitioned to the CUDAExecutionProvider",
    ),
    f"{SOURCE}CUDA failure 900: operation not permitted when stream is capturing ; GPU=0 ; hostname=box ; "
    "file=/onnxruntime/core/providers/cuda/tensor/nonzero_op.cc ; line=92 ; expr=cudaStreamSynchronize(stream); ": (
        UnsupportedError,
        "a CUDA graph cannot hold this model: CUDA failure 900: operation not permitted when stream is capturing "
        "(cudaStreamSynchronize(stream))",
    ),
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: bfc_arena.cc:376 void* Allocate"
    "RawInternal(size_t) Failed to allocate memory for requested buffer of size 1073741824": (
        OutOfMemory,
        "Exception during initialization: bfc_arena.cc:376 void* AllocateRawInternal(size_t) Failed to allocate "
        "memory for requested buffer of size 1073741824",
    ),
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but "
    "fallback to CPU EP has been explicitly disabled by the user.": (
        FallbackError,
        "ONNX Runtime would run nodes on the CPU: This session contains graph nodes that are assigned to the "
        "default CPU EP, but fallback to CPU EP has been explicitly disabled by the user.",
    ),
}


@pytest.mark.parametrize(("text", "told"), TOLD.items())
def test_errors_are_told_without_the_code_that_raised_them(text: str, told: tuple[type[Exception], str]) -> None:
    error = failure(RuntimeError(text), CompileError)
    assert (type(error), error.message) == told


def test_an_error_without_a_text_is_named() -> None:
    assert plain(ValueError()) == "ValueError"


# --- probes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Pretended distributions."""
    found: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    return found


def test_a_probe_without_a_driver(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]) -> None:
    def none() -> Driver:
        raise UnavailableError("no NVIDIA driver on this machine", hint="install it")

    monkeypatch.setattr(cuda_device, "driver", none)
    found = OnnxRuntime.probe()
    assert (found.available, found.devices) == (True, ("cpu",))
    assert (found.reason, found.hint) == ("runs on the CPU only: no NVIDIA driver on this machine", "install it")
    assert dict(found.versions) == {"onnxruntime": onnxruntime.__version__}


def test_a_probe_beside_a_gpu(cudart: FakeCudart, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]) -> None:
    found = OnnxRuntime.probe()
    assert (found.devices, found.reason) == (("cpu",), "this build of onnxruntime is for the CPU only")
    assert "harness[onnxruntime-gpu]" in (found.hint or "")
    packages["onnxruntime-ep-nv-tensorrt-rtx-cu13"] = "0.5.0"
    found = OnnxRuntime.probe()
    assert (found.devices, found.reason) == (("cpu", "cuda:0"), None)
    assert found.versions["onnxruntime-ep-nv-tensorrt-rtx"] == "0.5.0"
    packages.clear()
    packages["tensorrt-cu13"] = "10.16.1.11"
    assert "tensorrt" not in OnnxRuntime.probe().versions  # nothing in this build would use it
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    found = OnnxRuntime.probe()
    assert (found.devices, found.versions["tensorrt"]) == (("cpu", "cuda:0"), "10.16.1.11")


def test_a_probe_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = OnnxRuntime.probe()
    assert not found.available and "cannot be imported" in (found.reason or "") and found.hint
