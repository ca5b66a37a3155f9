"""What a GPU did while it was measured on: readings in a thread of this process, summarised window by window.

Telemetry   all cards of this run; the reason why one cannot be watched becomes a note
Watch       one card during one launch: who is on it, and who of them is a stranger
Recording   the readings of one window: one before, those in a thread while it lasts, one after
summarise   readings -> record, with marks. A pure function
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from harness import nvml
from harness.errors import UnavailableError
from harness.gpu import SLOWDOWNS, STRANGER, UNSTEADY, GpuReading, GpuSource, Slowdown
from harness.records import DeviceMemory, EnergySource, GpuWindow, MemorySource

Phase = Literal["before_load", "loaded", "ran"]
"""Ends of the phases in which a worker takes device memory."""
READ_EVERY_S = 0.02
"""Between two readings inside a window: one of 100 ms then has four or five."""
LOOK_EVERY_S = 0.1
"""Between two full readings while an engine is loaded."""
CLOCK_SPREAD = 0.05
"""Of the SM clock within a window, relative to its highest: more is marked. A card steps by 15 MHz, about 0.6 %."""
COUNTER_SPAN_S = 0.5
"""What the steps of the energy counter must span before it is believed. It moves on every some tens of milliseconds,
and when it did is known to `READ_EVERY_S`: over half a second that is a few percent."""


class Telemetry:
    """Access to the cards of this run."""

    def __init__(self, *, owns: Callable[[int], bool], source: Callable[[str], GpuSource] = nvml.device) -> None:
        """Take who knows our own processes, and where readings come from.

        `owns` says whether a process id is that of a process of this run. `source` may raise `UnavailableError`.
        """
        self.notes: list[str] = []
        """What the report must say, each sentence once."""
        self._owns = owns
        self._open = source
        self._sources: dict[str, GpuSource | None] = {}

    def watch(self, device: str) -> Watch | None:
        """Return a watch on a card, or None for another kind of device and where the driver does not answer.

        To be called before the first worker of a launch is started: who is on the card by then is none of ours.
        """
        if device.partition(":")[0] != "cuda":
            return None
        if device not in self._sources:
            self._sources[device] = self._source(device)
        source = self._sources[device]
        return Watch(device, source, self._owns, self.note) if source is not None else None

    def note(self, sentence: str) -> None:
        """Add a sentence that the report must print, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _source(self, device: str) -> GpuSource | None:
        try:
            return self._open(device)
        except UnavailableError as exc:
            self.note(f"nothing is known of {device} while it was measured (clocks, power, throttling): {exc.message}")
            return None


class Watch:
    """One card during one launch."""

    def __init__(
        self, device: str, source: GpuSource, owns: Callable[[int], bool], note: Callable[[str], None]
    ) -> None:
        self.source = source
        self._device = device
        self._owns = owns
        self._note = note
        self.before: Collection[int] = frozenset(source.read(full=True).processes or ())
        """Who was on the card before the launch, by the driver's numbers."""
        self.residents: set[int] = set()
        """Workers of ours that hold an engine on the card, by our numbers."""

    def record(self) -> Recording:
        """Return a context manager that reads the card for as long as it is open."""
        return Recording(self.source, every_s=READ_EVERY_S, full=False)

    def window(self, recording: Recording, *, samples_ns: Sequence[int]) -> GpuWindow:
        """Return what the card did during a recording of a worker whose iterations took `samples_ns`."""
        listed = [one.processes for one in (recording.before, recording.after) if one.processes is not None]
        strangers = self.strangers({pid: bytes_ for one in listed for pid, bytes_ in one.items()})
        return summarise(
            recording.before,
            recording.during,
            recording.after,
            samples_ns=samples_ns,
            strangers=strangers if listed else None,
        )

    def strangers(self, processes: Mapping[int, int | None]) -> dict[int, int | None]:
        """Return the processes on the card that are not ours.

        Inside a container the driver may count processes as its host does, and then our own workers stand in its list
        under numbers that we do not know. So its numbers are only believed where every worker that holds an engine on
        this card is in the list. Else only who was there before the launch is a stranger for sure.
        """
        if self.residents and all(pid in processes for pid in self.residents):
            return {pid: bytes_ for pid, bytes_ in processes.items() if not self._owns(pid)}
        self._note(
            f"the driver does not list this run's own processes on {self._device}, as in a container: another process "
            "that came to the card while it was measured on would not be noticed"
        )
        return {pid: bytes_ for pid, bytes_ in processes.items() if pid in self.before}


