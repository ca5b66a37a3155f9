"""torch on an NVIDIA device, played on a CPU: what is refused, where tensors lie, graphs, placement, errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._inductor import cudagraph_trees, cudagraph_utils  # noqa: E402 - torch may be missing
from torch._inductor.exc import CppCompileError, InductorError  # noqa: E402

from backends import cuda_device, torch_compile, torch_cuda, torch_errors  # noqa: E402
from backends.cuda_device import Driver, Gpu  # noqa: E402
from backends.eager import Eager  # noqa: E402
from backends.torch_compile import TorchCompile, TorchCompileOptions  # noqa: E402
from backends.torch_cuda import Place  # noqa: E402
from backends.torch_module import probe_torch  # noqa: E402
from backends.torch_placement import placement  # noqa: E402
from backends.torch_session import FACTS, Inputs, TorchSession  # noqa: E402
from harness import registry  # noqa: E402
from harness.api import Backend, ReferenceModel, TensorSpec  # noqa: E402
from harness.errors import (  # noqa: E402
    CompileError,
    HarnessError,
    OutOfMemory,
    RunError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from harness.modelspec import ModelSpec  # noqa: E402
from tests.fake_torch_cuda import FakeCapture, FakeGraph, FakePlace, FakeStream, fake_place  # noqa: E402
from tests.torch_support import Built, one_process, request_for  # noqa: E402

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.19 GiB is "
    "free. Including non-PyTorch memory, this process has 22.44 GiB memory in use. Of the allocated memory 21.90 GiB "
    "is allocated by PyTorch, and 40.11 MiB is reserved by PyTorch but unallocated. If reserved but unallocated ..."
)
ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for `cudaErrorDevicesUnavailable' in ..."


@pytest.fixture(autouse=True)
def sessions() -> Iterator[None]:
    with one_process():
        yield


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    """Play a CUDA device for everything that asks for one."""
    made = fake_place()
    monkeypatch.setattr(torch_cuda, "place_of", lambda device: made)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", FakeCapture)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return made


class Sum(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is Any to the type checker
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Any) -> Any:
        return (x * self.scale).sum(-1).relu()


def run(session: Any, x: np.ndarray) -> np.ndarray:
    session.bind({"x": x})
    session.execute()
    session.synchronize()
    result: np.ndarray = session.outputs()["y"]
    return result


# ---- the device


def test_a_build_for_cpus_refuses_a_cuda_device(tmp_path: Path) -> None:
    if torch.backends.cuda.is_built():
        pytest.skip("this torch is built for CUDA")
    for backend in (Eager, TorchCompile):
        with pytest.raises(UnavailableError, match="is built for CPUs only, not for cuda:0") as caught:
            backend().compile(request_for(backend, Built(tmp_path, Sum()), tmp_path, device="cuda:0"))
        assert caught.value.hint == torch_errors.INSTALL


def answers(monkeypatch: pytest.MonkeyPatch, *, says: str | None = None, count: int = 1) -> None:
    """Let torch.cuda be built in, and either refuse with a message or offer some devices."""

    def init() -> None:
        if says is not None:
            raise RuntimeError(says)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: says is None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("says", "what", "hint"),
    [
        (NO_DRIVER, "torch cannot use cuda:0: Found no NVIDIA driver", "install the NVIDIA driver"),
        (TOO_OLD, r"torch cannot use cuda:0: .*too old \(found version 11040\)", "update the NVIDIA driver"),
        ("No CUDA GPUs are available", "torch cannot use cuda:0: No CUDA GPUs", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_driver_that_will_not_do_is_unavailable(
    says: str, what: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, says=says)
    with pytest.raises(UnavailableError, match=what) as caught:
        torch_cuda.place_of("cuda:0")
    assert hint in (caught.value.hint or "")


def test_a_device_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, count=2)
    with pytest.raises(UnavailableError, match="no device 'cuda:2' for torch; it has cuda:0, cuda:1"):
        torch_cuda.place_of("cuda:2")


def test_all_sessions_of_a_process_share_one_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, count=2)
    made: list[int] = []
    current: list[Any] = []

    def stream(*, device: int) -> FakeStream:
        made.append(device)
        return FakeStream()

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    torch_cuda._stream.cache_clear()
    try:
        first, again, by_default = (torch_cuda.place_of(name) for name in ("cuda:1", "cuda:1", "cuda"))
    finally:
        torch_cuda._stream.cache_clear()
    assert first.device == torch.device("cuda", 1) and by_default.device == torch.device("cuda", 0)
    assert first.stream is again.stream and made == [1, 0]
    assert current == [first.stream, by_default.stream]


def test_a_device_that_others_hold_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)

    def busy(**_: object) -> None:
        raise torch.AcceleratorError(BUSY)

    monkeypatch.setattr(torch.cuda, "Stream", busy)
    torch_cuda._stream.cache_clear()
    with pytest.raises(RunError, match=r"busy or unavailable$") as caught:
        torch_cuda.place_of("cuda:0")
    assert "fell off the bus" in (caught.value.hint or "")


def test_probe_lists_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, count=2)
    found = probe_torch()
    assert (found.devices, found.reason) == (("cpu", "cuda:0", "cuda:1"), None)


@pytest.mark.parametrize(
    ("says", "reason"),
    [(TOO_OLD, "driver on your system is too old"), ("No CUDA GPUs are available", "No CUDA GPUs"), (NO_DRIVER, None)],
)
def test_probe_says_why_a_driver_offers_no_device(
    says: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, says=says, count=1)  # NVML counts a device, CUDA cannot use it
    found = probe_torch()
    assert found.available and found.devices == ("cpu",)
    assert (found.reason is None) if reason is None else (reason in (found.reason or "") and found.hint)


def test_probe_says_that_a_build_for_cpus_leaves_a_gpu_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(index=0, name="NVIDIA GeForce RTX 4090", target="sm_89")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda_device, "driver", lambda: Driver(cuda=(13, 0), gpus=(gpu,)))
    found = probe_torch()
    assert "built for CPUs only and cannot use NVIDIA GeForce RTX 4090" in (found.reason or "")
    assert found.hint == torch_errors.INSTALL


# ---- sessions


def test_inputs_keep_their_addresses_and_copies_go_through_the_same_host_memory(
    place: FakePlace, tmp_path: Path
) -> None:
    artifact = Built(tmp_path, Sum())
    x = artifact.input_set(0)["x"]
    with Eager().compile(request_for(Eager, artifact, tmp_path, device="cuda:0")) as session:
        assert isinstance(session, TorchSession)
        assert session.stream == FakeStream.cuda_stream
        np.testing.assert_allclose(run(session, x), artifact.expected, rtol=1e-6)
        addresses = [tensor.data_ptr() for tensor in session._inputs.tensors]
        first = run(session, x)
        kept, other = first.copy(), run(session, -x)
        assert addresses == [tensor.data_ptr() for tensor in session._inputs.tensors]
        assert len(place.hosts) == 2  # one for the input, one for the output
        assert addresses[0] != place.hosts[0].data_ptr()
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_allclose(other, np.maximum((-x * 3).sum(-1), 0), rtol=1e-5)


def test_binding_waits_for_a_copy_that_may_still_be_read(place: FakePlace, tmp_path: Path) -> None:
    artifact = Built(tmp_path, Sum())
    inputs = artifact.input_set(0)
    with Eager().compile(request_for(Eager, artifact, tmp_path, device="cuda:0")) as session:
        session.bind(inputs)
        assert place.stream.waits == 0
        session.bind(inputs)
        assert place.stream.waits == 1
        session.synchronize()
        session.bind(inputs)
        assert place.stream.waits == 2  # none for this bind: all was done


def test_a_read_only_input_is_copied_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    artifact = Built(tmp_path, Sum())
    x = artifact.input_set(0)["x"].copy()
    x.flags.writeable = False
    with Eager().compile(request_for(Eager, artifact, tmp_path)) as session:
        np.testing.assert_allclose(run(session, x), artifact.expected, rtol=1e-6)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


@pytest.mark.parametrize("where", ["execute", "synchronize"])
def test_what_a_device_fails_at_is_said_in_words(where: str, place: FakePlace, tmp_path: Path) -> None:
    session = Eager().compile(request_for(Eager, Built(tmp_path, Sum()), tmp_path, device="cuda:0"))
    assert isinstance(session, TorchSession)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(FULL)

    if where == "execute":
        session._call = full
    place.stream.error = torch.AcceleratorError(ILLEGAL)
    with pytest.raises(HarnessError) as caught:
        getattr(session, where)()
    assert isinstance(caught.value, OutOfMemory if where == "execute" else RunError)


# ---- options


def test_tf32_is_off_unless_asked_for_whatever_the_models_code_sets(place: FakePlace, tmp_path: Path) -> None:
    artifact = Built(tmp_path, Sum())

    class Careless(Built):
        def module(self) -> object:
            torch.set_float32_matmul_precision("medium")
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            torch.backends.cudnn.benchmark = True
            return super().module()

    artifact.__class__ = Careless
    request = request_for(Eager, artifact, tmp_path, device="cuda:0", cudnn_benchmark=False)
    with Eager().compile(request) as session:
        assert session.provider == "torch cuda:0"
        assert session.facts() == {"tf32": False, "cudnn_benchmark": False, "cuda_graphs": 0}
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark


def test_tf32_is_stated_and_every_reader_of_the_switch_agrees(place: FakePlace, tmp_path: Path) -> None:
    request = request_for(Eager, Built(tmp_path, Sum()), tmp_path, device="cuda:0", precision="tf32")
    with Eager().compile(request) as session:
        assert session.provider == "torch cuda:0 tf32"
        assert session.facts()["tf32"] is True and session.facts()["cudnn_benchmark"] is True
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"  # raises where the two interfaces were set apart
        with torch.backends.cudnn.flags(enabled=True):  # so does this
            pass


def test_what_only_a_gpu_can_do_is_unsupported_on_a_cpu(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Sum())
    with pytest.raises(UnsupportedError, match="cuda_graph=true needs an NVIDIA device"):
        Eager().compile(request_for(Eager, artifact, tmp_path, cuda_graph=True))
    with pytest.raises(UnsupportedError, match="tf32 needs an NVIDIA device"):
        Eager().compile(request_for(Eager, artifact, tmp_path, precision="tf32"))


def test_a_card_without_tf32_is_unsupported(place: FakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(UnsupportedError, match=r"compute capability 8\.0 or more, got NVIDIA"):
        Eager().compile(request_for(Eager, Built(tmp_path, Sum()), tmp_path, device="cuda:0", precision="tf32"))


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"aot": True, "mode": "reduce-overhead"}, "aot=true,cuda_graph=true"),
        ({"cuda_graph": True}, "mode=reduce-overhead"),
    ],
)
def test_each_way_to_compile_has_its_own_way_to_a_cuda_graph(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        TorchCompile.check(msgspec.convert(options, type=TorchCompileOptions))
    assert hint in (caught.value.hint or "")


# ---- CUDA graphs


@pytest.mark.parametrize("start", ["compile", "load"])
def test_a_captured_call_reads_what_is_bound_and_equals_the_call(start: str, place: FakePlace, tmp_path: Path) -> None:
    artifact = Built(tmp_path, Sum())
    x = artifact.input_set(0)["x"]
    request = request_for(Eager, artifact, tmp_path, device="cuda:0", cuda_graph=True)
    opened = Eager().compile(request) if start == "compile" else Eager().load(tmp_path, request)
    with opened as session:
        assert session.provider == "torch cuda:0 cuda_graph" and session.facts()["cuda_graphs"] == 1
        np.testing.assert_allclose(run(session, x), artifact.expected, rtol=1e-6)
        np.testing.assert_allclose(run(session, 2 * x), 2 * artifact.expected, rtol=1e-6)
        np.testing.assert_allclose(run(session, x), artifact.expected, rtol=1e-6)


class Asks(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return x * (2.0 if x.sum().item() > 0 else 3.0)


def test_a_model_that_asks_for_a_value_cannot_be_captured(place: FakePlace, tmp_path: Path) -> None:
    request = request_for(Eager, Built(tmp_path, Asks()), tmp_path, device="cuda:0", cuda_graph=True)
    with pytest.raises(UnsupportedError, match=r"not permitted when stream is capturing$") as caught:
        Eager().compile(request)
    assert "leave out cuda_graph" in (caught.value.hint or "")


def test_memory_that_runs_out_during_a_capture_is_out_of_memory(place: FakePlace) -> None:
    calls = iter(range(torch_cuda.WARM_UP_CALLS))

    def full(x: Any) -> Any:
        if next(calls, None) is None:
            raise torch.OutOfMemoryError(FULL)
        return x

    with pytest.raises(OutOfMemory, match=r"^CUDA out of memory.* 22\.44 GiB memory in use\.$"):
        torch_cuda.CapturedCall(full, [torch.ones(1)], place)


class Node:
    """A recorded graph in Inductor's tree, with those that follow it."""

    def __init__(self, *children: Node) -> None:
        self.children = {"f": list(children)}


