"""The fingerprint of the machine: complete where files are missing, and within a container's limits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from harness import environment
from harness.gpu import name_of
from harness.records import Environment
from harness.topology import Topology
from tests.fake_machine import server, write
from tests.fake_nvml import CONSTANTS, FakeCard, FakeNvml, NVMLError


def test_fingerprint_goes_through_json() -> None:
    found = environment.describe(["advice"])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found
    assert found.cpu
    assert found.advice == ["advice"]
    assert found.cores >= 1
    assert found.memory_bytes > 0
    assert found.libraries.keys() <= set(environment.LIBRARIES)


def test_a_fingerprint_of_an_earlier_harness_is_read() -> None:
    found = msgspec.to_builtins(environment.describe([]))
    for name in ("numa_nodes", "smt", "turbo", "min_mhz", "max_mhz", "microcode"):
        del found[name]
    assert msgspec.convert(found, type=Environment).numa_nodes is None


def test_state_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Topology.read(server(tmp_path / "machine"), range(16))
    monkeypatch.setattr(Topology, "read", lambda: layout)
    monkeypatch.setattr(environment, "CPU_FOLDER", tmp_path / "cpu")
    unknown = environment.describe([])
    assert (unknown.numa_nodes, unknown.smt) == (2, True)
    assert (unknown.turbo, unknown.min_mhz, unknown.max_mhz) == (None, None, None)
    write(
        tmp_path / "cpu",
        {
            "cpufreq/boost": 0,
            "cpu0/cpufreq/scaling_min_freq": 800_000,
            "cpu0/cpufreq/scaling_max_freq": 3_400_000,
            "cpu1/cpufreq/scaling_min_freq": 550_000,
            "cpu1/cpufreq/scaling_max_freq": 4_250_000,
        },
    )
    known = environment.describe([])
    assert (known.turbo, known.min_mhz, known.max_mhz) == (False, 550.0, 4250.0)


def test_threads_default_to_physical_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= environment.default_threads() <= environment.usable_cores()
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    assert environment.default_threads() == 1
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64)
    monkeypatch.setattr(environment, "usable_cores", lambda: 3)
    assert environment.default_threads() == 3
    assert environment.default_threads(cores=5) == 5, "of CPUs that were chosen"


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (16.0, 8), (2.5, 2), (0.5, 1)])
def test_threads_default_to_the_time_that_may_be_used(
    quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    assert environment.default_threads(cores=8) == threads


def test_usable_cores_follow_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert environment.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("limit", "expected"), [("1073741824\n", 1 << 30), ("max\n", None), (None, None), ("", None)])
def test_memory_is_that_of_the_container(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(environment, "CGROUP_LIMIT", file)
    assert environment.memory_bytes() == (expected or psutil.virtual_memory().total)


def test_governors_of_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CPU_FOLDER", tmp_path)
    assert environment.governor() is None
    for index, name in enumerate(["powersave", "performance", "powersave"]):
        folder = tmp_path / f"cpu{index}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(name + "\n")
    assert environment.governor() == "performance, powersave"


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess([], 0, stdout=answer, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def test_gpus_are_all_cards_that_the_driver_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeCard(), FakeCard(name="NVIDIA H100")]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the machine is the same, whatever this process may use of it
    assert [gpu["name"] for gpu in environment.gpus()] == ["NVIDIA GeForce RTX 4090", "NVIDIA H100"]


@pytest.mark.parametrize(
    ("visible", "numbers"), [(None, ["0", "1"]), ("1,0", ["1", "0"]), ("1", [None, "0"]), ("", [None, None])]
)
def test_gpus_have_the_numbers_that_workers_see(
    visible: str | None, numbers: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [FakeCard(uuid="GPU-1"), FakeCard(uuid="GPU-2", name="NVIDIA H100")]
    FakeNvml(cards).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = environment.describe([])
    assert [gpu.get("device") for gpu in machine.gpus] == [number and f"cuda:{number}" for number in numbers]
    seen = {number: card.name for number, card in zip(numbers, cards, strict=True) if number is not None}
    assert environment.visible_gpus() == [seen[number] for number in sorted(seen)]
    if seen:
        assert [name_of(f"cuda:{number}", machine.gpus) for number in range(3)] == [seen.get(str(n)) for n in range(3)]
        assert name_of("cuda", machine.gpus) == seen["0"]


def test_gpus_of_a_record_without_numbers_are_in_order() -> None:
    gpus = [{"name": "RTX 4090"}, {"name": "H100"}]
    assert [name_of(f"cuda:{number}", gpus) for number in range(3)] == ["RTX 4090", "H100", None]


def test_a_card_that_fell_off_the_bus_is_still_listed_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = NVMLError(CONSTANTS["NVML_ERROR_GPU_IS_LOST"])
    FakeNvml([FakeCard(name=lost, uuid=lost)]).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.gpu_identity("cuda:0") == "a GPU, driver 580.95.05"
    assert environment.visible_gpus() == ["a GPU"]


@pytest.mark.parametrize("code", [9, 12, 18, 999])
def test_no_driver_no_gpus(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([], broken=code).install(monkeypatch)
    assert environment.gpus() == []


def test_commit_is_of_this_checkout_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "abc123-dirty\n")
    assert environment.describe([]).git_commit in ("abc123-dirty", None)
    answering(monkeypatch, FileNotFoundError())
    assert environment.describe([]).git_commit is None


def test_versions_of_what_is_installed() -> None:
    found = environment.library_versions(["numpy", "click", "no-such-distribution"])
    assert set(found) == {"click", "numpy"}
    assert list(found) == sorted(found)
    import numpy

    assert found["numpy"] == numpy.__version__


def test_broken_distribution_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "~umpy-1.0.dist-info").mkdir()  # what pip leaves behind when it is interrupted
    (tmp_path / "empty-1.0.dist-info").mkdir()
    (tmp_path / "empty-1.0.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "numpy" in environment.library_versions(["numpy"])


def test_names_are_compared_as_pip_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Some_Library-2.5.dist-info").mkdir()
    (tmp_path / "Some_Library-2.5.dist-info" / "METADATA").write_text("Name: Some_Library\nVersion: 2.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.library_versions(["some-library"]) == {"some-library": "2.5"}
