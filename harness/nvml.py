"""NVIDIA's management library: which devices there are, which of them is `cuda:N`, what a card is and what it reads.

nvidia-ml-py is imported when it is first needed. NVML counts devices in PCI bus order and knows nothing of
CUDA_VISIBLE_DEVICES: workers are given the same order, and the variable is read here as CUDA reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any  # handles and structures of a library without types

from harness.errors import UnavailableError
from harness.gpu import GpuReading, Slowdown
from harness.measure import now_ns

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COUNTERS: Mapping[Slowdown, str] = {
    "power_cap": "NVML_FI_DEV_PERF_POLICY_POWER",
    "heat": "NVML_FI_DEV_PERF_POLICY_THERMAL",
    "overheated": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "power_brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
"""Nanoseconds since the driver was loaded. They catch what came and went between two readings.

The last two changed their number within driver 580. One that means something else by it answers that the card does not
support it, or with a constant: the bits below must do there."""
_BITS: Mapping[Slowdown, str] = {
    "power_cap": "nvmlClocksEventReasonSwPowerCap",
    "heat": "nvmlClocksEventReasonSwThermalSlowdown",
    "overheated": "nvmlClocksEventReasonHwThermalSlowdown",
    "power_brake": "nvmlClocksEventReasonHwPowerBrakeSlowdown",
    "hardware": "nvmlClocksEventReasonHwSlowdown",
}
_LASTING = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
)
"""What a card, a driver or a user without rights answers today and will answer tomorrow."""
_VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of a field's value, by its type's number."""


