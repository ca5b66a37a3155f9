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

from harness import doctor, environment
from harness.doctor import Finding
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
        assert bool(finding.advice) == (finding.level == "warn"), finding


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


def test_what_the_machine_does_not_show_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "governor", lambda: None)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert not {"CPU governor", "power"} & {finding.what for finding in doctor.examine(spin=False)}


@pytest.mark.parametrize(("file", "on"), [("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")])
def test_turbo_of_both_kinds_of_kernel(file: str, on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    off = "1" if on == "0" else "0"
    for text, level in ((on, "warn"), (off, "good")):
        monkeypatch.setattr(doctor, "_read", lambda path, text=text: text if path.endswith(file) else None)
        finding = find("turbo")
        assert finding.level == level
        if level == "warn":
            assert f"echo {off} | sudo tee /sys" in finding.advice, "what it says turns it off"


def test_disk_is_that_of_the_cache_even_before_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "not" / "yet"))
    assert str(tmp_path / "not" / "yet") in find("disk").figure


def test_command_prints_a_table_or_json(cli: Cli) -> None:
    table, as_json = cli("doctor"), cli("doctor", "--json")
    assert table.returncode == as_json.returncode == 0
    findings = json.loads(as_json.stdout)
    assert {"what", "level", "figure", "advice"} == set(findings[0])
    assert all(finding["what"] in table.stdout for finding in findings)
