"""The TensorRT backends: probes against broken installations, errors, real RTX builds, and sessions on fakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from backends import cuda_device, tensorrt_family
from backends.cuda_device import Driver, Gpu
from backends.tensorrt import TensorRT, timing_cache_path
from backends.tensorrt_build import build_failure, parse_failure
from backends.tensorrt_rtx import RUNTIME_CACHE, TARGETS, RtxOptions, TensorRTRTX
from backends.tensorrt_session import CARD, PLAN
from harness.api import Availability, DynamicShapes
from harness.errors import CompileError, OutOfMemory, RunError, UnavailableError, UnsupportedError, UsageError
from tests.fake_tensorrt import ADA, Asked, FakeCudart, FakeTensorRT, make_artifact


class FakeNative(TensorRT):
    modules = ("fake_tensorrt",)


class FakeRtx(TensorRTRTX):
    modules = ("fake_tensorrt",)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Driver:
        raise UnavailableError("no NVIDIA driver on this machine", hint="install it")

    monkeypatch.setattr(cuda_device, "driver", missing)


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


def test_the_probe_refuses_an_old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(12, 8), gpus=(ADA,)))
    monkeypatch.setattr(tensorrt_family, "_installed", lambda name: name == "trt_new_cu13")
    answer = probe_with("trt_new", "__version__ = '11.4.0'", tmp_path, monkeypatch)
    assert answer.reason == "the NVIDIA driver is too old: it serves CUDA 12.8, trt_new_cu13 needs CUDA 13"
    assert answer.hint == "update the NVIDIA driver to r580 or newer"


def test_a_probe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(importlib.util, "find_spec", burst)
    assert TensorRT.probe().reason == "the probe failed: ValueError: tensorrt.__spec__ is None"


# --- errors ----------------------------------------------------------------------------------------------------


def parser_error(code: str, text: str, node: int = 0, name: str = "", operator: str = "") -> Any:
    values = {"code": SimpleNamespace(name=code), "desc": text, "node": node, "node_name": name}
    return SimpleNamespace(
        **{key: (lambda value=value: value) for key, value in {**values, "node_operator": operator}.items()}
    )


def test_unsupported_operators_are_named_with_their_nodes_and_go_first() -> None:
    errors = [
        parser_error("INVALID_NODE", "bad shapes", 1, "/fc", "MatMul"),
        parser_error("UNSUPPORTED_NODE", "false", 2, "/a/det", "Det"),
        parser_error("UNSUPPORTED_NODE_ATTR", "mode must be linear. In f at /_src/a.cpp:1", 3, "/up", "Resize"),
        parser_error("INVALID_NODE", 'creator && "Plugin not found, ..."', 4, "", "Frobnicate"),
    ]
    failure = parse_failure("case", errors)
    assert isinstance(failure, UnsupportedError)
    assert failure.message == (
        "case: no converter for 'Det' at /a/det, 'Resize' at /up (mode must be linear), 'Frobnicate' at node 4"
    )
    assert isinstance(parse_failure("case", errors[:1]), CompileError)


def test_a_long_list_of_operators_is_cut() -> None:
    errors = [parser_error("UNSUPPORTED_NODE", "false", index, f"/n{index}", "Det") for index in range(8)]
    assert parse_failure("case", errors).message.endswith("'Det' at /n4 and 3 more")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error Code 2: OutOfMemory (no further information)", OutOfMemory),
        ("Tactic Selection: no tactics to implement the operation within workspace limit.", CompileError),
        ("Cannot compile operation 'x' for Turing (SM75): FP32 GEMM is not supported", UnsupportedError),
        ("Internal error", CompileError),
    ],
)
def test_build_failures_are_sorted_by_what_was_logged(text: str, kind: type[Exception]) -> None:
    assert type(build_failure("case", [text])) is kind
    assert build_failure("case", []).message == "case: TensorRT gave no reason"


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
        assert session.facts() == {
            "target": "sm_89",
            "tf32": False,
            "builder_optimization_level": 3,
            "timing_cache": "cold",
            "plan_bytes": 4,
            "network_layers": 3,
            "layers": 3,
        }
    assert not cudart.blocks and not cudart.streams
    assert asked.stages == ["load", "build"]
    assert asked.progress == [("Building", 0, 1), ("Building", 1, 1)]
    with FakeNative().load(request.engine_dir, request) as loaded:
        loaded.bind(inputs)
        loaded.execute()
        np.testing.assert_array_equal(loaded.outputs()["output"], 2 * inputs["input"])


def test_every_native_option_reaches_the_builder(trt: FakeTensorRT, asked: Asked) -> None:
    FakeNative().compile(asked.request(FakeNative)).close()
    assert "TF32" not in trt.config.flags  # TensorRT's own default is on
    FakeNative().compile(asked.request(FakeNative, tf32=True, workspace_mb=64, builder_optimization_level=5)).close()
    assert "TF32" in trt.config.flags
    assert trt.config.workspace == 64 << 20
    assert trt.config.builder_optimization_level == 5


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
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert facts == ["cold", "warm, 7 bytes", "cold"]
    assert trt.config.accepted == [b"", b"timings", b""]


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


def test_a_failing_enqueue_says_why(trt: FakeTensorRT, asked: Asked) -> None:
    with FakeNative().compile(asked.request(FakeNative)) as session:
        trt.broken = True
        with pytest.raises(RunError, match="could not enqueue the engine: illegal memory access"):
            session.execute()


def test_an_engine_that_does_not_fit_the_artifact_is_refused_and_freed(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    trt.dtype = np.float16
    with pytest.raises(RunError, match=r"'input' is float16\[1, 4, 4\] in the engine, expected float32\[1, 4, 4\]"):
        FakeNative().compile(asked.request(FakeNative))
    assert not cudart.blocks and not cudart.streams


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
            r"built for sm_120, but cuda:0 is sm_89 \(NVIDIA GeForce RTX 4090\)",
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
    assert trt.config.profile is not None and trt.config.profile.range == ((1, 4, 4), (4, 4, 4))
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
    assert not cudart.blocks and not cudart.streams


def test_a_profile_that_is_refused_is_a_compile_error(trt: FakeTensorRT, asked: Asked) -> None:
    with pytest.raises(CompileError, match="its range of shapes was refused"):
        FakeNative().compile(asked.request(FakeNative, batches=(2, 1)))


def test_shapes_that_depend_on_an_inputs_values_are_unsupported(trt: FakeTensorRT, asked: Asked) -> None:
    trt.shape_tensor = True
    with pytest.raises(UnsupportedError, match="shapes depend on the values of 'input'"):
        FakeNative().compile(asked.request(FakeNative, batches=(1, 4)))


def test_another_precision_is_unsupported(trt: FakeTensorRT, asked: Asked) -> None:
    request = asked.request(FakeNative)
    object.__setattr__(request, "precision", "fp16")
    with pytest.raises(UnsupportedError, match="tensorrt has no precision 'fp16'; it has fp32"):
        FakeNative().compile(request)


# --- TensorRT-RTX on fakes -------------------------------------------------------------------------------------


def test_rtx_runs_once_while_compiling_and_keeps_its_kernels(
    trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    request = asked.request(FakeRtx)
    with FakeRtx().compile(request) as session:
        assert session.runnable and trt.enqueues == 1
        assert trt.config.capability is trt.ComputeCapability.SM89 and trt.config.num_compute_capabilities == 1
        assert trt.runtime_cache.attached and trt.runtime_config is not None
        assert session.facts()["jit"] == "compiled in this process"
        session.save(request.engine_dir)
    for content, jit in ((b"kernels", "from a runtime cache of 7 bytes"), (b"foreign", "compiled in this process")):
        (request.engine_dir / RUNTIME_CACHE).write_bytes(content)
        with FakeRtx().load(request.engine_dir, request) as loaded:
            assert loaded.facts()["jit"] == jit
    assert not cudart.blocks and not cudart.streams


def test_rtx_frees_the_device_when_the_first_run_fails(trt: FakeTensorRT, cudart: FakeCudart, asked: Asked) -> None:
    trt.broken = True
    with pytest.raises(RunError, match="tensorrt-rtx could not enqueue the engine"):
        FakeRtx().compile(asked.request(FakeRtx))
    assert not cudart.blocks and not cudart.streams


@pytest.mark.parametrize(("device", "options"), [("cuda:0", {"target": "sm_120"}), ("cpu", {})])
def test_rtx_only_builds_for_another_target_or_without_asking_for_the_device(
    device: str, options: dict[str, Any], trt: FakeTensorRT, cudart: FakeCudart, asked: Asked
) -> None:
    with FakeRtx().compile(asked.request(FakeRtx, device=device, **options)) as session:
        assert not session.runnable and not cudart.streams
        assert session.facts()["target"] == options.get("target", "sm_89")


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


def test_an_unknown_target_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="unknown target 'sm89'; did you mean 'sm_89'"):
        TensorRTRTX.check(RtxOptions(target="sm89"))
    for target in (None, *TARGETS):
        TensorRTRTX.check(RtxOptions(target=target))


def test_the_table_of_targets_is_tensorrt_rtx_own(rtx: Any) -> None:
    assert set(TARGETS.values()) == set(rtx.ComputeCapability.__members__) - {"NONE", "CURRENT"}


def test_rtx_is_available_without_a_driver_and_says_what_it_cannot_do(rtx: Any) -> None:
    answer = TensorRTRTX.probe()
    assert answer.available and answer.devices == ()
    assert answer.reason == "engines can be built but not run: no NVIDIA driver on this machine"
    assert answer.versions == {"tensorrt_rtx": rtx.__version__}


@pytest.mark.parametrize(("options", "target"), [({}, "sm_89"), ({"target": "sm_120"}, "sm_120")])
def test_rtx_builds_and_saves_an_engine_without_a_device(
    options: dict[str, Any], target: str, rtx: Any, asked: Asked
) -> None:
    request = asked.request(TensorRTRTX, onnx_model(), **options)
    with TensorRTRTX().compile(request) as session:
        session.save(request.engine_dir)
        facts = session.facts()
        assert not session.runnable and session.provider == f"TensorRT-RTX {target}"
        assert session.notes() == [f"tensorrt-rtx: built for {target} without the device, not run."]
        with pytest.raises(UnsupportedError, match=target):
            session.execute()
    assert facts["target"] == target and facts["tf32"] is False
    assert facts["plan_bytes"] == (request.engine_dir / PLAN).stat().st_size > 0
    assert asked.stages == ["load", "build"]
    assert asked.progress[0][1] == 0 and {len(step) for step in asked.progress} == {3}
    with pytest.raises(RunError, match=f"built for {target}: no NVIDIA driver"):
        TensorRTRTX().load(request.engine_dir, request)


def test_rtx_builds_one_engine_for_a_range_of_batches(rtx: Any, asked: Asked) -> None:
    with TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(batch="batch"), batches=(1, 4))) as session:
        assert session.facts()["profile"] == "batch 1 to 4, tuned for 4"
        assert session.facts()["plan_bytes"]


def test_rtx_says_why_a_range_does_not_fit_the_graph(rtx: Any, asked: Asked) -> None:
    with pytest.raises(CompileError, match="static dimensions that don't match"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(batch=1), batches=(1, 4)))
    with pytest.raises(CompileError, match=r"its range of shapes was refused: .*MIN<=OPT<=MAX"):
        TensorRTRTX().compile(asked.request(TensorRTRTX, onnx_model(batch="batch"), batches=(4, 2)))


def test_every_rtx_option_changes_the_plan(rtx: Any, asked: Asked) -> None:
    plans = {}
    for options in ({}, {"tf32": True}, {"workspace_mb": 64}, {"target": "sm_120"}):
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