def library() -> Any:
    """Return nvidia-ml-py, initialised.

    Raises:
        UnavailableError: There is no driver; the message says which part is missing.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        raise UnavailableError(
            f"the NVIDIA driver cannot be asked: {exc}",
            hint="install the NVIDIA driver, or run on a machine with an NVIDIA GPU",
        ) from exc
    return pynvml


def device(name: str) -> NvmlDevice:
    """Return the card that a worker of ours would see as `cuda` or `cuda:N`.

    Raises:
        UnavailableError: There is no driver, or it offers no such device to this process.
    """
    nvml = library()
    number = name.partition(":")[2] or "0"
    try:
        handles = _visible(nvml, os.environ.get(VISIBLE))
    except nvml.NVMLError as exc:
        raise UnavailableError(f"the NVIDIA driver cannot list its devices: {exc}") from exc
    if not number.isdecimal() or int(number) >= len(handles):
        hidden = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise UnavailableError(f"no device '{name}' on this machine: it offers {len(handles)}{hidden}")
    return NvmlDevice(nvml, handles[int(number)])


def card(name: str) -> NvmlDevice | None:
    """Return the card of `cuda` or `cuda:N`, or None for the CPU, without a driver, or where there is no such card."""
    if name.partition(":")[0] != "cuda":
        return None
    try:
        return device(name)
    except UnavailableError:
        return None


def visible_devices() -> list[NvmlDevice]:
    """Return the cards that CUDA offers to our workers, `cuda:0` first; none where there is no driver."""
    return _listed(lambda nvml: _visible(nvml, os.environ.get(VISIBLE)))


def every_device() -> list[NvmlDevice]:
    """Return all cards of this machine, visible to CUDA or not; none where there is no driver."""
    return _listed(_handles)


def _listed(handles: Callable[[Any], Iterable[Any]]) -> list[NvmlDevice]:  # both are pynvml's own, untyped
    try:
        nvml = library()
    except UnavailableError:
        return []
    try:
        return [NvmlDevice(nvml, handle) for handle in handles(nvml)]
    except nvml.NVMLError:
        return []


def _visible(nvml: Any, visible: str | None) -> list[Any]:
    """Return handles in CUDA's order: all, or those that the variable names, up to the first that it names wrongly.

    An entry is an index or the beginning of a UUID that fits one device only. A part of a card (MIG) stands for the
    card: clocks, power and throttling are the whole card's.
    """
    handles = _handles(nvml)
    if visible is None:
        return handles
    found: list[Any] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            try:
                part = nvml.nvmlDeviceGetHandleByUUID(entry)
                found.append(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part))
            except nvml.NVMLError:
                break
        elif entry.startswith("GPU-"):
            matching = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(entry)]
            if len(matching) != 1:
                break
            found += matching
        elif entry.isdecimal() and int(entry) < len(handles):
            found.append(handles[int(entry)])
        else:
            break
    return found


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


class NvmlDevice:
    """One card. What it does not support is asked for once and is None from then on."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle
        self._lasting = {getattr(nvml, name) for name in _LASTING}
        self._lacks: set[object] = set()

    def ask(self, function: str, *arguments: object) -> Any:
        """Return what a function of NVML says of this device, or None where it says nothing."""
        key = (function, *arguments)
        if key in self._lacks:
            return None
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except self.nvml.NVMLError as exc:
            if exc.value in self._lasting:
                self._lacks.add(key)
            return None

    @property
    def uuid(self) -> str | None:
        """The card's own name, whatever the order of devices."""
        found: str | None = self.ask("nvmlDeviceGetUUID")
        return found

    @property
    def free_bytes(self) -> int | None:
        """Device memory that nobody uses."""
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        return int(memory.free) if memory is not None else None

    def taken_bytes(self, pid: int, free_before: int | None) -> int:
        """Return the device memory of a process, 0 where nobody can say.

        By the driver's list where the process is in it, else by how much less is free than before it came.
        """
        listed = (self.processes() or {}).get(pid)
        if listed is not None:
            return listed
        free = self.free_bytes
        return max(0, free_before - free) if free is not None and free_before is not None else 0

    @property
    def sm_mhz(self) -> int | None:
        """The SM clock at this moment."""
        return self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")

    @property
    def max_sm_mhz(self) -> int | None:
        """The highest clock that the card can be set to."""
        return self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM")

    def read(self, *, full: bool) -> GpuReading:
        """Look at the card once; see `harness.gpu.GpuSource`."""
        at_ns = now_ns()
        fields = self._fields(["NVML_FI_DEV_POWER_INSTANT", *(_COUNTERS.values() if full else ())])
        power_mw = fields["NVML_FI_DEV_POWER_INSTANT"] or self.ask("nvmlDeviceGetPowerUsage")
        quick: dict[str, Any] = {
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            "temperature_c": self.ask("nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU),
            "power_w": power_mw / 1000 if power_mw else None,
            "energy_mj": self.ask("nvmlDeviceGetTotalEnergyConsumption") or None,
            "slowdowns": self.slowdowns(),
        }
        if not full:
            return GpuReading(at_ns=at_ns, **quick)
        counted = {slowdown: ns for slowdown, name in _COUNTERS.items() if (ns := fields[name]) is not None}
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        p_state = self.ask("nvmlDeviceGetPerformanceState")
        return GpuReading(
            at_ns=at_ns,
            **quick,
            slowed_ns=counted or None,
            p_state=p_state if p_state is not None and p_state < 16 else None,  # 32 is NVML's word for unknown
            pcie_generation=self.ask("nvmlDeviceGetCurrPcieLinkGeneration") or None,
            pcie_width=self.ask("nvmlDeviceGetCurrPcieLinkWidth") or None,
            used_bytes=memory.used if memory is not None else None,
            processes=self.processes(),
        )

    def slowdowns(self) -> frozenset[Slowdown] | None:
        """Return what lowers the clocks at this moment."""
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            return None
        return frozenset(slowdown for slowdown, name in _BITS.items() if bits & getattr(self.nvml, name))

    @property
    def idle(self) -> bool | None:
        """Whether the card has lowered its clocks for want of work."""
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        return None if bits is None else bool(bits & self.nvml.nvmlClocksEventReasonGpuIdle)

    def processes(self) -> dict[int, int | None] | None:
        """Return the processes that compute on the card and the device memory of each.

        Drivers that translate process ids into a container's own answer 0 bytes there: whoever has a context has
        memory, so 0 is no answer.
        """
        # By its version: the name without one raises an error of another kind where the driver is older.
        found = self.ask("nvmlDeviceGetComputeRunningProcesses_v3")
        return None if found is None else {one.pid: one.usedGpuMemory or None for one in found}

    def facts(self) -> dict[str, str]:
        """Return what the card is and how it is set up, as words: for the fingerprint of the machine."""
        memory, limit = self.ask("nvmlDeviceGetMemoryInfo"), self.ask("nvmlDeviceGetPowerManagementLimit")
        mhz, on = self.max_sm_mhz, self.nvml.NVML_FEATURE_ENABLED
        persistent, mig = self.ask("nvmlDeviceGetPersistenceMode"), self.ask("nvmlDeviceGetMigMode")
        generation, width = self.ask("nvmlDeviceGetMaxPcieLinkGeneration"), self.ask("nvmlDeviceGetMaxPcieLinkWidth")
        ecc = self.ask("nvmlDeviceGetEccMode")
        found = {
            "name": self.ask("nvmlDeviceGetName"),
            "driver_version": _of_system(self.nvml, "nvmlSystemGetDriverVersion"),
            "cuda_driver_version": _cuda(_of_system(self.nvml, "nvmlSystemGetCudaDriverVersion_v2")),
            "memory.total": f"{memory.total >> 20} MiB" if memory is not None else None,
            "clocks.max.sm": f"{mhz} MHz" if mhz else None,
            "power.limit": f"{limit / 1000:.2f} W" if limit else None,
            "persistence_mode": None if persistent is None else "Enabled" if persistent == on else "Disabled",
            "pcie": f"{generation}.0 x{width}" if generation and width else None,
            "ecc": None if ecc is None else "on" if ecc[0] == on else "off",
            "mig": "on" if mig is not None and mig[0] == on else None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _clock(self, function: str, clock: str) -> int | None:
        return self.ask(function, getattr(self.nvml, clock)) or None

    def _fields(self, names: list[str]) -> dict[str, int | None]:
        """Return the values of fields, asked for in one call."""
        found: dict[str, int | None] = dict.fromkeys(names)
        wanted = [name for name in names if name not in self._lacks]
        answers = self.ask("nvmlDeviceGetFieldValues", tuple(getattr(self.nvml, name) for name in wanted))
        for name, answer in zip(wanted, answers or (), strict=False):
            if answer.nvmlReturn == self.nvml.NVML_SUCCESS:
                found[name] = int(getattr(answer.value, _VALUES[answer.valueType]))
            elif answer.nvmlReturn in self._lasting:
                self._lacks.add(name)
        return found


def _of_system(nvml: Any, function: str) -> Any:
    try:
        return getattr(nvml, function)()
    except nvml.NVMLError:
        return None


def _cuda(number: int | None) -> str | None:
    # 1000 * major + 10 * minor.
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
