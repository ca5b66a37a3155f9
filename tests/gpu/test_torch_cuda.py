"""The torch backends on a real NVIDIA GPU: precision, stream, copies, CUDA graphs, memory, what a device refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.cpp_extension import CUDA_HOME  # noqa: E402 - torch may be missing

from backends.eager import Eager  # noqa: E402
from backends.torch_compile import TorchCompile  # noqa: E402
from backends.torch_session import FACTS, TorchSession  # noqa: E402
from harness.api import Backend  # noqa: E402
from harness.errors import OutOfMemory, RunError, UnavailableError, UnsupportedError  # noqa: E402
from harness.measure import run_once  # noqa: E402
from tests.torch_support import Built, one_process, request_for  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU answers torch"),
]

DEVICE = "cuda:0"
TOOLKIT = pytest.mark.skipif(CUDA_HOME is None, reason="no CUDA toolkit, which AOTInductor compiles against")
FLOAT32_AT_MOST, TF32_AT_LEAST = 2e-6, 1e-4
"""Relative L2 error of a product of normal matrices: float32 keeps 24 bits, TF32 11."""


@pytest.fixture(autouse=True)
def sessions() -> Iterator[None]:
    with one_process():
        yield
    torch._dynamo.reset()


class Product(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is Any to the type checker
    def __init__(self, size: int = 512) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(size, size, bias=False)
        torch.nn.init.normal_(self.linear.weight, std=size**-0.5)  # outputs are as large as inputs

    def forward(self, x: Any) -> Any:
        return self.linear(x)


class Images(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, padding=1)
        )

    def forward(self, x: Any) -> Any:
        return self.body(x).flatten(1)


class Attention(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


class Deep(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    """A millisecond of work, which no host's overhead hides."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(*(Product(2048) for _ in range(8)))

    def forward(self, x: Any) -> Any:
        for part in self.parts:
            x = torch.tanh(part(x))
        return x


def run(session: Any, x: np.ndarray) -> np.ndarray:
    session.bind({"x": x})
    session.execute()
    session.synchronize()
    result: np.ndarray = session.outputs()["y"]
    return result


def error(artifact: Built, got: np.ndarray, x: np.ndarray) -> float:
    exact = x.astype(np.float64) @ artifact.made.linear.weight.detach().double().cpu().numpy().T
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("backend", [Eager, TorchCompile])
def test_without_tf32_float32_is_float32(backend: type[Backend], tmp_path: Path) -> None:
    artifact = Built(tmp_path, Product(), shape=(512, 512))
    x = artifact.input_set(0)["x"]
    with backend().compile(request_for(backend, artifact, tmp_path, device=DEVICE)) as session:
        assert session.facts()["tf32"] is False
        assert error(artifact, run(session, x), x) < FLOAT32_AT_MOST


@pytest.mark.skipif(not torch.cuda.is_available() or not torch.cuda.is_tf32_supported(), reason="this GPU has no TF32")
def test_tf32_is_what_runs_where_it_was_asked_for(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Product(), shape=(512, 512))
    x = artifact.input_set(0)["x"]
    with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE, precision="tf32")) as session:
        assert error(artifact, run(session, x), x) > TF32_AT_LEAST


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"cuda_graph": True}], ids=str)
def test_inputs_are_copied_and_outputs_are_owned(options: dict[str, Any], tmp_path: Path) -> None:
    artifact = Built(tmp_path, Images(), shape=(2, 3, 32, 32))
    x = artifact.input_set(0)["x"]
    with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE, **options)) as session:
        bound = x.copy()
        session.bind({"x": bound})
        bound.fill(7)
        session.execute()
        session.synchronize()
        first = session.outputs()["y"]
        np.testing.assert_allclose(first, artifact.expected, atol=1e-4)
        kept = first.copy()
        assert not np.allclose(run(session, -x), kept, atol=1e-4)
        np.testing.assert_array_equal(first, kept)
        session.bind({"x": x})
        session.bind({"x": -x})  # not waited for in between
        session.bind({"x": x})
        session.execute()
        session.synchronize()
        np.testing.assert_allclose(session.outputs()["y"], artifact.expected, atol=1e-4)
        assert set(session.placement() or {}) == {"cuda"}


def device_ns(session: TorchSession) -> float:
    """Return the time between two events on the session's stream around one call."""
    stream = torch.cuda.ExternalStream(session.stream)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    session.execute()
    end.record(stream)
    session.synchronize()
    return float(start.elapsed_time(end)) * 1e6


MODES = [
    (Eager, {}),
    (Eager, {"cuda_graph": True}),
    (TorchCompile, {}),
    (TorchCompile, {"mode": "reduce-overhead"}),
    pytest.param(TorchCompile, {"aot": True}, marks=TOOLKIT),
    pytest.param(TorchCompile, {"aot": True, "cuda_graph": True}, marks=TOOLKIT),
]


