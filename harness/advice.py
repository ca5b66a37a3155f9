"""What a user wishes of a backend, and which one to deploy for that wish: records, and what they are measured by.

`harness/recommend.py` derives an `Advice` from summaries. Durations are in seconds, sizes in bytes, shares from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from harness.records import Status
from harness.summary import CaseSummary, Comparison, Doubt, Estimate, Overall

Kind = Literal["duration", "size", "rate", "number", "share", "money", "energy"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a case that can be limited or aimed for."""

    title: str
    kind: Kind
    of: Callable[[CaseSummary], Estimate | None]
    """A figure that was measured once has no interval: its ends are the value itself."""
    higher_is_better: bool = False
    per_iteration: bool = False
    """It follows from how long an iteration takes, so that cases are compared by their ratios."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The most, or for a metric of which more is better the least, that is acceptable."""

    metric: str
    value: float


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the best backend is."""

    objective: str = "latency"
    """Key of `METRICS`."""
    limits: list[Limit] = []
    max_drift: Literal["pass", "any"] | float = "pass"
    """`pass`: the outputs pass their check; a number: the largest relative L2 distance instead of the check."""
    price_per_hour: float | None = None
    """Of the machine, in any currency."""


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that a case does not meet."""

    metric: str
    """Key of `METRICS`; or `status`: it did not end well; or `check`: its outputs do not agree with the reference."""
    limit: float | None = None
    value: float | None = None
    """None: the run has no such figure of the case."""
    over: float | None = None
    """By which share the limit is missed: 0.25 is a quarter too much; None where there is no figure."""


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    """How near the recommended case comes to a limit that it meets."""

    metric: str
    limit: float
    value: float
    close: bool
    """The figure's interval reaches beyond the limit: the next run may miss it."""


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """After how many inferences a longer compilation has paid for itself.

    | kind      | the recommended case                            | inferences |
    |-----------|-------------------------------------------------|------------|
    | `at once` | compiles no longer and runs no slower           | 0          |
    | `after`   | compiles longer and runs faster                 | from there on it is ahead |
    | `until`   | compiles shorter and runs slower                | up to there it is ahead |
    | `never`   | compiles no shorter and runs no faster          | none       |
    """

    kind: Literal["at once", "after", "until", "never"]
    inferences: int | None = None
    low: int | None = None
    high: int | None = None
    """End of the 99 % interval; None where there is none: it may be that it never pays."""
    seconds: float | None = None
    """How long the recommended case runs for so many inferences."""


