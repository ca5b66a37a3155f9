"""A comparison on a GPU that is not there, as a user runs it: a fake driver, everything else real."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any  # parsed JSON

import pytest

from tests import fake_nvml
from tests.support import PLUGINS, Cli, rows_of

MB = 1 << 20
SHARED = {
    "energy_mj": {"per_s": 250_000},
    "used_bytes": {"per_s": 3 * MB},
    "processes": {"999999": 700 * MB},
    "mig": {"error": 3},
    "ecc": {"error": 3},
}
"""A card that somebody else computes on, seen from a container: the driver does not list our own workers."""


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine with such a card."""
    library = tmp_path / "library"
    library.mkdir()
    shutil.copy(fake_nvml.__file__, library / "pynvml.py")
    (library / "cards.json").write_text(json.dumps([SHARED]))
    return {"PYTHONPATH": f"{library}:{PLUGINS}", "FAKE_NVML": str(library / "cards.json"), "CUDA_VISIBLE_DEVICES": "0"}


def test_a_shared_card_is_seen_and_said(gpu: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    done = cli("compare", "--model", "tiny", "--backends", "fake-device", "--quick", "--json", environment=gpu)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    (row,) = rows_of(done)
    assert row["energy"]["by"] == "counter"
    (run,) = (tmp_path / "results").glob("*/run.json")
    (sitting, *_) = json.loads(run.read_text())["workloads"][0]["launches"][0]["sittings"]
    samples: list[int] = sitting["energy"][0]["samples_ns"]
    mean_s = sum(samples) / len(samples) / 1e9
    assert row["energy"]["mj"] == pytest.approx(250_000 * mean_s, rel=0.1), "250 W for as long as an inference takes"
    assert row["device_memory"]["by"] == "device"
    assert row["dropped_windows"] == 0, "none would be left"
    assert row["disturbed"] == {"another process on the GPU": row["windows"]}
    workload = report["workloads"][0]
    assert any("would not be noticed" in note for note in workload["notes"])
    assert "disturbed in every window of fake-device" in workload["closing"]
    assert report["environment"]["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090"
    shown: subprocess.CompletedProcess[str] = cli("show", environment=gpu)
    assert "no window was left without a disturbance of the GPU" in shown.stdout
    assert "device memory" in shown.stdout


def test_locking_clocks_of_a_cpu_is_refused_and_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    done = cli("compare", "--model", "tiny", "--backends", "fake-ok", "--quick", "--lock-clocks")
    assert done.returncode == 2
    assert "error: --lock-clocks is for GPUs, and this run is on cpu" in done.stderr
    assert not any((tmp_path / "results").glob("*"))


def test_clocks_are_locked_for_the_run_and_given_back(gpu: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "clocks.log"
    run = ["compare", "--model", "tiny", "--device", "cuda", "--backends", "fake-device", "--quick", "--json"]
    done = cli(*run, "--lock-clocks", "1500", environment={**gpu, "FAKE_NVML_LOG": str(log)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["lock_clocks"] == 1500
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls == ["lock", "reset"], log.read_text()