class Manager:
    def __init__(self, *roots: Node) -> None:
        self._roots = roots

    def get_roots(self) -> Iterator[Node]:
        return iter(self._roots)


@pytest.fixture
def compiler(place: FakePlace, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Play Triton, and a compiler that does nothing but collect what it was called with."""
    calls: list[Any] = []

    def compiled(module: Any, **_: object) -> Any:
        def call(*inputs: Any) -> Any:
            calls.append(inputs)
            if len(calls) == 1 and "mutates" in dir(module):
                cudagraph_utils.log_cudagraph_skip_and_bump_counter(
                    "skipping cudagraphs due to mutated inputs (1 instances). Found from : \n  File ..."
                )
            return module(*inputs)

        return call

    monkeypatch.setattr("torch.utils._triton.has_triton_package", lambda: True)
    monkeypatch.setattr(torch, "compile", compiled)
    return calls


def test_cuda_graphs_that_were_recorded_are_counted(
    compiler: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(Node(Node(), Node(Node())))
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda index, create_if_none_exists: manager)
    artifact = Built(tmp_path, Sum())
    request = request_for(TorchCompile, artifact, tmp_path, device="cuda:0", mode="reduce-overhead")
    with TorchCompile().compile(request) as session:
        assert isinstance(session, TorchSession)
        assert len(compiler) == 3  # compiled, recorded, replayed
        assert all(called[0] is session._inputs.tensors[0] for called in compiler)
        assert torch._dynamo.utils.get_static_address_type(session._inputs.tensors[0]) is not None
        assert session.facts()["cuda_graphs"] == 4 and session.notes() == []
        np.testing.assert_allclose(run(session, artifact.input_set(0)["x"]), artifact.expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("roots", "note"),
    [
        ([], "mode=max-autotune recorded no CUDA graph: mutated inputs (1 instances). Found from :"),
        ([Node()], "parts run outside of the 1 CUDA graph(s): mutated inputs (1 instances). Found from :"),
    ],
)
def test_cuda_graphs_that_inductor_left_out_are_said_with_its_reason(
    roots: list[Node], note: str, compiler: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda index, create_if_none_exists: Manager(*roots))
    module = Sum()
    module.mutates = True
    request = request_for(TorchCompile, Built(tmp_path, module), tmp_path, device="cuda:0", mode="max-autotune")
    with TorchCompile().compile(request) as session:
        assert session.facts()["cuda_graphs"] == len(roots) and session.notes() == [note]
        session.save(tmp_path)
    assert msgspec.json.decode((tmp_path / FACTS).read_bytes())["notes"] == [note]


def test_without_cuda_graphs_inputs_are_not_marked_and_one_call_compiles(compiler: list[Any], tmp_path: Path) -> None:
    request = request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path, device="cuda:0")
    with TorchCompile().compile(request) as session:
        assert isinstance(session, TorchSession)
        assert len(compiler) == 1 and session.facts()["cuda_graphs"] == 0
        assert torch._dynamo.utils.get_static_address_type(session._inputs.tensors[0]) is None


def test_inductor_hears_that_an_input_stays_where_it_is(tmp_path: Path) -> None:
    """Marking works on the kind of tensor that a session has, and costs no second compilation."""
    seen: list[list[int]] = []

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        seen.append(list(options["static_input_idxs"]))
        return graph.forward

    inputs = Inputs(request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path), fake_place())
    torch._dynamo.mark_static_address(inputs.tensors[0])
    from torch._inductor.compile_fx import compile_fx

    compiled = torch.compile(Sum(), backend=lambda graph, given: compile_fx(graph, given, inner_compile=inner))
    with torch.inference_mode():
        for _ in range(3):
            inputs.fill([np.ones((2, 1, 8, 8), np.float32)])
            compiled(inputs.tensors[0])
    assert len(seen) == 1
    assert len(seen[0]) == 2  # the parameter and the input


def test_reduce_overhead_says_that_a_cpu_has_no_cuda_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    request = request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path, mode="reduce-overhead")
    with TorchCompile().compile(request) as session:
        assert session.notes() == ["mode=reduce-overhead means CUDA graphs: on a CPU it changes nothing"]


# ---- engines


def test_without_triton_nothing_is_compiled_for_a_gpu(
    place: FakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton_package", lambda: False)
    with pytest.raises(UnavailableError, match="needs Triton on a CUDA device"):
        TorchCompile().compile(request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path, device="cuda:0"))


@pytest.mark.parametrize("aot", [False, True])
def test_an_engine_for_another_card_is_refused(aot: bool, compiler: list[Any], tmp_path: Path) -> None:
    request = request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path, device="cuda:0", aot=aot)
    saved = {"facts": {"graphs": 1}, "card": "NVIDIA H100 80GB HBM3 (sm_90)"}
    (tmp_path / FACTS).write_bytes(msgspec.json.encode(saved))
    with pytest.raises(RunError, match=r"was built for NVIDIA H100 .*sm_90.*, this is NVIDIA .*4090 \(sm_89\)"):
        TorchCompile().load(tmp_path, request)
    assert not compiler


def test_an_engine_for_a_gpu_is_refused_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / FACTS).write_bytes(msgspec.json.encode({"card": "NVIDIA H100 80GB HBM3 (sm_90)"}))
    with pytest.raises(RunError, match="this is a CPU"):
        TorchCompile().load(tmp_path, request_for(TorchCompile, Built(tmp_path, Sum()), tmp_path, aot=True))


# ---- placement

LIKE_ANOTHER = {"yolov8s", "yolov8m", "yolov8l", "yolov8x", "bert-large", "sd21-unet"}
"""Reference models whose code another one has too."""
CUDA = Place(device=torch.device("cuda", 0), stream=FakeStream())


class Strays(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    """Computes positions on the CPU, and keeps a table of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.table: Any = None

    def forward(self, x: Any) -> Any:
        if self.table is None:
            self.table = torch.arange(8.0).to(x.device)
        return self.linear(x) + self.table


class Returns(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return x.relu().cpu()


def test_operators_off_the_device_are_counted_and_nothing_is_touched(tmp_path: Path) -> None:
    module = Strays()
    module.table = torch.zeros(8)
    request = request_for(Eager, Built(tmp_path, module), tmp_path)
    assert set(placement(module, request, CUDA)) == {"cuda"}
    module.table = None
    found = placement(module, request, CUDA)
    assert found["cpu"] == 1 and found["cuda"] >= 2
    assert module.table is None and module.linear.weight.device.type == "cpu"


def test_an_output_that_leaves_the_device_is_counted(tmp_path: Path) -> None:
    module = Returns()
    assert placement(module, request_for(Eager, Built(tmp_path, module), tmp_path), CUDA) == {"cuda": 1, "cpu": 1}


def test_where_values_decide_the_modules_with_weights_are_counted(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm2d(1), torch.nn.ReLU(), Asks()).eval()
    request = request_for(Eager, Built(tmp_path, module), tmp_path)
    assert placement(module, request, CUDA) == {"cpu": 2}  # where the weights of this test lie
    assert placement(module, request, Place(device=torch.device("cpu"))) == {"cpu": 2}


@pytest.mark.parametrize("name", sorted(set(registry.MODELS) - LIKE_ANOTHER))
def test_reference_models_compute_nothing_off_their_device(name: str) -> None:
    kind = registry.model_class(name)
    for module in kind.requires:
        pytest.importorskip(module)
    toy: dict[str, Any] = {"size": "tiny"} if "size" in kind.Options.__struct_fields__ else {}
    model = registry.model(ModelSpec(name=name, options=toy))
    assert isinstance(model, ReferenceModel)
    specs = [TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.at(model.dims)) for spec in model.inputs]
    asked: Any = SimpleNamespace(artifact=SimpleNamespace(inputs=specs))
    with torch.device("meta"):
        module = model.build(model.dims)
    assert set(placement(module, asked, CUDA)) == {"cuda"}


def test_placement_is_saved_with_the_engine(place: FakePlace, tmp_path: Path) -> None:
    request = request_for(Eager, Built(tmp_path, Sum()), tmp_path, device="cuda:0")
    with Eager().compile(request) as session:
        found = session.placement()
        assert found == {"cpu": 3}  # multiply, sum, relu; the played device is a CPU
        session.save(tmp_path)
    with Eager().load(tmp_path, request) as session:
        assert isinstance(session, TorchSession)
        session._locate = None  # nothing is searched again
        assert session.placement() == found


# ---- errors


@pytest.mark.parametrize(
    ("raised", "kind", "message", "hint"),
    [
        (torch.OutOfMemoryError(FULL), OutOfMemory, "22.44 GiB memory in use.", "lower --batch"),
        (torch.AcceleratorError(ILLEGAL), RunError, "illegal memory access was encountered", "CUDA_LAUNCH_BLOCKING"),
        (torch.AcceleratorError(BUSY), RunError, "is/are busy or unavailable", "fell off the bus"),
        (
            torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nSearch ..."),
            UnsupportedError,
            "no kernel image is available for execution on the device",
            "compute capability",
        ),
        (
            RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            ),
            RunError,
            "cuda:0 and cpu!",
            "register it as a buffer",
        ),
        (RuntimeError("Failed to find C compiler. Please specify via CC"), UnavailableError, "C compiler", "g++"),
        (
            CppCompileError(
                ["g++"], "In file included from model.h:17:\nutils.h:14:10: fatal error: cuda.h: No such file"
            ),
            UnavailableError,
            "utils.h:14:10: fatal error: cuda.h: No such file",
            "leave out aot=true",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), RunError, "EXECUTION_FAILED", "kernel failed"),
    ],
)
def test_what_torch_raises_is_said_in_words(
    raised: Exception, kind: type[HarnessError], message: str, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        torch_errors.tell(raised)
    assert caught.value.message.endswith(message) or message in caught.value.message
    assert "\n" not in caught.value.message and hint in (caught.value.hint or "")


@pytest.mark.parametrize("operator", [torch.add, torch.mm])
def test_tensors_of_two_devices_are_said_in_words_as_dynamo_finds_them(operator: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(RunError, match=r"devices,? cuda:0") as caught, torch_errors.in_words():
        operator(torch.empty(2, 2, device="cuda:0"), torch.empty(2, 2))
    assert "device=x.device" in (caught.value.hint or "")


def test_an_error_inside_a_compilers_own_is_found(place: FakePlace, tmp_path: Path) -> None:
    def compiled(*_: object) -> None:
        raise InductorError(torch.OutOfMemoryError(FULL), None)

    with pytest.raises(OutOfMemory, match=r"^CUDA out of memory"):
        torch_compile._call(compiled, [], None)

    def broken(*_: object) -> None:
        raise InductorError(ValueError("no such layout"), None)

    with pytest.raises(CompileError, match="no such layout"):
        torch_compile._call(broken, [], None)


def test_what_is_not_known_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match="of the model's own"), torch_errors.in_words():
        raise ValueError("of the model's own")
    with contextlib.suppress(UnsupportedError), torch_errors.in_words():
        raise UnsupportedError("CUDA error: said already")


@pytest.mark.parametrize("backend", [Eager, TorchCompile])
def test_options_of_all_torch_backends_are_the_same(backend: type[Backend]) -> None:
    fields = {field.name for field in msgspec.structs.fields(backend.Options)}
    assert {"channels_last", "cudnn_benchmark", "cuda_graph"} <= fields
