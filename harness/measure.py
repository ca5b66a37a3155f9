"""The one clock. Every duration that a report shows was taken by a function of this module."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from harness.errors import HarnessError, RunError

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Session

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
    boundary: Boundary,
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
    deadline = now_ns() + int(min_seconds * 1e9)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(durations) < min_iterations or now_ns() < deadline:
            durations.append(once())
    except HarnessError:
        raise
    except Exception as exc:  # whatever a library raises becomes one kind of error that names the iteration
        raise RunError(f"iteration {len(durations)} failed: {exc}") from exc
    finally:
        if collecting:
            gc.enable()
    return durations


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
