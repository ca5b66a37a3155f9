"""A run as numbers: what the reports draw. Pure functions of the records."""

from __future__ import annotations

from typing import Literal

from harness.records import Case, Record, Run

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]


class Estimate(Record, frozen=True, kw_only=True):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


class Latency(Record, frozen=True, kw_only=True):
    """Order statistics of one boundary's samples over all launches, in nanoseconds."""

    samples: int
    p50: Estimate
    p90: Estimate | None
    """None where the samples cannot support the percentile."""
    p95: Estimate | None
    p99: Estimate | None
    cv: float
    """Standard deviation over mean."""


class Comparison(Record, frozen=True, kw_only=True):
    """A candidate's latency over the baseline's: above 1 is slower."""

    ratio: Estimate
    verdict: Verdict
    noisy: bool
    """The interval is wider than the precision that was asked for."""
    rounds_only: bool = False
    """The interval lacks the spread between processes, because there was one launch: too narrow, and no verdict."""


class CaseSummary(Record, frozen=True, kw_only=True):
    """One row."""

    case: Case
    is_baseline: bool
    compute: Latency | None
    host_to_host: Latency | None
    comparison: Comparison | None
    """None for the baseline and for cases without samples."""
    throughput: float | None
    """Items a second: batch over the p50 of compute."""
    peak_bytes: int | None
    """Largest resident memory of a measuring worker."""
    launches: int
    worst_drift: int | None
    """Index into `case.drift` of the output farthest from the reference, a failed one first."""
    marked_windows: int
    windows: int


class RunSummary(Record, frozen=True, kw_only=True):
    """All that a report needs."""

    run: Run
    rows: list[CaseSummary]
    """Measured cases from fastest to slowest, then the others in the order asked for."""
    baseline: str | None
    control: Comparison | None
    """The baseline's second worker against the first: an A/A comparison."""
    suspicious: bool
    """The control lies outside its interval."""
    noise_floor: float | None
    """Smallest relative difference that this run could have called, such as 0.013."""
    closing: str
    """The sentence that a person would say."""
