"""What disturbs measurements: each finding with a figure, and advice exactly where something is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import doctor, doctor_cpu, environment, topology
from harness.finding import Finding
from harness.topology import parse_list
from tests.fake_machine import hybrid, powercap, server, write
from tests.fake_nvml import LACKING, FakeCard, FakeNvml
from tests.support import Cli

Memory = namedtuple("Memory", "available total")
Swap = namedtuple("Swap", "used")
Times = namedtuple("Times", "user system idle steal")
Battery = namedtuple("Battery", "percent power_plugged")
Usage = namedtuple("Usage", "free")


def find(what: str) -> Finding:
    return next(finding for finding in doctor.examine(spin=False) if finding.what == what)


def test_every_finding_has_a_figure_and_advice_exactly_where_it_warns() -> None:
    findings = doctor.examine()
    assert {"load", "memory", "swap", "disk", "GPU", "virtualisation", "jitter"} <= {each.what for each in findings}
    assert len({each.what for each in findings}) == len(findings)
    for finding in findings:
        assert finding.figure
        assert bool(finding.advice) == (finding.level != "good"), finding


def test_advice_names_what_is_wrong_with_its_figure() -> None:
    good = Finding(what="swap", level="good", figure="0.0 GiB in use")
    bad = Finding(what="load", level="warn", figure="9 processes", advice="Stop them.")
    assert doctor.advice([good, bad]) == ["load: 9 processes. Stop them."]


@pytest.mark.parametrize(
    ("what", "where", "name", "wrong", "right"),
    [
        ("load", os, "getloadavg", (50.0, 0, 0), (0.0, 0, 0)),
        ("memory", psutil, "virtual_memory", Memory(1 << 30, 1 << 34), Memory(1 << 33, 1 << 34)),
        ("swap", psutil, "swap_memory", Swap(5 << 30), Swap(0)),
        ("steal", psutil, "cpu_times", Times(50, 10, 30, 10), Times(50, 10, 40, 0)),
        ("power", psutil, "sensors_battery", Battery(50, False), Battery(50, True)),
        ("disk", shutil, "disk_usage", Usage(1 << 30), Usage(1 << 40)),
        ("CPU governor", environment, "governor", "powersave", "performance"),
        ("virtualisation", environment, "container", "docker", None),
        ("GPU", environment, "gpus",
         [{"name": "RTX 4090", "driver_version": "1", "persistence_mode": "Disabled"}],
         [{"name": "RTX 4090", "driver_version": "1", "persistence_mode": "Enabled"}]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_warns_exactly_where_it_should(
    what: str, where: Any, name: str, wrong: Any, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, lambda *_, **__: wrong, raising=False)
    assert find(what).level == "warn"
    monkeypatch.setattr(where, name, lambda *_, **__: right, raising=False)
    assert find(what).level == "good"


HOT = {"reasons": 0x20, "sm_mhz": 2900}
FORGOTTEN = {"sm_mhz": 1500}
IDLE = {"reasons": 0x1, "sm_mhz": 210}


@pytest.mark.parametrize(
    ("what", "values", "level", "figure"),
    [
        ("GPU clocks", HOT, "warn", "GPU 0: SM 2900 of 3105 MHz, GPU slowed to stay cool"),
        ("GPU clocks", FORGOTTEN, "warn", "GPU 0: SM 1500 of 3105 MHz"),
        ("GPU clocks", IDLE, "good", "GPU 0: SM 210 of 3105 MHz without work"),
        ("GPU clocks", FORGOTTEN | {"reasons": LACKING}, "good", "GPU 0: SM 1500 of 3105 MHz"),
        ("GPU processes", {"processes": {812: 1, 77: None}}, "warn", "2 on GPU 0 (77, 812)"),
        ("GPU processes", {}, "good", "nobody else computes on a GPU"),
        ("GPU", {"persistence": 0}, "warn", "NVIDIA GeForce RTX 4090, driver 580.95.05"),
    ],
)
def test_gpus(what: str, values: dict[str, Any], level: str, figure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeCard(**values)]).install(monkeypatch)
    finding = find(what)
    assert (finding.level, finding.figure) == (level, figure)
    assert bool(finding.advice) == (level == "warn")


def test_gpus_that_do_not_say_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeCard(sm_mhz=LACKING, processes=LACKING)]).install(monkeypatch)
    assert not {"GPU clocks", "GPU processes"} & {finding.what for finding in doctor.examine(spin=False)}


def only(findings: list[Finding], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.what == what)
    return found


def placed(root: Path, what: str, cpus: str = "", allowed: str = "0-15") -> Finding:
    """Look at a made-up machine on which this process may use some CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "affinity", lambda: parse_list(allowed))
        return only(doctor_cpu.placement(parse_list(cpus), root), what)