class Recording:
    """Readings of one card: one before, several in a thread while the block runs, one after."""

    def __init__(self, source: GpuSource, *, every_s: float, full: bool) -> None:
        self.during: list[GpuReading] = []
        self._source = source
        self._every_s = every_s
        self._full = full
        self._over = threading.Event()
        # A daemon: where the main thread is torn out of the block by a second Ctrl-C, it does not keep the process.
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Recording:
        self.before = self.after = self._source.read(full=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.after = self._source.read(full=True)

    def _read(self) -> None:
        while not self._over.wait(self._every_s):
            self.during.append(self._source.read(full=self._full))

    @property
    def readings(self) -> list[GpuReading]:
        """All readings in their order."""
        return [self.before, *self.during, self.after]


def summarise(
    before: GpuReading,
    during: Sequence[GpuReading],
    after: GpuReading,
    *,
    samples_ns: Sequence[int] = (),
    strangers: Mapping[int, int | None] | None = None,
) -> GpuWindow:
    """Return what a card did during a window, and what disturbed it.

    Clocks, power and bits are those of the readings inside the window: at its ends the card is not at work. Counters
    are differences over the whole of it.

    Args:
        samples_ns: Durations of the window's iterations.
        strangers: Processes on the card that are not of this run; None where that is not known.
    """
    inside = list(during) or [before, after]
    sm = [one.sm_mhz for one in inside if one.sm_mhz is not None]
    memory_mhz = [one.memory_mhz for one in inside if one.memory_mhz is not None]
    power_w = [one.power_w for one in inside if one.power_w is not None]
    temperature_c = [one.temperature_c for one in (before, *during, after) if one.temperature_c is not None]
    seen = [one.slowdowns for one in inside if one.slowdowns is not None]
    slowed_ns = _deltas(before.slowed_ns, after.slowed_ns)
    slowdowns = sorted({each for one in seen for each in one} | {each for each, ns in slowed_ns.items() if ns > 0})
    watts, energy_by = _watts([before, *during, after], power_w)
    used = [one.used_bytes for one in (before, *during, after) if one.used_bytes is not None]
    return GpuWindow(
        readings=len(during),
        sm_mhz=statistics.median(sm) if sm else None,
        sm_mhz_low=min(sm, default=None),
        sm_mhz_high=max(sm, default=None),
        memory_mhz=statistics.median(memory_mhz) if memory_mhz else None,
        temperature_c=max(temperature_c, default=None),
        power_w=round(watts, 2) if watts is not None else None,
        energy_mj=watts * sum(samples_ns) / 1e6 if watts is not None and samples_ns else None,
        energy_by=energy_by if samples_ns else None,
        slowed_ns={str(each): ns for each, ns in slowed_ns.items()} if before.slowed_ns is not None else None,
        slowdowns=[str(each) for each in slowdowns] if seen or before.slowed_ns is not None else None,
        p_state=after.p_state,
        pcie_generation=after.pcie_generation,
        pcie_width=after.pcie_width,
        used_bytes=max(used, default=None),
        strangers=dict(strangers) if strangers is not None else None,
        marks=_marks(slowdowns, sm if during else (), strangers),
    )


def _deltas(before: Mapping[Slowdown, int] | None, after: Mapping[Slowdown, int] | None) -> dict[Slowdown, int]:
    # A driver that was loaded anew counts from 0 again: a negative difference says nothing.
    known = (before or {}).keys() & (after or {}).keys()
    return {each: max(0, (after or {})[each] - (before or {})[each]) for each in sorted(known)}


def _marks(slowdowns: Collection[Slowdown], sm: Sequence[int], strangers: Mapping[int, int | None] | None) -> list[str]:
    # The hardware's protection is the sign of overheating and of the power brake too: where these are known, it says
    # nothing more.
    told = set(slowdowns) - ({"hardware"} if {"overheated", "power_brake"} & set(slowdowns) else set())
    marks = [words for each, words in SLOWDOWNS.items() if each in told]
    if len(sm) > 1 and max(sm) - min(sm) > CLOCK_SPREAD * max(sm):
        marks.append(UNSTEADY)
    return [*marks, STRANGER] if strangers else marks


def _watts(readings: Sequence[GpuReading], power_w: Sequence[float]) -> tuple[float | None, EnergySource | None]:
    """Return the mean power and what it comes from.

    The energy counter is exact but moves on in steps, so it is taken from its first step inside the readings to its
    last, where these are far enough apart: what came before the first may belong to whoever ran before. Else the
    readings of the power itself are averaged.
    """
    known = [(one.at_ns, one.energy_mj) for one in readings if one.energy_mj is not None]
    steps = [now for last, now in pairwise(known) if now[1] > last[1]]
    if len(steps) > 1:
        span_s = (steps[-1][0] - steps[0][0]) / 1e9
        if span_s >= COUNTER_SPAN_S:
            return (steps[-1][1] - steps[0][1]) / 1e3 / span_s, "counter"
    return (statistics.fmean(power_w), "power") if power_w else (None, None)


class MemoryWatch:
    """Device memory of one worker: before it loads its engine, after, after the first run, and the most of all.

    By the driver's list of processes where the worker is in it. Else by how much more of the card is in use than
    before, which is the worker's only where it was loaded while no other of ours did anything. A context manager: the
    card is read while it is open.
    """

    def __init__(self, watch: Watch, pid: int, *, alone: bool) -> None:
        self._watch = watch
        self._pid = pid
        self._alone = alone
        self._loading = Recording(watch.source, every_s=LOOK_EVERY_S, full=True)
        self._phases: dict[Phase, GpuReading] = {}
        self._later: list[GpuReading] = []

    def __enter__(self) -> MemoryWatch:
        self._loading.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._loading.__exit__()

    def phase(self, name: Phase) -> None:
        """Take a reading at the end of a phase."""
        self._phases[name] = self._watch.source.read(full=True)
        if name == "ran":
            self._watch.residents.add(self._pid)

    def add(self, recording: Recording) -> None:
        """Let a recording of the running worker count for its peak."""
        self._later += [recording.before, recording.after]

    def memory(self) -> DeviceMemory | None:
        """Return what is known of the worker's device memory."""
        if "ran" not in self._phases:
            return None
        # A number that was in the list before the worker existed is another process, counted in another namespace.
        listed = self._pid not in self._watch.before and self._of_process(self._phases["ran"]) is not None
        if listed:
            every = [*self._loading.readings, *self._phases.values(), *self._later]
            return _memory("process", [self._of_process(one) for one in every], self._phases, self._of_process)
        if self._alone and self._loading.before.used_bytes is not None:
            every = [*self._loading.readings, *self._phases.values()]
            return _memory("device", [self._grown(one) for one in every], self._phases, self._grown)
        return None

    def _of_process(self, reading: GpuReading) -> int | None:
        return (reading.processes or {}).get(self._pid)

    def _grown(self, reading: GpuReading) -> int | None:
        start = self._loading.before.used_bytes
        return max(0, reading.used_bytes - start) if reading.used_bytes is not None and start is not None else None


def _memory(
    by: MemorySource,
    every: Sequence[int | None],
    phases: Mapping[Phase, GpuReading],
    of: Callable[[GpuReading], int | None],
) -> DeviceMemory:
    # What is not in the driver's list yet has no memory there: a context comes with the first allocation.
    return DeviceMemory(
        by=by,
        before_load_bytes=of(phases["before_load"]) or 0,
        loaded_bytes=of(phases["loaded"]) or 0,
        ran_bytes=of(phases["ran"]) or 0,
        peak_bytes=max((bytes_ for bytes_ in every if bytes_ is not None), default=0),
    )
