"""TensorRT on a GPU, with and without CUDA graphs: outputs agree, and layers are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from backends.tensorrt_layers import LAYERS
from harness.artifact import Artifact
from tests.gpu.conftest import DEVICE
from tests.support import Cli

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cases(name: str, cli: Cli, tiny: Artifact, tmp_path: Path) -> list[dict[str, Any]]:
    """Compare the tiny model as it is and as a CUDA graph, and return the records."""
    asked = f"{name},{name}:cuda_graph=true"
    done = cli("compare", "--model", "tiny", "--backends", asked, "--device", DEVICE, "--quick")
    (path,) = tmp_path.glob("results/*/run.json")
    found: list[dict[str, Any]] = json.loads(path.read_text())["workloads"][0]["cases"]
    if any(case["status"] == "unavailable" for case in found):
        if name in os.environ.get("HARNESS_REQUIRE", "").split(","):
            pytest.fail(done.stdout)
        pytest.skip(str(found[0]["failure"]["message"]))
    return found


def test_engines_run_agree_and_keep_their_layers(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        assert case["status"] == "ok", case["failure"]
        assert case["placement"] == {"cuda": case["facts"]["layers"]}
        layers = json.loads((Path(case["engine"]) / LAYERS).read_text())["layers"]
        assert len(layers) == case["facts"]["layers"] > 0
        assert "float32" in case["facts"]["layer_outputs"], "the inspector's data types were not understood"
    assert "cuda_graph" not in cases[0]["facts"] and cases[1]["facts"]["cuda_graph"] is True
