"""`harness profile` for real: one product that dwarfs all around it is on top, and every node is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, RUN_CLI

BACKENDS = ("eager", "onnxruntime", "torch-compile", "tvm:tuner=none")
ITERATIONS = 9


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Profile the planted model with everything that runs on a CPU."""
    command = [sys.executable, str(RUN_CLI), "profile", "--model", "tests.conformance.planted:make"]
    command += [
        "--backends",
        ",".join(BACKENDS),
        "--iterations",
        str(ITERATIONS),
        "--input-sets",
        "1",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [*command, "--json", "--out", str(tmp_path_factory.mktemp("profile"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=BACKENDS)
def case(record: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in record["workloads"][0]["cases"] if one["id"] == request.param)
    if found["status"] == "unavailable" and found["backend"] not in os.environ.get("HARNESS_REQUIRE", "").split(","):
        pytest.skip(f"{found['id']} is not installed")
    assert found["status"] == "ok", found["failure"]
    return found


def test_the_expensive_node_is_on_top(case: dict[str, Any]) -> None:
    ops = {node["name"]: node["op"] for node in case["nodes"]}
    took: dict[str, int] = {}
    for operator in case["profile"]["operators"]:
        for name in operator["nodes"]:
            took[name] = took.get(name, 0) + operator["total_ns"]
    (large,) = [
        name for name, op in ops.items() if op in ("MatMul", "Gemm") and name == max(took, key=took.__getitem__)
    ]
    products = [name for name, op in ops.items() if op in ("MatMul", "Gemm")]
    assert large == products[1], "the second of three is the large one"


def test_operators_take_no_longer_than_their_iterations(case: dict[str, Any]) -> None:
    assert len(case["profiled_ns"]) == ITERATIONS
    assert 0 < sum(one["total_ns"] for one in case["profile"]["operators"]) <= 1.02 * sum(case["profiled_ns"])
    assert len(case["plain_ns"]) >= ITERATIONS


def test_every_node_is_mapped_fused_or_eliminated(case: dict[str, Any]) -> None:
    done = {name for operator in case["profile"]["operators"] for name in operator["nodes"]}
    assert done | set(case["profile"]["eliminated"]) == {node["name"] for node in case["nodes"]}
    assert not done & set(case["profile"]["eliminated"])
    assert not case["profile"]["notes"]


def test_nothing_of_it_is_a_comparison(record: dict[str, Any]) -> None:
    folder = Path(record["id"]).name
    assert "profile" in folder
    assert record["run"] is None