Fate = Literal["recommended", "tied", "worse", "misses", "no result"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One case, and why it is or is not the one."""

    case: str
    status: Status
    fate: Fate
    figures: dict[str, float]
    """Metric -> value, of those that there are."""
    misses: list[Miss] = []
    comparison: Comparison | None = None
    """Its latency over the recommended case's, compared directly; None for that case and where it was not measured."""
    factor: float | None = None
    """How many times worse it does by the objective than the recommended case; below 1 it does better."""
    frontier: bool = False
    """No other sound case is at least as good in latency, drift, compile time and memory, and better in one of them."""
    dominated_by: list[str] = []
    break_even: BreakEven | None = None
    """Of the recommended case against this one."""
    reason: str = ""
    """Why it has no result."""


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """Which case of one workload to deploy."""

    workload: str
    case: str | None
    """None where nothing meets the wish."""
    tied: list[str] = []
    """Others that meet it and that the run cannot tell from the best one by the objective."""
    nearest: str | None = None
    """Where nothing meets the wish: the case that misses it by least."""
    margins: list[Margin] = []
    doubts: list[Doubt] = []
    candidates: list[Candidate]
    """In the order of the table of cases."""
    snippet: str | None = None
    """Python that loads the recommended case's saved engine with its own runtime."""
    no_snippet: str = ""
    """Why there is none for the recommended case."""
    engine: str | None = None
    """Folder of that engine."""

    @property
    def sure(self) -> bool:
        """Say whether the order of the candidates rests on verdicts."""
        return not self.doubts


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a wish over a whole run."""

    run: str
    wish: Wish
    recommendations: list[Recommendation]
    overall: Overall | None = None
    """None for a single workload, and where the objective has no mean over workloads."""


def exactly(value: float | None) -> Estimate | None:
    """Return a figure that was measured once."""
    return None if value is None else Estimate(value=value, low=value, high=value)


def distance(row: CaseSummary) -> float | None:
    """Return the largest relative L2 distance of any output from the reference, infinite where there is no telling.

    An output without such a distance, such as one whose reference is zero, counts by its own check.
    """
    if not row.case.drift:
        return None
    return max(
        one.relative_l2 if one.relative_l2 is not None else (0.0 if one.passed else float("inf"))
        for one in row.case.drift
    )


def _latency(name: str) -> Callable[[CaseSummary], Estimate | None]:
    return lambda row: _seconds(getattr(row.compute, name)) if row.compute else None


def _seconds(ns: Estimate | None) -> Estimate | None:
    return None if ns is None else Estimate(value=ns.value / 1e9, low=ns.low / 1e9, high=ns.high / 1e9)


def _throughput(row: CaseSummary) -> Estimate | None:
    if row.throughput is None or row.compute is None or row.compute.p50.low <= 0:
        return None
    items, p50 = row.throughput * row.compute.p50.value, row.compute.p50
    return Estimate(value=row.throughput, low=items / p50.high, high=items / p50.low)


def _agreement(row: CaseSummary) -> Estimate | None:
    found = [one.top1_agreement for one in row.case.drift if one.top1_agreement is not None]
    return exactly(min(found)) if found else None


def _accuracy(row: CaseSummary) -> Estimate | None:
    """Return the leading metric on the run's data set. All cases answered the same samples: there is no interval."""
    accuracy = row.case.accuracy
    return exactly(next(iter(accuracy.metrics.values()), None)) if accuracy else None


def _stage(name: str) -> Callable[[CaseSummary], Estimate | None]:
    return lambda row: exactly(row.case.stages.get(name))


METRICS: Mapping[str, Metric] = {
    "latency": Metric(title="p50 latency", kind="duration", of=_latency("p50"), per_iteration=True),
    "latency-p95": Metric(title="p95 latency", kind="duration", of=_latency("p95")),
    "latency-p99": Metric(title="p99 latency", kind="duration", of=_latency("p99")),
    "host-to-host": Metric(
        title="p50 with copies",
        kind="duration",
        of=lambda row: _seconds(row.host_to_host.p50) if row.host_to_host else None,
    ),
    "device-latency": Metric(
        title="p50 on the device",
        kind="duration",
        of=lambda row: _seconds(row.on_device.p50) if row.on_device else None,
    ),
    "throughput": Metric(title="throughput", kind="rate", of=_throughput, higher_is_better=True, per_iteration=True),
    "compile": Metric(title="compile time", kind="duration", of=_stage("compile")),
    "warm-load": Metric(title="warm load", kind="duration", of=_stage("warm_load")),
    "memory": Metric(title="peak memory", kind="size", of=lambda row: exactly(row.peak_bytes)),
    "device-memory": Metric(
        title="device memory",
        kind="size",
        of=lambda row: exactly(row.device_memory.peak_bytes) if row.device_memory else None,
    ),
    "energy": Metric(
        title="energy of an inference", kind="energy", of=lambda row: exactly(row.energy.mj) if row.energy else None
    ),
    "engine": Metric(title="engine size", kind="size", of=lambda row: exactly(row.case.engine_bytes)),
    "drift": Metric(title="relative L2 distance", kind="number", of=lambda row: exactly(distance(row))),
    "agreement": Metric(title="top-1 agreement", kind="share", of=_agreement, higher_is_better=True),
    "accuracy": Metric(title="accuracy on the data set", kind="share", of=_accuracy, higher_is_better=True),
}
"""What can be limited and aimed for. `cost` is not here: it is the price of the machine over its throughput."""
COST = "cost"
FRONTIER = ("latency", "drift", "compile", "memory")
"""What the Pareto frontier weighs."""
MILLION = 1e6


def metric(key: str, wish: Wish) -> Metric:
    """Return a metric by its key; `cost` needs the wish's price."""
    if key != COST:
        return METRICS[key]
    price = wish.price_per_hour
    assert price is not None

    def of(row: CaseSummary) -> Estimate | None:
        rate = _throughput(row)
        per = price / 3600 * MILLION
        return rate and Estimate(value=per / rate.value, low=per / rate.high, high=per / rate.low)

    return Metric(title="cost of a million items", kind="money", of=of, per_iteration=True)
