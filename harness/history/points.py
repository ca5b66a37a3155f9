"""One case of one run as numbers: what the history's tables hold."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Literal, get_args

import msgspec

from harness.history.keys import Circumstances, Key, Subject
from harness.records import Record, Status

Metric = Literal["latency", "compile", "memory", "device-memory", "compile-memory", "engine", "drift"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class Relative(Record, frozen=True, kw_only=True):
    """A case against another of its own run, as `stats.contrast` knows it."""

    series: str
    """Of the other."""
    version: str | None
    """Of the other's backend: with another one it is nothing to compare with."""
    case: str
    """What the table calls the other."""
    difference: float
    """Natural log of the ratio of durations."""
    error: float
    """Standard error of the difference."""
    freedom: float


class Evidence(Record, frozen=True, kw_only=True):
    """What the samples of a case amount to."""

    levels: list[float]
    """Log ns: of each launch the median over its windows of their medians."""
    relatives: list[Relative] = msgspec.field(default_factory=list)
    """To the baseline; for the baseline to each other case, the most precise first. None where one launch cannot show
    how processes differ."""


class Point(Record, frozen=True, kw_only=True):
    """One case of one run. A number is None where it does not exist."""

    run: str
    created: str
    """When the run began, as `sortable()` spells it."""
    workload: str
    case: str
    series: str
    key: Key
    subject: Subject
    circumstances: Circumstances
    status: Status
    failure: str | None = None
    """Stage and first line."""
    latency_ns: float | None = None
    """Median of all samples at the boundary `compute`, as in the table."""
    compile_s: float | None = None
    compiled_at: str | None = None
    """When, where it was not compiled by this run but taken from an earlier one."""
    memory_bytes: int | None = None
    """Largest resident memory of a measuring process tree."""
    device_memory_bytes: int | None = None
    """Largest device memory of a measuring process, where the driver says."""
    compile_memory_bytes: int | None = None
    engine_bytes: int | None = None
    drift: float | None = None
    """Largest relative L2 distance of an output from the reference."""
    evidence: Evidence | None = None
    others_cpu: float | None = None
    """Share of the CPU time that processes outside the run took while it was sampled, 0 to 1; the mean."""
    mhz: float | None = None
    """CPU clock while it was sampled; the median."""
    labels: list[str] = msgspec.field(default_factory=list)

    def value(self, metric: Metric) -> float | None:
        """Return a figure; compile time only where it was spent in this run."""
        if metric == "compile":
            return self.compile_s if self.compiled_at is None else None
        return {
            "latency": self.latency_ns,
            "memory": self.memory_bytes,
            "device-memory": self.device_memory_bytes,
            "compile-memory": self.compile_memory_bytes if self.compiled_at is None else None,
            "engine": self.engine_bytes,
            "drift": self.drift,
        }[metric]


class Listing(Record, frozen=True, kw_only=True):
    """The newest cases that fit a filter."""

    points: list[Point]
    """Oldest first."""
    total: int
    """How many fit."""
    metric: Metric
    """What is drawn over time."""


def titles(points: Iterable[Point]) -> dict[str, str]:
    """Return what each series is called: its newest workload and case, and what tells it from others of that name."""
    newest = {point.series: point for point in points}
    alike: dict[str, list[Point]] = {}
    for point in newest.values():
        alike.setdefault(f"{point.workload}, {point.case}", []).append(point)
    found = {}
    for name, kin in alike.items():
        fields = [field for field in Key.__struct_fields__ if len({getattr(one.key, field) for one in kin}) > 1]
        for one in kin:
            apart = ", ".join(f"{field} {getattr(one.key, field) or 'none'}" for field in fields)
            found[one.series] = f"{name} ({apart})" if apart else name
    return found


def sortable(created: str) -> str:
    """Return a time of day in the one spelling that sorts as text; what is no time stays as it is."""
    try:
        when = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    return when.astimezone(timezone.utc).isoformat(timespec="seconds")
