"""NVML through its smallest surface, on a fake: mapping of devices, readings, and what a card does not support."""

from __future__ import annotations

from typing import Any  # values of a fake card

import pynvml
import pytest

from harness import nvml
from harness.errors import UnavailableError
from harness.gpu import Slowdown
from tests.fake_nvml import CONSTANTS, LACKING, FakeCard, FakeNvml, NVMLError

UNKNOWN = NVMLError(CONSTANTS["NVML_ERROR_UNKNOWN"])
UUIDS = ["GPU-11111111-aaaa", "GPU-11112222-bbbb", "GPU-33333333-cccc"]


def card(monkeypatch: pytest.MonkeyPatch, **values: Any) -> tuple[nvml.NvmlDevice, FakeCard]:
    fake = FakeCard(**values)
    FakeNvml([fake]).install(monkeypatch)
    monkeypatch.delenv(nvml.VISIBLE, raising=False)
    return nvml.device("cuda:0"), fake


def test_the_fake_has_the_names_and_numbers_of_the_real_library() -> None:
    assert {name: getattr(pynvml, name) for name in CONSTANTS} == CONSTANTS
    assert all(hasattr(pynvml, name) for name in dir(FakeNvml) if name.startswith("nvml"))


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "cuda", 0),
        (None, "cuda:2", 2),
        ("2,0", "cuda:0", 2),
        ("2,0", "cuda:1", 0),
        (" 1 , 2", "cuda:1", 2),
        (UUIDS[1], "cuda:0", 1),
        ("GPU-3,GPU-11111", "cuda:1", 0),
        ("0,GPU-33333333-cccc", "cuda:1", 2),
        (f"MIG-of-{UUIDS[1]}", "cuda:0", 1),
    ],
)
def test_devices_are_those_that_cuda_shows(
    visible: str | None, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml([FakeCard(uuid=uuid) for uuid in UUIDS]).install(monkeypatch)
    if visible is None:
        monkeypatch.delenv(nvml.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(nvml.VISIBLE, visible)
    assert nvml.device(device).uuid == UUIDS[expected]
    index = int(device.partition(":")[2] or 0)
    assert nvml.visible_devices()[index].uuid == UUIDS[expected]


@pytest.mark.parametrize(
    ("visible", "device", "offered"),
    [
        (None, "cuda:3", 3),
        (None, "cuda:x", 3),
        ("", "cuda:0", 0),
        ("-1", "cuda:0", 0),
        ("1", "cuda:1", 1),
        ("0,9,1", "cuda:1", 1),  # CUDA stops at the first wrong entry
        ("GPU-1111", "cuda:0", 0),  # fits two
        ("GPU-none", "cuda:0", 0),
        ("MIG-of-none", "cuda:0", 0),
    ],
)
def test_a_hidden_device_is_unavailable(
    visible: str | None, device: str, offered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml([FakeCard(uuid=uuid) for uuid in UUIDS]).install(monkeypatch)
    if visible is None:
        monkeypatch.delenv(nvml.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(nvml.VISIBLE, visible)
    with pytest.raises(UnavailableError, match=f"no device '{device}' on this machine: it offers {offered}"):
        nvml.device(device)


def test_without_a_driver_there_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([], broken=CONSTANTS["NVML_ERROR_LIBRARY_NOT_FOUND"]).install(monkeypatch)
    assert nvml.every_device() == []
    with pytest.raises(UnavailableError, match="NVML Shared Library Not Found"):
        nvml.device("cuda")


def test_a_full_reading_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = card(monkeypatch, reasons=0x4 | 0x40 | 0x100, heat_ns=7, processes={42: 1 << 20})
    reading = device.read(full=True)
    assert (reading.sm_mhz, reading.memory_mhz, reading.temperature_c) == (2520, 10501, 55)
    assert (reading.power_w, reading.energy_mj) == (300.0, 1_000_000)
    assert reading.slowdowns == frozenset[Slowdown](["power_cap", "overheated"])
    assert reading.slowed_ns == {"power_cap": 0, "heat": 7, "overheated": 0, "power_brake": 0}
    assert (reading.p_state, reading.pcie_generation, reading.pcie_width) == (2, 4, 16)
    assert (reading.used_bytes, reading.processes) == (500 << 20, {42: 1 << 20})


def test_a_quick_reading_asks_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    device, fake = card(monkeypatch)
    reading = device.read(full=False)
    assert (reading.sm_mhz, reading.power_w, reading.processes, reading.slowed_ns) == (2520, 300.0, None, None)
    assert not {"processes", "used_bytes", "heat_ns", "p_state"} & fake.asked.keys()


UNSUPPORTED = {
    "sm_mhz": "sm_mhz",
    "memory_mhz": "memory_mhz",
    "temperature_c": "temperature_c",
    "energy_mj": "energy_mj",
    "slowdowns": "reasons",
    "p_state": "p_state",
    "pcie_generation": "pcie_generation",
    "pcie_width": "pcie_width",
    "used_bytes": "used_bytes",
    "processes": "processes",
}


@pytest.mark.parametrize(("shown", "asked"), UNSUPPORTED.items())
def test_what_a_card_lacks_is_none_and_asked_for_once(shown: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, fake = card(monkeypatch, **{asked: LACKING})
    for _ in range(3):
        assert getattr(device.read(full=True), shown) is None
    assert fake.asked[asked] == 1


def test_a_passing_trouble_is_none_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = card(monkeypatch, temperature_c=[UNKNOWN, 55])
    assert [device.read(full=False).temperature_c for _ in range(2)] == [None, 55]


def test_zero_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Virtual GPUs answer so; and drivers that translate process ids know no memory of them.
    device, _ = card(
        monkeypatch, energy_mj=0, sm_mhz=0, instant_mw=0, average_mw=0, pcie_width=0, p_state=32, processes={42: 0}
    )
    reading = device.read(full=True)
    assert (reading.energy_mj, reading.sm_mhz, reading.power_w, reading.pcie_width, reading.p_state) == (None,) * 5
    assert reading.processes == {42: None}


def test_power_is_the_mean_of_a_second_where_there_is_no_instant_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device, fake = card(monkeypatch, instant_mw=LACKING)
    assert [device.read(full=False).power_w for _ in range(2)] == [250.0, 250.0]
    assert fake.asked["instant_mw"] == 1


def test_a_counter_that_a_card_lacks_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    device, fake = card(monkeypatch, overheated_ns=LACKING, power_brake_ns=NVMLError(2), heat_ns=5)
    for _ in range(2):
        assert device.read(full=True).slowed_ns == {"power_cap": 0, "heat": 5}
    assert (fake.asked["overheated_ns"], fake.asked["power_brake_ns"], fake.asked["heat_ns"]) == (1, 1, 2)


def test_a_card_that_is_lost_says_nothing_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = NVMLError(CONSTANTS["NVML_ERROR_GPU_IS_LOST"])
    values = dict.fromkeys((*UNSUPPORTED.values(), "instant_mw", "average_mw", "total_bytes"), lost)
    device, _ = card(monkeypatch, **values)
    reading = device.read(full=True)
    assert {getattr(reading, name) for name in (*UNSUPPORTED, "power_w")} == {None}


def test_facts_read_as_in_the_drivers_own_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = card(monkeypatch, ecc=[[0, 0]], mig=[[1, 1]], persistence=0)
    assert device.facts() == {
        "name": "NVIDIA GeForce RTX 4090",
        "driver_version": "580.95.05",
        "cuda_driver_version": "13.0",
        "memory.total": "24576 MiB",
        "clocks.max.sm": "3105 MHz",
        "power.limit": "450.00 W",
        "persistence_mode": "Disabled",
        "pcie": "4.0 x16",
        "ecc": "off",
        "mig": "on",
    }


def test_facts_leave_out_what_a_card_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    device, _ = card(monkeypatch, limit_mw=LACKING, persistence=LACKING, pcie_width=LACKING, mig=[[0, 0]])
    assert not {"power.limit", "persistence_mode", "pcie", "ecc", "mig"} & device.facts().keys()


def test_device_memory_of_a_process_is_the_drivers_figure_or_what_went(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([FakeCard(used_bytes=3 << 30, processes={41: 700})]).install(monkeypatch)
    card = nvml.card("cuda:0")
    assert card is not None and card.free_bytes is not None
    assert card.taken_bytes(41, None) == 700
    assert card.taken_bytes(42, card.free_bytes + 512) == 512, "as in a container: not listed"
    assert card.taken_bytes(42, None) == 0, "nobody can say"
    assert nvml.card("cpu") is None
    assert nvml.card("cuda:7") is None


def test_a_driver_from_before_a_function_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", object())  # the real bindings, over a library without any function
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    card = nvml.NvmlDevice(pynvml, None)
    reading = card.read(full=True)
    assert (reading.processes, reading.sm_mhz, reading.slowdowns) == (None, None, None)
    assert card.facts() == {}
