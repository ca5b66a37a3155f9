"""ONNX Runtime's providers on a GPU: each runs there, is told what was asked for, and agrees with the reference."""

from __future__ import annotations

import json

import pytest

from tests.support import Cli

pytestmark = pytest.mark.gpu

CUDA = (
    "onnxruntime",
    "onnxruntime:precision=tf32",
    "onnxruntime:cudnn_search=heuristic",
    "onnxruntime:cuda_graph=true",
    "onnxruntime:precision=fp16",
)
NEED_MORE = (
    "onnxruntime:provider=tensorrt",
    "onnxruntime:provider=tensorrt,cuda_graph=true",
    "onnxruntime:provider=nv-tensorrt-rtx",
)
"""What an ordinary environment lacks: TensorRT 10, or NVIDIA's plug-in."""


def test_each_provider_runs_on_the_device(usable_onnxruntime: None, cli: Cli) -> None:
    # `warm load` in the rows means that what was saved was loaded in a fresh process.
    backends = ",".join((*CUDA, *NEED_MORE))
    done = cli(
        "compare", "--model", "resnet50", "--device", "cuda", "--backends", backends, "--quick", "--json", timeout=1500
    )
    rows = {row["id"]: row for row in json.loads(done.stdout)["workloads"][0]["rows"]}
    for name in CUDA:
        row = rows[name]
        assert row["status"] == "ok", (name, row["failure"])
        assert row["placement"]["cuda"] > 0
        assert row["facts"]["tf32"] is ("precision=tf32" in name)
        assert row["facts"]["cuda_graph"] is ("cuda_graph=true" in name)
        assert row["on_device"] is None or row["on_device"]["p50_ns"]["value"] > 0
    for name in NEED_MORE:
        row = rows[name]
        assert row["status"] in ("ok", "unavailable"), (name, row["failure"])
        if row["status"] == "ok":
            assert row["facts"]["tf32"] is False and row["placement"]["cuda"] > 0


@pytest.fixture
def usable_onnxruntime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this build of onnxruntime is for the CPU only")
