"""One engine of torch for a whole sweep: every size has its graph before anything is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import torch_shapes
from backends.torch_compile import TorchCompile, TorchCompileOptions
from harness.api import DynamicShapes, SavedEngine, Session, TensorSpec
from harness.errors import RunError, UnsupportedError

torch = pytest.importorskip("torch")

from tests.torch_support import Built, one_process, request_for  # noqa: E402 - it imports torch

WAYS: tuple[dict[str, Any], ...] = ({}, {"aot": True})


@pytest.fixture(autouse=True)
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with one_process():
        yield


class Pictures(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported only where it is installed
    """Has a convolution, for which torch tells batches below 16 from others on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.norm(self.conv(x)).relu().mean((2, 3)))  # (B, 3)


class Words(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:  # (B, H, T, C)
        q, k, v = self.project(x).chunk(3, -1)
        return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v))


class Parted(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    """Holds for multiples of 8 only, or else for all others."""

    def forward(self, x: Any) -> Any:
        return x + 1 if x.shape[0] % 8 == 0 else x - 1


def over_batches(low: int, high: int) -> DynamicShapes:
    return DynamicShapes(axes={"x": {0: "batch"}}, ranges={"batch": (low, high)})


def compiled(made: Any, dynamic: DynamicShapes, folder: Path, shape: tuple[int, ...], **options: Any) -> Session:
    """Compile for a sweep whose largest shape is given, and save."""
    folder.mkdir()
    request = request_for(TorchCompile, Built(folder, made, shape=shape), folder, dynamic=True, **options)
    session = TorchCompile().compile(dataclasses.replace(request, dynamic=dynamic))
    session.save(folder)
    return session


def runs(
    made: Any, dynamic: DynamicShapes, folder: Path, shape: tuple[int, ...], **options: Any
) -> tuple[list[str], int]:
    """Load at a shape as a new process does, run, and return the notes and how often it compiled while it ran."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    point = folder.with_name("x".join(map(str, shape)))
    point.mkdir(exist_ok=True)
    artifact = Built(point, made, shape=shape)
    request = request_for(TorchCompile, artifact, folder, dynamic=True, **options)
    with TorchCompile().load(folder, dataclasses.replace(request, dynamic=dynamic)) as session:
        before = session.compilations()
        session.bind(artifact.input_set(0))
        for _ in range(3):
            session.execute()
        np.testing.assert_allclose(session.outputs()["y"], artifact.expected, rtol=1e-4, atol=1e-5)
        return session.notes(), session.compilations() - before


@pytest.mark.parametrize("way", WAYS)
def test_a_convolution_runs_at_every_size_of_a_sweep(way: dict[str, Any], tmp_path: Path) -> None:
    made, sweep, folder = Pictures().eval(), over_batches(1, 32), tmp_path / "engine"
    engine = compiled(made, sweep, folder, (32, 1, 8, 8), **way)
    parts = ["batch 16 to 32", "batch 1 to 15"] if way else ["batch 16 to 32", "batch 2 to 15", "batch 1"]
    kind = "packages" if way else "graphs"
    said = f"this sweep takes {len(parts)} {kind}, each for its own sizes: {'; '.join(parts)}"
    assert engine.notes() == [said]
    assert engine.facts()["graphs"] == len(parts)
    for batch in (1, 2, 4, 15, 16, 32):
        assert runs(made, sweep, folder, (batch, 1, 8, 8), **way) == ([said], 0)
    with pytest.raises(RunError, match="holds no graph"):
        runs(made, sweep, folder, (33, 1, 8, 8), **way)


def test_a_snippet_runs_the_package_of_each_size(tmp_path: Path) -> None:
    made, sweep, folder = Pictures().eval(), over_batches(1, 32), tmp_path / "engine"
    compiled(made, sweep, folder, (32, 1, 8, 8), aot=True)
    lines = TorchCompile.snippet(
        SavedEngine(
            options=TorchCompileOptions(aot=True, dynamic=True),
            provider="aot-inductor",
            device="cpu",
            precision="fp32",
            threads=1,
            inputs=(TensorSpec(name="x", dtype="float32", shape=(4, 1, 8, 8)),),
        )
    )
    names: dict[str, Any] = {"ENGINE": folder}
    exec(lines, names)
    for batch in (1, 4, 32):
        x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32)
        with torch.no_grad():
            np.testing.assert_allclose(names["run"]({"x": x})[0], made(torch.tensor(x)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the engine holds for"):
        names["run"]({"x": np.zeros((33, 1, 8, 8), np.float32)})


@pytest.mark.parametrize("way", WAYS)
def test_a_transformer_runs_at_every_size_of_a_sweep(way: dict[str, Any], tmp_path: Path) -> None:
    made, sweep, folder = Words().eval(), over_batches(1, 32), tmp_path / "engine"
    engine = compiled(made, sweep, folder, (32, 2, 4, 8), **way)
    said = [] if way else ["this sweep takes 2 graphs, each for its own sizes: batch 2 to 32; batch 1"]
    assert engine.notes() == said
    for batch in (1, 4, 32):
        assert runs(made, sweep, folder, (batch, 2, 4, 8), **way) == (said, 0)


@pytest.mark.parametrize("way", WAYS)
def test_two_free_dimensions_take_a_graph_for_every_combination(way: dict[str, Any], tmp_path: Path) -> None:
    made, folder = Pictures().eval(), tmp_path / "engine"
    sweep = DynamicShapes(axes={"x": {0: "batch", 2: "height"}}, ranges={"batch": (4, 32), "height": (8, 12)})
    engine = compiled(made, sweep, folder, (32, 1, 12, 8), **way)
    assert "batch 16 to 32, height 8 to 12; batch 4 to 15, height 8 to 12" in engine.notes()[0]
    for batch, height in ((4, 8), (32, 8), (8, 12), (20, 10)):
        assert runs(made, sweep, folder, (batch, 1, height, 8), **way)[1] == 0


def test_the_engine_of_a_sweep_recompiles_nowhere_in_its_own_process(tmp_path: Path) -> None:
    made = Pictures().eval()
    with compiled(made, over_batches(1, 32), tmp_path / "engine", (32, 1, 8, 8)) as session:
        before = session.compilations()
        assert before >= 3
        for batch in (1, 2, 4, 15, 16, 17, 32):
            with torch.inference_mode():
                session._call(torch.ones(batch, 1, 8, 8))  # type: ignore[attr-defined]  # what it holds is any callable
        assert session.compilations() == before
        with torch.inference_mode():
            session._call(torch.ones(40, 1, 8, 8))  # type: ignore[attr-defined]  # as above
        assert session.compilations() > before, "what is beyond the sweep shows that compiling is counted"


def test_sizes_that_are_no_range_are_unsupported_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"torch cannot leave batch free.*(% 8|Mod)"):
        compiled(Parted().eval(), over_batches(1, 32), tmp_path / "engine", (32, 1, 8, 8))


def test_more_graphs_than_dynamo_keeps_are_unsupported(tmp_path: Path) -> None:
    said = r"torch would need 3 graphs to leave batch free .* it keeps 2"
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(UnsupportedError, match=said):
        compiled(Pictures().eval(), over_batches(1, 32), tmp_path / "engine", (32, 1, 8, 8))


def test_what_a_graph_leaves_of_a_sweep_is_covered_once() -> None:
    whole = {"a": (1, 6), "b": (3, 9)}
    part = {"a": (4, 6), "b": (5, 9)}
    regions = [part, *torch_shapes.rest(whole, part)]
    for a in range(1, 7):
        for b in range(3, 10):
            held = [r for r in regions if r["a"][0] <= a <= r["a"][1] and r["b"][0] <= b <= r["b"][1]]
            assert len(held) == 1, (a, b)
    assert torch_shapes.rest(whole, whole) == []


def test_an_engine_of_an_earlier_harness_says_what_to_do(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Words().eval(), shape=(2, 2, 4, 8))
    with pytest.raises(RunError, match="holds no graph") as caught:
        torch_shapes.holding([], request_for(TorchCompile, artifact, tmp_path))
    assert "--cold" in (caught.value.hint or "")