@pytest.mark.parametrize(("backend", "options"), MODES, ids=str)
def test_all_work_is_on_the_sessions_stream_and_equals_eager(
    backend: type[Backend], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Built(tmp_path, Deep(), shape=(1024, 2048))
    x = artifact.input_set(0)["x"]
    for name, value in backend.environment(backend.Options(), tmp_path, 1).items():
        monkeypatch.setenv(name, value)
    request = request_for(backend, artifact, tmp_path, device=DEVICE, **options)
    with backend().compile(request) as session:
        assert isinstance(session, TorchSession)
        assert session.stream == torch.cuda.current_stream().cuda_stream != 0
        np.testing.assert_allclose(run(session, x), artifact.expected, atol=2e-3)
        for _ in range(5):
            run_once(session)
        compute = float(np.median([run_once(session) for _ in range(10)]))
        device = float(np.median([device_ns(session) for _ in range(10)]))
        assert 0.5 * compute < device < 1.05 * compute  # work on another stream would not lie between the events


def test_waiting_is_for_the_sessions_own_stream_only(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Product(), shape=(512, 512))
    with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE)) as session:
        run(session, artifact.input_set(0)["x"])
        other = torch.cuda.Stream()
        with torch.cuda.stream(other):
            torch.cuda._sleep(2_000_000_000)  # about a second
        start = time.perf_counter()
        session.execute()
        session.synchronize()
        took = time.perf_counter() - start
        assert not other.query(), "the other stream was done first: this showed nothing"
        other.synchronize()
        assert took < (time.perf_counter() - start) / 2


def test_reduce_overhead_replays_graphs_that_copy_no_input(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    artifact = Built(tmp_path, Images(), shape=(2, 3, 32, 32))
    x = artifact.input_set(0)["x"]
    request = request_for(TorchCompile, artifact, tmp_path, device=DEVICE, mode="reduce-overhead")
    with TorchCompile().compile(request) as session:
        assert session.facts()["cuda_graphs"] == 1 and session.notes() == []
        assert counters["inductor"]["cudagraph_recorded_non_static_inputs"] == 0
        first = run(session, x)
        np.testing.assert_allclose(first, artifact.expected, atol=1e-4)
        run(session, -x)
        np.testing.assert_allclose(run(session, x), first, atol=1e-6)


def test_a_model_that_asks_for_a_value_cannot_be_captured(tmp_path: Path) -> None:
    class Asks(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
        def forward(self, x: Any) -> Any:
            return x * (2.0 if x.sum().item() > 0 else 3.0)

    artifact = Built(tmp_path, Asks(), shape=(4, 4))
    with pytest.raises(UnsupportedError, match="cannot be captured"):
        Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE, cuda_graph=True))
    with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE)) as session:  # the device goes on
        np.testing.assert_allclose(run(session, artifact.input_set(0)["x"]), artifact.expected, rtol=1e-6)


def test_an_attention_kernel_is_the_one_asked_for(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Attention(), shape=(2, 4, 64, 32))
    for kernel in ("math", "efficient"):
        with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE, sdpa=kernel)) as session:
            np.testing.assert_allclose(run(session, artifact.input_set(0)["x"]), artifact.expected, atol=1e-4)
    with pytest.raises(UnsupportedError, match="sdpa=flash: torch has no such kernel for this model"):
        Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE, sdpa="flash"))  # takes half precision


def test_memory_that_runs_out_is_out_of_memory_and_the_session_goes_on(tmp_path: Path) -> None:
    class Grows(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
        def forward(self, x: Any) -> Any:
            if x.device.type == "cuda" and x[0, 0] > 100:
                torch.empty(1 << 44, device=x.device)
            return x + 1

    artifact = Built(tmp_path, Grows(), shape=(4, 4))
    with Eager().compile(request_for(Eager, artifact, tmp_path, device=DEVICE)) as session:
        with pytest.raises(OutOfMemory, match="CUDA out of memory") as caught:
            run(session, np.full((4, 4), 1000, np.float32))
        assert "lower --batch" in (caught.value.hint or "")
        np.testing.assert_allclose(run(session, np.ones((4, 4), np.float32)), 2)


def test_a_device_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UnavailableError, match=rf"no device 'cuda:{count}' for torch; it has cuda:0"):
        Eager().compile(
            request_for(Eager, Built(tmp_path, Product(), shape=(512, 512)), tmp_path, device=f"cuda:{count}")
        )


@TOOLKIT
def test_a_package_opens_on_its_card_only(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Product(), shape=(512, 512))
    request = request_for(TorchCompile, artifact, tmp_path, device=DEVICE, aot=True)
    with TorchCompile().compile(request) as session:
        session.save(tmp_path)
    with TorchCompile().load(tmp_path, request) as session:
        np.testing.assert_allclose(run(session, artifact.input_set(0)["x"]), artifact.expected, atol=1e-3)
        assert set(session.placement() or {}) == {"cuda"}
    saved = msgspec.json.decode((tmp_path / FACTS).read_bytes())
    (tmp_path / FACTS).write_bytes(msgspec.json.encode({**saved, "card": "NVIDIA Another (sm_70)"}))
    with pytest.raises(RunError, match=r"was built for NVIDIA Another \(sm_70\), this is "):
        TorchCompile().load(tmp_path, request)