def test_threads_that_may_spread_over_memory_nodes(tmp_path: Path) -> None:
    root = server(tmp_path)
    found = placed(root, "NUMA")
    assert found.level == "warn"
    assert found.figure == "node 0: CPUs 0-3,8-11; node 1: CPUs 4-7,12-15"
    assert found.advice.endswith("--cpus node0")
    assert placed(root, "NUMA", allowed="0-1,4-7").advice.endswith("--cpus node1"), "the one with more of our CPUs"
    assert placed(root, "NUMA", cpus="4-7").level == "good"
    assert placed(root, "NUMA", allowed="0-3").level == "good"


def test_threads_that_may_share_a_core(tmp_path: Path) -> None:
    root = server(tmp_path / "smt")
    found = placed(root, "SMT")
    assert (found.level, found.advice) == ("warn", "One CPU of each core: --cpus physical")
    assert "16 CPUs on 8 physical cores" in found.figure
    assert placed(root, "SMT", cpus="0-7").level == "good"
    assert placed(root, "SMT", cpus="0,8").level == "warn"
    off = placed(server(tmp_path / "off", smt=False), "SMT", allowed="0-7")
    assert (off.level, off.figure) == ("good", "8 CPU(s), each on a physical core of its own; off")


def test_cores_of_two_kinds(tmp_path: Path) -> None:
    root = hybrid(tmp_path)
    found = placed(root, "kinds of cores", allowed="0-7")
    assert (found.level, found.figure) == ("warn", "fast: CPUs 0-3; slow: CPUs 4-7")
    assert found.advice.endswith("--cpus performance")
    assert placed(root, "kinds of cores", cpus="4-7").level == "good", "all alike"
    assert not [one for one in doctor_cpu.placement(frozenset({0, 2}), root) if one.what == "kinds of cores"]


@pytest.mark.parametrize(("micros", "level"), [(150_000, "warn"), (800_000, "good")])
def test_a_quota_of_time(micros: int, level: str, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{micros} 100000"}
    found = placed(write(server(tmp_path, smt=False), files), "CPU quota", allowed="0-7")
    assert (found.level, found.figure) == (level, f"the time of {micros / 1e5:g} CPUs on 8")
    assert ("--threads 1" in found.advice) == (level == "warn")


def test_a_machine_that_shows_no_cores_has_no_findings_about_them(tmp_path: Path) -> None:
    assert doctor_cpu.placement(frozenset(), tmp_path) == []


def test_what_workers_are_tied_to_is_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[frozenset[int]] = []

    def placement(cpus: frozenset[int]) -> list[Finding]:
        asked.append(cpus)
        return []

    monkeypatch.setattr(doctor_cpu, "placement", placement)
    doctor.examine(spin=False, cpus=frozenset({3}))
    assert asked == [frozenset({3})]


def test_energy_that_only_root_may_read_is_a_note_and_no_warning(tmp_path: Path) -> None:
    assert doctor_cpu.energy(tmp_path) is None
    root = powercap(tmp_path, {0: 5})
    readable = doctor_cpu.energy(root)
    assert readable is not None
    assert readable.level == "good"
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()  # root may read whatever its mode says
    locked = doctor_cpu.energy(root)
    assert locked is not None
    assert locked.level == "note"
    assert "chmod a+r" in locked.advice
    assert doctor.advice([locked]) == [], "no number is noisier for it"


@pytest.mark.parametrize(("counts", "level"), [((0, 0), "good"), ((0, 7), "warn")])
def test_throttling_since_boot(counts: tuple[int, ...], level: str, cpu_folder: Path) -> None:
    write(cpu_folder, {f"cpu{i}/thermal_throttle/core_throttle_count": count for i, count in enumerate(counts)})
    found = find("thermal throttling")
    assert (found.level, found.figure) == (level, f"{sum(counts)} events since boot")


@pytest.fixture
def cpu_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of what the kernel shows of its CPUs."""
    monkeypatch.setattr(environment, "CPU_FOLDER", tmp_path / "cpu")
    return tmp_path / "cpu"


def test_what_the_machine_does_not_show_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "governor", lambda: None)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert not {"CPU governor", "power"} & {finding.what for finding in doctor.examine(spin=False)}


@pytest.mark.parametrize(("file", "on"), [("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")])
def test_turbo_of_both_kinds_of_kernel(file: str, on: str, cpu_folder: Path) -> None:
    off = "1" if on == "0" else "0"
    for text, level in ((on, "warn"), (off, "good")):
        write(cpu_folder, {file: text})
        finding = find("turbo")
        assert finding.level == level
        assert environment.describe([]).turbo == (level == "warn")
        if level == "warn":
            assert f"echo {off} | sudo tee {cpu_folder / file}" in finding.advice, "what it says turns it off"


def test_disk_is_that_of_the_cache_even_before_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "not" / "yet"))
    assert str(tmp_path / "not" / "yet") in find("disk").figure


def test_command_prints_a_table_or_json(cli: Cli) -> None:
    table, as_json = cli("doctor"), cli("doctor", "--json")
    assert table.returncode == as_json.returncode == 0
    findings = json.loads(as_json.stdout)
    assert {"what", "level", "figure", "advice"} == set(findings[0])
    assert all(finding["what"] in table.stdout for finding in findings)
