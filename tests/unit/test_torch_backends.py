"""Eager's choice of attention kernels, and what the torch backends refuse before they do any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from backends import eager, torch_package
from backends.eager import Eager
from backends.torch_compile import TorchCompile, TorchCompileOptions
from harness import drift
from harness.api import Backend, DynamicShapes, TensorSpec
from harness.errors import UnsupportedError, UsageError

torch = pytest.importorskip("torch")

from tests.torch_support import Built, one_process, request_for  # noqa: E402 - it imports torch


@pytest.fixture(autouse=True)
def sessions() -> Iterator[None]:
    with one_process():
        yield


class Attention(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported only where it is installed
    def forward(self, x: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


class FixedBatch(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return x.view(4, 64).sum(1)


def attention_that_ran(artifact: Built, folder: Path, **options: Any) -> set[str]:
    """Run eager once under the profiler and return the attention operators, after checking the result."""
    from torch.profiler import ProfilerActivity, profile

    with Eager().compile(request_for(Eager, artifact, folder, **options)) as session:
        session.bind(artifact.input_set(0))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            session.execute()
        np.testing.assert_allclose(session.outputs()["y"], artifact.expected, atol=1e-5)
        assert session.provider == "torch cpu" + "".join(f" {key}={value}" for key, value in options.items())
    return {event.name for event in seen.events() if event.name.startswith("aten::_scaled_dot_product")}


def test_the_attention_kernel_is_the_one_asked_for_and_free_again_afterwards(tmp_path: Path) -> None:
    artifact = Built(tmp_path, Attention())
    by_default = attention_that_ran(artifact, tmp_path)
    assert attention_that_ran(artifact, tmp_path, sdpa="math") == {"aten::_scaled_dot_product_attention_math"}
    assert attention_that_ran(artifact, tmp_path, sdpa="flash") == {"aten::_scaled_dot_product_flash_attention_for_cpu"}
    assert attention_that_ran(artifact, tmp_path) == by_default


@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])
def test_a_kernel_that_the_device_lacks_is_unsupported(kernel: str, tmp_path: Path) -> None:
    artifact = Built(tmp_path, Attention())
    with pytest.raises(UnsupportedError, match=f"sdpa={kernel}: torch has no such kernel for this model on cpu"):
        Eager().compile(request_for(Eager, artifact, tmp_path, sdpa=kernel))
    assert attention_that_ran(artifact, tmp_path)


def test_the_kernels_of_a_gpu_are_told_apart() -> None:
    operators = {
        kernel: f"aten::_scaled_dot_product_{name}"
        for kernel, name in {
            "math": "attention_math",
            "flash": "flash_attention",
            "efficient": "efficient_attention",
            "cudnn": "cudnn_attention",
        }.items()
    }
    assert set(operators) == set(eager.KERNELS)
    for kernel, operator in operators.items():
        assert hasattr(torch.ops.aten, operator.removeprefix("aten::"))
        others = sorted(set(operators.values()) - {operator})
        assert eager._others(kernel, operators.values()) == others


def test_a_model_without_attention_has_no_kernel_to_choose(tmp_path: Path) -> None:
    artifact = Built(tmp_path, torch.nn.Identity())
    with pytest.raises(UnsupportedError, match="it never calls scaled_dot_product_attention"):
        Eager().compile(request_for(Eager, artifact, tmp_path, sdpa="math"))


def test_eager_has_no_engine_for_a_sweep() -> None:
    with pytest.raises(UsageError, match="takes every shape as it is"):
        Eager.check(Eager.Options(dynamic=True))


@pytest.mark.parametrize("backend", [Eager, TorchCompile])
def test_an_onnx_file_has_no_module_for_torch(backend: type[Backend], tmp_path: Path) -> None:
    artifact = Built(tmp_path, Attention(), graph_only=True)
    with pytest.raises(UnsupportedError, match=r"^needs a torch module, and this model is an ONNX file$"):
        backend().compile(request_for(backend, artifact, tmp_path))


@pytest.mark.parametrize("backend", [Eager, TorchCompile])
def test_channels_last_needs_an_image(backend: type[Backend], tmp_path: Path) -> None:
    artifact = Built(tmp_path, Attention())
    flat = msgspec.structs.replace(artifact.manifest, inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 64)),))
    artifact.manifest = flat
    with pytest.raises(UnsupportedError, match="channels_last needs a four-dimensional input"):
        backend().compile(request_for(backend, artifact, tmp_path, channels_last=True))


def test_a_package_takes_no_fullgraph() -> None:
    with pytest.raises(UsageError, match="leave out fullgraph"):
        TorchCompile.check(TorchCompileOptions(aot=True, fullgraph=True))
    TorchCompile.check(TorchCompileOptions(aot=True, dynamic=True))


@pytest.mark.parametrize("options", [{}, {"aot": True}])
def test_a_model_that_fixes_a_size_of_the_sweep_is_unsupported(options: dict[str, Any], tmp_path: Path) -> None:
    artifact = Built(tmp_path, FixedBatch(), shape=(4, 1, 8, 8))  # the sweep's largest
    request = request_for(TorchCompile, artifact, tmp_path, dynamic=True, **options)
    swept = DynamicShapes(axes={"x": {0: "batch"}}, ranges={"batch": (2, 4)})
    with pytest.raises(UnsupportedError, match="torch cannot leave batch free in this model") as caught:
        TorchCompile().compile(dataclasses.replace(request, dynamic=swept))
    assert "TORCH_LOGS" not in caught.value.message
    assert "specialized" in caught.value.message or "constant" in caught.value.message


def test_a_package_says_where_the_nodes_of_its_graph_compute(tmp_path: Path) -> None:
    class Splits(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
        def forward(self, x: Any) -> Any:
            a, b = x.split(1)
            return a + b + torch.ones(1, device="meta").numel()

    program = torch.export.export(Splits().eval(), (torch.ones(2, 3),))
    assert torch_package._nodes(program) == {"cpu": 3, "meta": 1}


class Layered(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    """A convolution, a norm and a linear layer, so that weights, statistics and buffers are narrowed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 3)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: Any) -> Any:
        pooled = self.norm(self.conv(x)).relu().mean((2, 3))  # (B, 4)
        return self.out(pooled) + self.steps


@pytest.mark.parametrize("backend", [Eager, TorchCompile])
@pytest.mark.parametrize(("precision", "least"), [("fp16", 1e-6), ("bf16", 1e-5)])
def test_half_precision_computes_between_float32(
    backend: type[Backend], precision: str, least: float, tmp_path: Path
) -> None:
    artifact = Built(tmp_path, Layered().eval())
    with backend().compile(request_for(backend, artifact, tmp_path, precision=precision)) as session:
        session.bind(artifact.input_set(0))
        session.execute()
        session.synchronize()
        outputs = session.outputs()
        assert precision in session.provider
    assert outputs["y"].dtype == np.float32
    assert np.abs(outputs["y"] - artifact.expected).max() > least, "it really computes in half"
    rows = drift.judge(outputs, {"y": artifact.expected}, precision=precision)
    assert drift.passed(rows), [row.reason for row in rows]
