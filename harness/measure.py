"""The one clock. Every duration that a report shows was taken by a function of this module."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from harness.errors import HarnessError, RunError

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Session
    from harness.operators import Profile

Boundary = Literal["compute", "device", "host-to-host"]
"""What lies between two readings of a clock.

`compute`: execute and synchronize, on inputs that are bound already, by the host's clock. `device`: the work that
execute enqueued, between two CUDA events on the session's stream. `host-to-host`: bind, execute, synchronize and
outputs, by the host's clock, copies included."""
T = TypeVar("T")

WARM_UP_ITERATIONS = 10
WARM_UP_SECONDS = 0.2
WARM_UP_AT_MOST_SECONDS = 5.0
SLOW_ITERATION_SECONDS = 1.0
"""A model whose iteration takes longer averages its own noise: it needs fewer repetitions."""
VERY_SLOW_ITERATION_SECONDS = 5.0
"""One visit of such a model takes longer than all visits of an ordinary one."""
TREND_WINDOW = 5
TREND_LIMIT = 0.02
TREND_SPREADS = 2.0
"""Median absolute deviations by which two windows of a settled but noisy machine may differ."""


def now_ns() -> int:
    """Return the harness' clock in nanoseconds; only differences mean anything."""
    return time.perf_counter_ns()


class StageClock:
    """Durations of named stages, each timed directly."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; a stage entered twice adds up."""
        start = now_ns()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + (now_ns() - start) / 1e9


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns and how many seconds it took."""
    start = now_ns()
    value = work()
    return value, (now_ns() - start) / 1e9


def run_once(session: Session) -> int:
    """Return the nanoseconds of one `execute()` plus `synchronize()` on the bound inputs."""
    start = now_ns()
    session.execute()
    session.synchronize()
    return now_ns() - start


def sample(
    session: Session,
    inputs: dict[str, np.ndarray],
    *,
    boundary: Literal["compute", "host-to-host"],
    min_iterations: int,
    min_seconds: float,
) -> list[int]:
    """Time iterations until both minimums are reached, one duration each.

    `compute` is `execute()` plus `synchronize()`: inputs must already be bound, copies are not included.
    `host-to-host` is `bind()`, `execute()`, `synchronize()` and `outputs()`.

    Returns:
        Durations in nanoseconds, in call order.

    Raises:
        RunError: The session failed; the message names the iteration.
    """

    def compute() -> int:
        return run_once(session)

    def host_to_host() -> int:
        start = now_ns()
        session.bind(inputs)
        session.execute()
        session.synchronize()
        session.outputs()
        return now_ns() - start

    once = compute if boundary == "compute" else host_to_host
    durations: list[int] = []
    _repeat(lambda: durations.append(once()), durations, min_iterations, min_seconds)
    return durations


class DeviceTimer:
    """Two CUDA events on a session's stream, through NVIDIA's own bindings: no framework is needed.

    An event is a mark in the stream: the device stamps it when all that was enqueued before it is done, to about half
    a microsecond. What lies between two marks may hold idle gaps in which the device waited for the host.
    """

    def __init__(self, stream: int, index: int) -> None:
        """Make the events on device `index`, to which the stream belongs.

        Raises:
            RunError: The device refused.
        """
        self._cudart: Any = importlib.import_module("cuda.bindings.runtime")
        self._stream = stream
        self._call("cudaSetDevice", index)
        self._start, self._stop = self._call("cudaEventCreate"), self._call("cudaEventCreate")

    def once(self, session: Session) -> tuple[int, int]:
        """Run one iteration; return the nanoseconds that the device took, and those that enqueuing kept the host."""
        self._call("cudaEventRecord", self._start, self._stream)
        start = now_ns()
        session.execute()
        enqueue_ns = now_ns() - start
        self._call("cudaEventRecord", self._stop, self._stream)
        session.synchronize()
        self._call("cudaEventSynchronize", self._stop)
        # In milliseconds, as a float.
        return round(self._call("cudaEventElapsedTime", self._start, self._stop) * 1e6), enqueue_ns

    def _call(self, function: str, *arguments: object) -> Any:  # an event, a number or nothing
        error, *results = getattr(self._cudart, function)(*arguments)
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise RunError(f"timing the device: {function} failed: {error.name}")
        return results[0] if results else None


def can_time_devices() -> bool:
    """Say whether CUDA events can be placed here, which needs NVIDIA's Python bindings."""
    try:
        return importlib.util.find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:  # there is no package `cuda` at all
        return False


def sample_device(
    session: Session, timer: DeviceTimer, *, min_iterations: int, min_seconds: float
) -> tuple[list[int], list[int]]:
    """Time iterations on the device until both minimums are reached.

    Returns:
        Durations on the device and of enqueuing, in nanoseconds, in call order.

    Raises:
        RunError: The session failed; the message names the iteration.
    """
    pairs: list[tuple[int, int]] = []
    _repeat(lambda: pairs.append(timer.once(session)), pairs, min_iterations, min_seconds)
    return [device for device, _ in pairs], [enqueue for _, enqueue in pairs]


def profile(session: Session, *, iterations: int) -> tuple[Profile, list[int]]:
    """Run a session under its framework's own profiler; return what that says, and how long each iteration took.

    These iterations hold what the profiler costs: they are no latency, and only its share of them means anything.

    Raises:
        UnsupportedError: The framework has no profiler.
        RunError: The session failed.
    """
    durations: list[int] = []

    def iterate(once: Callable[[], None]) -> None:
        for _ in range(iterations):
            start = now_ns()
            once()
            durations.append(now_ns() - start)

    return session.profile(iterate, now_ns), durations


def _repeat(once: Callable[[], None], done: Sized, min_iterations: int, min_seconds: float) -> None:
    """Call `once`, which adds to `done`, until both minimums are reached, without the garbage collector."""
    deadline = now_ns() + int(min_seconds * 1e9)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(done) < min_iterations or now_ns() < deadline:
            once()
    except HarnessError:
        raise
    except Exception as exc:  # whatever a library raises becomes one kind of error that names the iteration
        raise RunError(f"iteration {len(done)} failed: {exc}") from exc
    finally:
        if collecting:
            gc.enable()


def warm_up(session: Session) -> list[int]:
    """Run until the latency is settled; return the durations in nanoseconds, in call order.

    At least 10 iterations and 200 ms, or 2 iterations where one takes over a second; then until the median of
    the last five is as that of the five before, to within 2 % or the noise, but no longer than five seconds.
    """
    durations: list[int] = []
    start = now_ns()
    while True:
        durations.append(run_once(session))
        elapsed = (now_ns() - start) / 1e9
        slow = min(durations) > SLOW_ITERATION_SECONDS * 1e9
        if len(durations) < 2 or (not slow and (len(durations) < WARM_UP_ITERATIONS or elapsed < WARM_UP_SECONDS)):
            continue
        if slow or elapsed > WARM_UP_AT_MOST_SECONDS or not _trends(durations):
            return durations


def _trends(durations: list[int]) -> bool:
    windows = durations[-2 * TREND_WINDOW : -TREND_WINDOW], durations[-TREND_WINDOW:]
    before, last = statistics.median(windows[0]), statistics.median(windows[1])
    # Within each window: over both together the spread would hold the very trend that it is compared with.
    spread = statistics.median(
        abs(duration - middle) for window, middle in zip(windows, (before, last), strict=True) for duration in window
    )
    return abs(last - before) > max(TREND_LIMIT * before, TREND_SPREADS * spread)
