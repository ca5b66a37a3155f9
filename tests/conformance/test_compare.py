"""One whole comparison over every backend, for real: the path that `make compare` takes, on the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.artifact import Artifact
from tests.support import RUN_CLI

QUICK = {"tvm": "tvm:tuning_seconds=3"}
BACKENDS = [QUICK.get(name, name) for name in sorted(registry.BACKENDS)]
EXPECTED = {"tensorrt-rtx": {"ok", "compiled"}}
"""Status of a backend that is installed; without a GPU TensorRT-RTX only builds."""


@pytest.fixture(scope="module")
def table(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the comparison and return what its JSON says of the one workload."""
    done = subprocess.run(
        [
            *(sys.executable, str(RUN_CLI), "compare", "--model", "tiny", "--quick", "--json"),
            *("--baseline", "eager", "--backends", ",".join(BACKENDS)),
        ],
        cwd=tmp_path_factory.mktemp("compare"),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)["workloads"][0]
    return answer


def row_of(table: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return a backend's row."""
    return next(row for row in table["rows"] if row["backend"] == backend)


def test_every_backend_has_a_row(table: dict[str, Any]) -> None:
    assert sorted(row["backend"] for row in table["rows"]) == sorted(registry.BACKENDS)


def test_status(table: dict[str, Any], backend: str) -> None:
    row = row_of(table, backend)
    if row["status"] == "unavailable":
        assert backend not in os.environ.get("HARNESS_REQUIRE", "").split(","), row["failure"]
        assert row["failure"]["message"]
        assert row["failure"]["hint"]
        return
    assert row["status"] in EXPECTED.get(backend, {"ok"}), row["failure"]
    assert row["version"]
    assert row["provider"]


def test_stages_and_numbers(table: dict[str, Any], backend: str) -> None:
    row = row_of(table, backend)
    if row["status"] == "unavailable":
        pytest.skip(f"{backend}: {row['failure']['message']}")
    built = {"import", "compile", "save"}
    assert built <= set(row["stages"])
    assert row["peak_compile_bytes"] > 0
    if registry.backend(backend).capabilities.saves_engines:
        assert row["engine_bytes"] > 0
        assert Path(row["engine"]).is_dir()
    if row["status"] == "ok":
        ran = {"first_run", "second_run", "warm_import", "warm_load", "warm_first_run"}
        assert ran <= set(row["stages"])
        assert row["compute"]["samples"] > 0
        assert row["host_to_host"]["samples"] > 0
        assert row["peak_bytes"] > 0
        assert len(row["drift"]) == table["info"]["input_sets"]


def test_baseline_and_control(table: dict[str, Any]) -> None:
    assert table["baseline"] == "eager"
    assert table["control"]["verdict"] == "UNDECIDED", "one launch has no verdicts"
    assert table["noise_floor"] is None
