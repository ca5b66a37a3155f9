"""A stand-in for nvidia-ml-py (`pynvml`) with devices that follow a script: there is no GPU where most tests run.

In a test: `FakeNvml([FakeCard(...)]).install(monkeypatch)`. In another process: a copy of this file named `pynvml.py`
on PYTHONPATH, its devices in the JSON file that FAKE_NVML names; what is locked and reset is appended to the file
that FAKE_NVML_LOG names. Imports nothing of this project.

A value of a card is one of: a plain value; a list, one value a look, its last one for good; a mapping with `per_s`, a
counter that runs; an `NVMLError` to raise, in JSON {"error": number}; a callable.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

CONSTANTS = {
    "NVML_SUCCESS": 0,
    "NVML_ERROR_INVALID_ARGUMENT": 2,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_GPU_IS_LOST": 15,
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH": 25,
    "NVML_ERROR_UNKNOWN": 999,
    "NVML_CLOCK_SM": 1,
    "NVML_CLOCK_MEM": 2,
    "NVML_TEMPERATURE_GPU": 0,
    "NVML_FEATURE_ENABLED": 1,
    "NVML_CLOCK_LIMIT_ID_TDP": 0xFFFFFF01,
    "NVML_FI_DEV_PERF_POLICY_POWER": 74,
    "NVML_FI_DEV_PERF_POLICY_THERMAL": 75,
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN": 270,
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN": 271,
    "nvmlClocksEventReasonGpuIdle": 0x1,
    "nvmlClocksEventReasonSwPowerCap": 0x4,
    "nvmlClocksEventReasonHwSlowdown": 0x8,
    "nvmlClocksEventReasonSwThermalSlowdown": 0x20,
    "nvmlClocksEventReasonHwThermalSlowdown": 0x40,
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": 0x80,
}
"""As in pynvml 13.615.71; a test holds them against the real one."""
WORDS = {
    3: "Not Supported",
    4: "Insufficient Permissions",
    6: "Not Found",
    12: "NVML Shared Library Not Found",
    15: "GPU is lost",
}
FIELDS = {186: "instant_mw", 74: "power_cap_ns", 75: "heat_ns", 270: "overheated_ns", 271: "power_brake_ns"}
UNSIGNED_LONG_LONG = 3


class NVMLError(Exception):
    """As in pynvml: the code is `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(WORDS.get(value, f"error {value}"))
        self.value = value


LACKING = NVMLError(CONSTANTS["NVML_ERROR_NOT_SUPPORTED"])


@dataclass
class FakeCard:
    """A card; by default an RTX 4090 that is at work, undisturbed."""

    uuid: Any = "GPU-11111111-aaaa"
    name: Any = "NVIDIA GeForce RTX 4090"
    sm_mhz: Any = 2520
    max_sm_mhz: Any = 3105
    memory_mhz: Any = 10501
    temperature_c: Any = 55
    instant_mw: Any = 300_000
    average_mw: Any = 250_000
    limit_mw: Any = 450_000
    energy_mj: Any = 1_000_000
    reasons: Any = 0
    power_cap_ns: Any = 0
    heat_ns: Any = 0
    overheated_ns: Any = 0
    power_brake_ns: Any = 0
    p_state: Any = 2
    pcie_generation: Any = 4
    pcie_width: Any = 16
    total_bytes: Any = 24 << 30
    used_bytes: Any = 500 << 20
    processes: Any = field(default_factory=dict)
    """Process id -> bytes."""
    persistence: Any = 1
    mig: Any = LACKING
    ecc: Any = LACKING
    lock: Any = None
    """What locking its clocks answers."""
    asked: dict[str, int] = field(default_factory=dict)
    """Value -> how often it was asked for."""

    def look(self, what: str) -> Any:
        count = self.asked.get(what, 0)
        self.asked[what] = count + 1
        value = getattr(self, what)
        if isinstance(value, list):
            value = value[min(count, len(value) - 1)]
        if isinstance(value, dict) and "error" in value:
            value = NVMLError(value["error"])
        if isinstance(value, dict) and "per_s" in value:
            value = int(value.get("from", 0) + value["per_s"] * time.monotonic())
        if callable(value):
            value = value()
        if isinstance(value, NVMLError):
            raise value
        return value


class FakeNvml:
    """The functions of the library that harness calls."""

    NVMLError = NVMLError

    def __init__(
        self, cards: list[FakeCard], *, driver: str = "580.95.05", broken: int | None = None, log: str | None = None
    ) -> None:
        self.cards = cards
        self.driver = driver
        self.broken = broken
        """What `nvmlInit` answers."""
        self.log = log
        self.calls: list[str] = []
        self.__dict__.update(CONSTANTS)

    def install(self, monkeypatch: Any) -> FakeNvml:
        """Be `pynvml` for the length of a test."""
        monkeypatch.setitem(sys.modules, "pynvml", self)
        return self

    def _write(self, line: str) -> None:
        self.calls.append(line)
        if self.log:
            with open(self.log, "a") as file:
                file.write(line + "\n")

    # ---- the library's names

    def nvmlInit(self) -> None:
        if self.broken is not None:
            raise NVMLError(self.broken)

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeCard:
        for card in self.cards:
            if uuid in (card.uuid, f"MIG-of-{card.uuid}"):
                return card
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)  # type: ignore[attr-defined]  # from CONSTANTS

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: FakeCard) -> FakeCard:
        return card

    def nvmlDeviceGetUUID(self, card: FakeCard) -> Any:
        return card.look("uuid")

    def nvmlDeviceGetName(self, card: FakeCard) -> Any:
        return card.look("name")

    def nvmlDeviceGetClockInfo(self, card: FakeCard, clock: int) -> Any:
        return card.look("sm_mhz" if clock == CONSTANTS["NVML_CLOCK_SM"] else "memory_mhz")

    def nvmlDeviceGetMaxClockInfo(self, card: FakeCard, clock: int) -> Any:
        return card.look("max_sm_mhz")

    def nvmlDeviceGetTemperature(self, card: FakeCard, sensor: int) -> Any:
        return card.look("temperature_c")

    def nvmlDeviceGetPowerUsage(self, card: FakeCard) -> Any:
        return card.look("average_mw")

    def nvmlDeviceGetPowerManagementLimit(self, card: FakeCard) -> Any:
        return card.look("limit_mw")

    def nvmlDeviceGetTotalEnergyConsumption(self, card: FakeCard) -> Any:
        return card.look("energy_mj")

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: FakeCard) -> Any:
        return card.look("reasons")

    def nvmlDeviceGetPerformanceState(self, card: FakeCard) -> Any:
        return card.look("p_state")

    def nvmlDeviceGetCurrPcieLinkGeneration(self, card: FakeCard) -> Any:
        return card.look("pcie_generation")

    def nvmlDeviceGetCurrPcieLinkWidth(self, card: FakeCard) -> Any:
        return card.look("pcie_width")

    nvmlDeviceGetMaxPcieLinkGeneration = nvmlDeviceGetCurrPcieLinkGeneration
    nvmlDeviceGetMaxPcieLinkWidth = nvmlDeviceGetCurrPcieLinkWidth

    def nvmlDeviceGetPersistenceMode(self, card: FakeCard) -> Any:
        return card.look("persistence")

    def nvmlDeviceGetMigMode(self, card: FakeCard) -> Any:
        return card.look("mig")

    def nvmlDeviceGetEccMode(self, card: FakeCard) -> Any:
        return card.look("ecc")

    def nvmlDeviceGetMemoryInfo(self, card: FakeCard) -> Any:
        total, used = card.look("total_bytes"), card.look("used_bytes")
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, card: FakeCard) -> Any:
        listed = card.look("processes")
        return [SimpleNamespace(pid=int(pid), usedGpuMemory=bytes_) for pid, bytes_ in listed.items()]

    def nvmlDeviceGetFieldValues(self, card: FakeCard, fields: tuple[int, ...]) -> Any:
        return [self._field(card, number) for number in fields]

    def _field(self, card: FakeCard, number: int) -> Any:
        try:
            value = card.look(FIELDS[number])
        except NVMLError as exc:
            return SimpleNamespace(nvmlReturn=exc.value, valueType=0, value=None)
        return SimpleNamespace(nvmlReturn=0, valueType=UNSIGNED_LONG_LONG, value=SimpleNamespace(ullVal=value))

    def nvmlDeviceSetGpuLockedClocks(self, card: FakeCard, low: int, high: int) -> None:
        self._write(f"lock {card.uuid} {low} {high}")
        card.look("lock")

    def nvmlDeviceResetGpuLockedClocks(self, card: FakeCard) -> None:
        self._write(f"reset {card.uuid}")


_shared: FakeNvml | None = None


def __getattr__(name: str) -> Any:
    """Answer as the library for a copy of this file named `pynvml`."""
    global _shared
    if name.startswith("__") or "FAKE_NVML" not in os.environ:
        raise AttributeError(name)
    if _shared is None:
        with open(os.environ["FAKE_NVML"]) as file:
            cards = [FakeCard(**values) for values in json.load(file)]
        _shared = FakeNvml(cards, log=os.environ.get("FAKE_NVML_LOG"))
    return getattr(_shared, name)
