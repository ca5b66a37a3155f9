"""The one clock: how many iterations it takes, when it is settled, and what lies within its boundaries."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from harness import measure
from harness.api import Session
from harness.errors import RunError, UnsupportedError
from harness.measure import (
    SLOW_ITERATION_SECONDS,
    WARM_UP_AT_MOST_SECONDS,
    WARM_UP_ITERATIONS,
    WARM_UP_SECONDS,
    DeviceTimer,
    StageClock,
    run_once,
    sample,
    sample_device,
    timed,
    warm_up,
)

INPUTS = {"input": np.zeros(1, dtype=np.float32)}


class Clock:
    """A clock that only the session moves, so that no test depends on how fast this machine is."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


class FakeSession(Session):
    """Takes the time that it is told to take, and writes down what was called."""

    provider = "fake"

    def __init__(self, clock: Clock, seconds: Callable[[int], float]) -> None:
        self.clock = clock
        self.seconds = seconds
        self.calls: list[str] = []
        self.collecting: set[bool] = set()

    def _take(self, what: str, seconds: float) -> None:
        self.calls.append(what)
        self.collecting.add(gc.isenabled())
        self.clock.ns += int(seconds * 1e9)

    def save(self, engine_dir: Path) -> None:
        raise AssertionError("not while measuring")

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._take("bind", 0.1)

    def execute(self) -> None:
        self._take("execute", self.seconds(self.calls.count("execute")))

    def synchronize(self) -> None:
        self._take("synchronize", 0.0)

    def outputs(self) -> dict[str, np.ndarray]:
        self._take("outputs", 0.2)
        return {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(measure, "now_ns", fake)
    return fake


def steady(seconds: float) -> Callable[[int], float]:
    return lambda _: seconds


@pytest.mark.parametrize(
    ("iterations", "seconds", "expected"),
    [
        (1, 0.0, 1),  # at least one even where no time is asked for
        (7, 0.0, 7),
        (1, 1.0, 4),  # 0.25 s each: the fourth reaches one second
        (2, 1.1, 5),
        (9, 1.0, 9),  # both minimums are reached
        (0, 0.0, 0),
    ],
)
def test_sample_stops_when_both_minimums_are_reached(
    iterations: int, seconds: float, expected: int, clock: Clock
) -> None:
    session = FakeSession(clock, steady(0.25))
    taken = sample(session, {}, boundary="compute", min_iterations=iterations, min_seconds=seconds)
    assert taken == [250_000_000] * expected


def test_durations_are_in_call_order(clock: Clock) -> None:
    session = FakeSession(clock, lambda index: index + 1.0)
    taken = sample(session, {}, boundary="compute", min_iterations=3, min_seconds=0.0)
    assert taken == [1_000_000_000, 2_000_000_000, 3_000_000_000]


def test_compute_leaves_copies_out(clock: Clock) -> None:
    session = FakeSession(clock, steady(1.0))
    assert sample(session, INPUTS, boundary="compute", min_iterations=1, min_seconds=0.0) == [1_000_000_000]
    assert session.calls == ["execute", "synchronize"]


def test_host_to_host_holds_copies(clock: Clock) -> None:
    session = FakeSession(clock, steady(1.0))
    assert sample(session, INPUTS, boundary="host-to-host", min_iterations=1, min_seconds=0.0) == [1_300_000_000]
    assert session.calls == ["bind", "execute", "synchronize", "outputs"]


def test_run_once_waits_for_the_work(clock: Clock) -> None:
    session = FakeSession(clock, steady(0.5))
    assert run_once(session) == 500_000_000
    assert session.calls == ["execute", "synchronize"]


@pytest.mark.parametrize("before", [True, False])
def test_sampling_turns_the_garbage_collector_off_and_back(before: bool, clock: Clock) -> None:
    session = FakeSession(clock, steady(1.0))
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        sample(session, {}, boundary="compute", min_iterations=2, min_seconds=0.0)
        assert session.collecting == {False}
        assert gc.isenabled() is before
        with pytest.raises(RunError):
            sample(FakeSession(clock, lambda _: 1 / 0), {}, boundary="compute", min_iterations=1, min_seconds=0.0)
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()


def test_failure_names_the_iteration(clock: Clock) -> None:
    def fails_at_fourth(index: int) -> float:
        if index == 3:
            raise ValueError("device lost")
        return 1.0

    session = FakeSession(clock, fails_at_fourth)
    with pytest.raises(RunError, match="iteration 3 failed: device lost"):
        sample(session, {}, boundary="compute", min_iterations=5, min_seconds=0.0)


def test_error_of_ours_keeps_its_kind(clock: Clock) -> None:
    def refuse(_: int) -> float:
        raise UnsupportedError("no")

    with pytest.raises(UnsupportedError, match=r"^no$"):
        sample(FakeSession(clock, refuse), {}, boundary="compute", min_iterations=1, min_seconds=0.0)


def seconds_of(durations: list[int]) -> float:
    return sum(durations) / 1e9


def test_warm_up_of_a_fast_session_takes_both_minimums(clock: Clock) -> None:
    durations = warm_up(FakeSession(clock, steady(0.001)))
    assert len(durations) >= WARM_UP_ITERATIONS
    assert WARM_UP_SECONDS <= seconds_of(durations) <= WARM_UP_SECONDS + 0.002


def test_warm_up_of_a_middling_session_takes_ten_iterations(clock: Clock) -> None:
    assert len(warm_up(FakeSession(clock, steady(0.05)))) == WARM_UP_ITERATIONS


def test_warm_up_of_a_slow_session_takes_two(clock: Clock) -> None:
    assert len(warm_up(FakeSession(clock, steady(1.5 * SLOW_ITERATION_SECONDS)))) == 2


def test_warm_up_goes_on_while_a_session_settles(clock: Clock) -> None:
    # 5 % faster with each iteration until the 40th: it must not stop before.
    durations = warm_up(FakeSession(clock, lambda index: 0.04 * 0.95 ** min(index, 40)))
    assert len(durations) > 40
    last, before = durations[-5:], durations[-10:-5]
    assert abs(np.median(last) - np.median(before)) <= 0.02 * np.median(before)
    assert seconds_of(durations) < WARM_UP_AT_MOST_SECONDS


def test_warm_up_of_a_session_that_never_settles_ends(clock: Clock) -> None:
    durations = warm_up(FakeSession(clock, lambda index: 0.02 if index // 5 % 2 else 0.04))
    assert WARM_UP_AT_MOST_SECONDS < seconds_of(durations) < WARM_UP_AT_MOST_SECONDS + 0.1


def test_warm_up_after_a_late_compilation_goes_on(clock: Clock) -> None:
    durations = warm_up(FakeSession(clock, lambda index: 3.0 if index == 0 else 0.001))
    assert len(durations) >= WARM_UP_ITERATIONS, "one slow iteration at the beginning does not make a slow model"


def test_stages_add_up_and_survive_errors(clock: Clock) -> None:
    stages = StageClock()
    with stages.stage("build"):
        clock.ns += 2_000_000_000
    with stages.stage("load"):
        clock.ns += 500_000_000
    with pytest.raises(ValueError, match="x"), stages.stage("build"):
        clock.ns += 1_000_000_000
        raise ValueError("x")
    assert stages.seconds == {"build": 3.0, "load": 0.5}


def test_timed_returns_the_value_too(clock: Clock) -> None:
    def work() -> str:
        clock.ns += 250_000_000
        return "done"

    assert timed(work) == ("done", 0.25)


def test_the_real_clock_moves_on_and_counts_waiting() -> None:
    first = measure.now_ns()
    time.sleep(0.01)
    assert measure.now_ns() - first >= 10_000_000


class FakeRuntime:
    """Events on a device that works for as long as the session enqueued, `idle_ns` later than it was told."""

    class cudaError_t:
        cudaSuccess = 0

    def __init__(self, clock: Clock, idle_ns: int = 0) -> None:
        self.clock = clock
        self.idle_ns = idle_ns
        self.calls: list[tuple[object, ...]] = []
        self.stamps: dict[int, int] = {}

    def cudaSetDevice(self, index: int) -> tuple[int]:
        self.calls.append(("device", index))
        return (0,)

    def cudaEventCreate(self) -> tuple[int, int]:
        self.stamps[len(self.stamps)] = 0
        return 0, len(self.stamps) - 1

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.calls.append(("record", event, stream))
        self.stamps[event] = self.clock.ns + (self.idle_ns if event else 0)
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (0,)

    def cudaEventElapsedTime(self, start: int, stop: int) -> tuple[int, float]:
        return 0, (self.stamps[stop] - self.stamps[start]) / 1e6


class TestDevice:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(measure, "now_ns", clock)
        return clock

    def timer(self, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> DeviceTimer:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
        return DeviceTimer(77, 1)

    def test_events_lie_on_the_sessions_stream_and_device(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = FakeRuntime(clock)
        self.timer(runtime, monkeypatch).once(FakeSession(clock, lambda _: 0.002))
        assert runtime.calls == [("device", 1), ("record", 0, 77), ("record", 1, 77)]

    def test_the_devices_time_is_not_the_hosts(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        timer = self.timer(FakeRuntime(clock, idle_ns=3_000_000), monkeypatch)
        session = FakeSession(clock, lambda _: 0.002)
        device_ns, enqueue_ns = sample_device(session, timer, min_iterations=3, min_seconds=0.0)
        assert enqueue_ns == [2_000_000] * 3
        assert device_ns == [5_000_000] * 3

    def test_no_garbage_is_collected_meanwhile(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        session = FakeSession(clock, lambda _: 0.002)
        sample_device(session, self.timer(FakeRuntime(clock), monkeypatch), min_iterations=1, min_seconds=0.0)
        assert session.collecting == {False}
        assert gc.isenabled()

    def test_a_device_that_refuses_is_a_run_error(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = FakeRuntime(clock)
        timer = self.timer(runtime, monkeypatch)
        lost = type("error", (), {"name": "cudaErrorDevicesUnavailable"})()
        monkeypatch.setattr(runtime, "cudaEventSynchronize", lambda event: (lost,))
        with pytest.raises(RunError, match="cudaEventSynchronize failed: cudaErrorDevicesUnavailable"):
            sample_device(FakeSession(clock, lambda _: 0.002), timer, min_iterations=1, min_seconds=0.0)
