"""Energy of the processor's packages: which counters count, how they wrap around, what an unreadable one means."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import rapl
from harness.rapl import Meter, domains, spent_j, state
from harness.records import Window
from tests.fake_machine import powercap, write

COUNTER = "sys/class/powercap/intel-rapl:{}/energy_uj"


def test_packages_are_counted_and_nothing_twice(tmp_path: Path) -> None:
    root = powercap(tmp_path, {0: 1_000_000, 1: 5_000_000})
    assert [each.energy.parent.name for each in domains(root)] == ["intel-rapl:0", "intel-rapl:1"]
    meter = Meter(root)
    write(root, {COUNTER.format(0): 3_500_000, COUNTER.format(1): 5_250_000})
    assert meter.joules() == pytest.approx(2.75)


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    root = powercap(tmp_path, {0: 9_000_000}, range_uj=10_000_000)
    meter = Meter(root)
    write(root, {COUNTER.format(0): 500_000})
    assert meter.joules() == pytest.approx(1.5)


def test_a_counter_that_stands_still_is_no_turn() -> None:
    path = Path("energy_uj")
    assert spent_j({path: 7}, {path: 7}, {path: 100}) == 0.0


def test_what_cannot_be_read_is_none_and_not_zero(tmp_path: Path) -> None:
    assert Meter(tmp_path).joules() is None
    root = powercap(tmp_path, {0: 1, 1: 1})
    before = Meter(root)
    (root / COUNTER.format(1)).write_text("garbage\n")
    assert before.joules() is None, "it went away in between"
    assert Meter(root).joules() is None


def test_state(tmp_path: Path) -> None:
    assert state(tmp_path) == "absent"
    root = powercap(tmp_path, {0: 1})
    assert state(root) == "readable"
    (root / COUNTER.format(0)).unlink()  # its mode would not keep root, as whom tests may run, from reading
    assert state(root) == "locked"


def test_this_machine_answers_as_it_can() -> None:
    assert (Meter().joules() is not None) == (rapl.state() == "readable")


def test_windows_of_an_earlier_harness_have_none() -> None:
    assert Window(round=0, position=0, start_ns=0, samples_ns=[]).package_energy_j is None
