"""Launches and interleaved rounds: who is sampled when.

A launch is a set of fresh workers, one a case and two for the baseline, that hold their engines side by side.
In every round the parent visits them in a new random order and asks each for a slice of samples, so that slow
changes of the machine hit all alike. Whoever is not being sampled is stopped.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any  # psutil's records of times differ from system to system

import psutil

from harness import devices, protocol, rapl, topology
from harness.environment import usable_cores
from harness.errors import FallbackError, HarnessError
from harness.launcher import Launcher, Worker
from harness.logs import log_tail
from harness.measure import SLOW_ITERATION_SECONDS, VERY_SLOW_ITERATION_SECONDS, Boundary, now_ns
from harness.records import CONTROL, Failure, GpuWindow, Launch, Sitting, Window
from harness.refusals import refuse_elsewhere
from harness.telemetry import MemoryWatch, Phase, Recording, Telemetry, Watch

Say = Callable[[str], None]

OTHERS_EVERY = 5
"""The other boundaries are sampled in every fifth round: they are reported, but no verdict hangs on them."""
BUSY_SHARE = 0.25
"""A window in which other processes took more than this share of the machine is marked."""
COMPILED = "compiled while it was timed"
"""The mark of a window in which a session compiled something: its samples are not those of a steady engine."""
ENERGY_SLICE_S = 1.0
"""Of the window that energy is taken from: the energy counter of a GPU is too coarse for an ordinary one."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A case as it sits in a launch: what its worker loads, and in which environment."""

    case: str
    """The case's id; that of the baseline's second worker ends in `records.CONTROL`."""
    spec: protocol.CaseSpec
    environment: dict[str, str]
    slug: str
    python: str | None = None
    """Another interpreter than that of harness, where the case has one of its own."""
    provider: str = ""
    """What ran when it was compiled, and must run when it is loaded."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How much is sampled in a launch."""

    rounds: int
    slice_s: float
    input_sets: int

    def visits(self, iteration_s: float) -> set[int]:
        """Return the rounds in which a case is visited: all; two if an iteration takes over 1 s, one if over 5 s."""
        if iteration_s > VERY_SLOW_ITERATION_SECONDS:
            return {0}
        return {0, self.rounds // 2} if iteration_s > SLOW_ITERATION_SECONDS else set(range(self.rounds))


@dataclass(kw_only=True)
class _Seated:
    """A seat with its running worker and what it has delivered so far."""

    seat: Seat
    worker: Worker
    import_s: float = 0.0
    load_s: float = 0.0
    first_run_s: float = 0.0
    warm_up_ns: list[int] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    outputs: dict[int, Path] = field(default_factory=dict)
    failure: Failure | None = None
    stage: str = "warm load"
    notes: list[str] = field(default_factory=list)
    loaded_alone: bool = True
    on_stream: bool = False
    """Whether the device can be timed apart from the host."""
    gpu: Watch | None = None
    memory: MemoryWatch | None = None
    energy: list[Window] = field(default_factory=list)

    @property
    def iteration_s(self) -> float:
        return statistics.median(self.warm_up_ns) / 1e9 if self.warm_up_ns else 0.0

    def reached(self, phase: Phase) -> None:
        """Note the device memory at the end of a phase of loading."""
        if self.memory is not None:
            self.memory.phase(phase)

    def watched(self, recording: Recording, samples_ns: list[int]) -> GpuWindow | None:
        """Return what the GPU did during a recording of this worker."""
        if self.gpu is None or self.memory is None:
            return None
        self.memory.add(recording)
        return self.gpu.window(recording, samples_ns=samples_ns)

    def sitting(self) -> Sitting:
        return Sitting(
            case=self.seat.case,
            import_s=self.import_s,
            load_s=self.load_s,
            first_run_s=self.first_run_s,
            loaded_alone=self.loaded_alone,
            warm_up_ns=self.warm_up_ns,
            windows=self.windows,
            notes=self.notes,
            energy=self.energy,
            peak_bytes=self.worker.peak_bytes,
            device_memory=self.memory.memory() if self.memory else None,
            failure=self.failure,
        )


@dataclass(frozen=True, kw_only=True)
class Conducted:
    """A finished launch, and where each case's outputs lie: case id -> input set -> file."""

    launch: Launch
    outputs: dict[str, dict[int, Path]]
    errors: dict[str, HarnessError]
    interrupted: bool = False
    """Ctrl-C ended it: the launch holds what was sampled before."""


def conduct(
    seats: Sequence[Seat],
    schedule: Schedule,
    launcher: Launcher,
    *,
    index: int,
    group: int,
    outputs: Path,
    seed: int,
    say: Say,
    telemetry: Telemetry | None = None,
) -> Conducted:
    """Run one launch. A case that fails leaves it; the others go on.

    `outputs` is a folder that takes the output tensors. `telemetry` watches the GPUs that cases run on. Every worker
    has ended when this returns or raises.
    """
    seated: list[_Seated] = []
    errors: dict[str, HarnessError] = {}
    # Before the first worker is started: who is on a GPU by now is none of ours.
    watches = {device: telemetry.watch(device) for device in {seat.spec.device for seat in seats}} if telemetry else {}

    def run() -> None:
        _load_all(seats, launcher, watches, index, seated, errors, say)
        _warm_up_all(seated, launcher, index, errors, say)
        _play(seated, schedule, launcher, random.Random(f"{seed}-{index}-{group}"), errors, index, say)
        if index == 0:
            _measure_energy(seated, schedule, launcher, errors, say)
        for one in seated:
            if one.failure is None and not one.seat.case.endswith(CONTROL):
                say(f"launch {index + 1}: outputs of {one.seat.case}")
                _collect(one, schedule, launcher, outputs, errors)

    start = now_ns()
    interrupted = False
    try:
        run()
    except KeyboardInterrupt:
        interrupted = True
        for one in seated:
            one.worker.kill()  # whichever thread still waits for it learns that this is no crash
    finally:
        for one in seated:
            one.worker.close(kindly=not interrupted)
    launch = Launch(
        index=index,
        group=group,
        wall_s=(now_ns() - start) / 1e9,
        sittings=[one.sitting() for one in seated],
        complete=not interrupted,
    )
    outputs_of = {one.seat.case: one.outputs for one in seated}
    return Conducted(launch=launch, outputs=outputs_of, errors=errors, interrupted=interrupted)


def _load_all(
    seats: Sequence[Seat],
    launcher: Launcher,
    watches: Mapping[str, Watch | None],
    index: int,
    seated: list[_Seated],
    errors: dict[str, HarnessError],
    say: Say,
) -> None:
    # The first launch takes warm load times, so its workers load one after the other. Later ones only have to be
    # there: they load as many at a time as there are cores. On a GPU only imports go on side by side: there libraries
    # choose kernels by timing them when they first run, and would time what the others do as well.
    if index == 0:
        for place, seat in enumerate(seats):
            say(f"launch {index + 1}: loading {seat.case} ({place + 1}/{len(seats)})")
            seated.append(_start(seat, launcher, watches, index, alone=True))
            _load(seated[-1], launcher, errors, nullcontext())
        return
    say(f"launch {index + 1}: loading {len(seats)} workers")
    # Started from this thread: a worker dies with the thread that started it.
    seated.extend(_start(seat, launcher, watches, index, alone=False) for seat in seats)
    with ThreadPoolExecutor(len(launcher.cpus) or usable_cores()) as pool:
        turns = {seat.spec.device: Lock() for seat in seats if devices.kind(seat.spec.device) != devices.CPU}
        try:
            loads = [
                pool.submit(_load, one, launcher, errors, turns.get(one.seat.spec.device, nullcontext()))
                for one in seated
            ]
            for load in loads:
                load.result()
        except BaseException:  # Ctrl-C above all: without their processes the threads come to an end
            for one in seated:
                one.worker.kill()
            raise


def _start(seat: Seat, launcher: Launcher, watches: Mapping[str, Watch | None], index: int, *, alone: bool) -> _Seated:
    suffix = "-control" if seat.case.endswith(CONTROL) else ""
    name = f"{seat.slug}{suffix}-launch{index}"
    worker = launcher.start(name, seat.environment, threads=seat.spec.threads, python=seat.python)
    gpu = watches.get(seat.spec.device)
    memory = MemoryWatch(gpu, worker.pid, alone=alone) if gpu else None
    return _Seated(seat=seat, worker=worker, loaded_alone=alone, gpu=gpu, memory=memory)


def _load(
    one: _Seated, launcher: Launcher, errors: dict[str, HarnessError], turn: AbstractContextManager[object]
) -> None:
    spec, worker, limit = one.seat.spec, one.worker, launcher.timeout_s
    with _leaving_on_error(one, errors), one.memory or nullcontext():
        imported = worker.call(protocol.Import(backend=spec.backend), protocol.Imported, timeout_s=limit)
        one.import_s = imported.import_s
        one.reached("before_load")
        with turn:
            opened = worker.call(protocol.Load(case=spec), protocol.Opened, timeout_s=limit)
            one.load_s = opened.seconds["total"]
            one.reached("loaded")
            one.notes = opened.notes
            one.on_stream = opened.on_stream
            refuse_elsewhere(spec, opened)
            if opened.provider != one.seat.provider:
                raise FallbackError(
                    f"compiled for {one.seat.provider}, but the loaded engine runs on {opened.provider}"
                )
            one.stage = "measure"
            one.first_run_s = worker.call(protocol.RunOnce(), protocol.Took, timeout_s=limit).seconds
            one.reached("ran")
            worker.stop()


def _warm_up_all(
    seated: list[_Seated], launcher: Launcher, index: int, errors: dict[str, HarnessError], say: Say
) -> None:
    for one in seated:
        if one.failure is not None:
            continue
        say(f"launch {index + 1}: warming up {one.seat.case}")
        with _leaving_on_error(one, errors):
            one.worker.resume()
            warmed = one.worker.call(protocol.WarmUp(), protocol.Samples, timeout_s=launcher.timeout_s)
            one.warm_up_ns = warmed.durations_ns
            one.worker.note_peak()
            one.worker.check_cpus()  # by now its libraries have all their threads
            one.worker.stop()


def _play(
    seated: list[_Seated],
    schedule: Schedule,
    launcher: Launcher,
    order: random.Random,
    errors: dict[str, HarnessError],
    index: int,
    say: Say,
) -> None:
    start = now_ns()
    for round_ in range(schedule.rounds):
        say(f"launch {index + 1}: round {round_ + 1}/{schedule.rounds}")
        visited = [one for one in seated if one.failure is None and round_ in schedule.visits(one.iteration_s)]
        order.shuffle(visited)
        for position, one in enumerate(visited):
            with _leaving_on_error(one, errors):
                one.worker.resume()
                _visit(one, schedule, launcher, "compute", round_, position, start)
                if round_ % OTHERS_EVERY == 0:
                    if one.on_stream:
                        _visit(one, schedule, launcher, "device", round_, position, start)
                    _visit(one, schedule, launcher, "host-to-host", round_, position, start)
                one.worker.check_memory()
                one.worker.stop()


def _visit(
    one: _Seated,
    schedule: Schedule,
    launcher: Launcher,
    boundary: Boundary,
    round_: int,
    position: int,
    start: int,
    into: list[Window] | None = None,
) -> None:
    with one.gpu.record() if one.gpu else nullcontext() as recording:
        watch = _OthersWatch(one.worker, launcher.cpus)
        meter = rapl.Meter()
        asked = now_ns()
        samples = one.worker.call(
            protocol.Sample(boundary=boundary, min_iterations=1, min_seconds=schedule.slice_s),
            protocol.Samples,
            timeout_s=launcher.timeout_s,
            watch=False,
        )
        joules = meter.joules()
        others = watch.share()
    marks = ["busy machine"] if others is not None and others > BUSY_SHARE else []
    marks += [COMPILED] if samples.compilations else []
    frequency = psutil.cpu_freq()
    (one.windows if into is None else into).append(
        Window(
            round=round_,
            position=position,
            start_ns=asked - start,
            samples_ns=samples.durations_ns,
            boundary=boundary,
            enqueue_ns=samples.enqueue_ns,
            others_cpu=others,
            mhz=round(frequency.current, 1) if frequency else None,
            package_energy_j=joules,
            marks=marks,
            gpu=one.watched(recording, samples.durations_ns) if recording else None,
        )
    )


def _measure_energy(
    seated: list[_Seated], schedule: Schedule, launcher: Launcher, errors: dict[str, HarnessError], say: Say
) -> None:
    # After the rounds, so that a longer load heats up nobody whose latency is measured.
    longer = dataclasses.replace(schedule, slice_s=ENERGY_SLICE_S)
    start = now_ns()
    for one in seated:
        if one.gpu is None or one.failure is not None or one.seat.case.endswith(CONTROL):
            continue
        say(f"launch 1: energy of {one.seat.case}")
        with _leaving_on_error(one, errors):
            one.worker.resume()
            _visit(one, longer, launcher, "compute", schedule.rounds, 0, start, into=one.energy)
            one.worker.stop()


def _collect(
    one: _Seated, schedule: Schedule, launcher: Launcher, folder: Path, errors: dict[str, HarnessError]
) -> None:
    # In the same process and session that was timed: the engine that is judged is the engine that is timed.
    with _leaving_on_error(one, errors):
        one.worker.resume()
        for index in range(schedule.input_sets):
            path = folder / f"{one.seat.slug}-{index}.safetensors"
            one.worker.call(
                protocol.Outputs(index=index, path=str(path)), protocol.Written, timeout_s=launcher.timeout_s
            )
            one.outputs[index] = path
        one.worker.note_peak()


class _leaving_on_error:
    """Turn an error of one worker into its failure and end the worker; the launch goes on."""

    def __init__(self, one: _Seated, errors: dict[str, HarnessError]) -> None:
        self._one = one
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> bool:
        if not isinstance(value, HarnessError):
            return False
        if not self._one.worker.killed:
            self._one.failure = describe(value, self._one.stage, self._one.worker.log)
            self._errors[self._one.seat.case] = value
        self._one.worker.close(kindly=False)
        if self._one.gpu is not None:
            self._one.gpu.residents.discard(self._one.worker.pid)
        return True


def describe(error: HarnessError, stage: str, log: Path | None) -> Failure:
    """Return an error as the record that a report shows."""
    return Failure(
        stage=stage,
        message=error.message,
        hint=error.hint,
        log=f"{log.parent.name}/{log.name}" if log is not None and log.exists() else None,
        log_tail=log_tail(log) if log is not None else "",
        traceback=error.worker_traceback,
    )


class _OthersWatch:
    """CPU time that went to processes outside one worker, from the kernel's counters."""

    def __init__(self, worker: Worker, cpus: frozenset[int]) -> None:
        self._worker = worker
        self._cpus = cpus
        self._before = self._read()

    def share(self) -> float | None:
        """Return the share of the time since the start that went to others, 0 to 1: of all CPUs, or of the worker's."""
        after = self._read()
        total = after[0] - self._before[0]
        if total <= 0:
            return None
        others = (after[1] - self._before[1]) - (after[2] - self._before[2])
        return round(min(1.0, max(0.0, others / total)), 3)

    def _read(self) -> tuple[float, float, float]:
        total = idle = 0.0
        for times in _cpu_times(self._cpus):
            idle += times.idle + getattr(times, "iowait", 0.0)
            # user and nice contain guest time already; counting it again would exceed the total.
            total += sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total, total - idle, self._worker.cpu_seconds()


def _cpu_times(cpus: frozenset[int]) -> list[Any]:
    if not cpus:
        return [psutil.cpu_times()]
    # One entry a CPU online, in the order of their numbers, without the numbers.
    every = zip(sorted(topology.online()), psutil.cpu_times(percpu=True), strict=False)
    return [times for number, times in every if number in cpus]
