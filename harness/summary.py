"""A run as numbers: what the reports draw. Pure functions of the records."""

from __future__ import annotations

from typing import Literal

import msgspec

from harness.records import Case, DeviceMemory, EnergySource, Record, Run, Status, Workload

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]
Doubt = Literal["one launch", "suspicious", "not deterministic", "interrupted", "apart", "unsteady"]
"""Why the order of cases is less sure than their intervals say. `apart`: some were never measured beside the best one;
`unsteady`: the p50 of some is not what most of their windows saw."""


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
    window_p50_ns: float | None = None
    """Median over windows of each one's median. Windows are of equal length, so a quick one holds more samples and
    counts for more in `p50`; here, as in ratios, each counts once."""


class Comparison(Record, frozen=True, kw_only=True):
    """One case's latency over another's: above 1 is slower."""

    ratio: Estimate
    verdict: Verdict
    noisy: bool
    """The interval is wider than the precision that was asked for."""
    rounds_only: bool = False
    """The interval lacks the spread between processes, because there was one launch: too narrow, and no verdict."""
    build_sd: float | None = None
    """Relative standard deviation between independent builds, the noise of measuring them included."""


class Energy(Record, frozen=True, kw_only=True):
    """What one inference takes of a GPU's energy, that of the whole card."""

    mj: float
    by: EnergySource


class GpuSummary(Record, frozen=True, kw_only=True):
    """What a GPU did over all windows that were sampled on it. None where it does not say."""

    device: str
    sm_mhz_low: int | None
    sm_mhz_high: int | None
    memory_mhz: float | None
    """Median over windows."""
    temperature_c: int | None
    """The highest."""
    power_w: float | None
    """Mean over windows."""
    p_state: int | None
    """The slowest."""
    pcie_generation: int | None
    """The lowest, as the width."""
    pcie_width: int | None
    windows: int
    dropped_windows: int
    dropped: dict[str, int]
    """What disturbed it -> windows that no verdict rests on for it."""


class CaseSummary(Record, frozen=True, kw_only=True):
    """One row."""

    case: Case
    is_baseline: bool
    compute: Latency | None
    on_device: Latency | None = None
    """What the device itself took; None where it cannot be timed apart from the host."""
    enqueue_p50_ns: float | None = None
    """Median time that `execute()` kept the host while the device was timed."""
    off_device: int | None = None
    """Nodes that run elsewhere than on the case's device; None where its framework cannot say."""
    bound_by: Literal["compute", "memory"] | None = None
    """What sets the least time that its device needs; see `harness.roofline`. None where ceilings are not known."""
    limit_share: float | None = None
    """That least time over the p50 of compute."""
    cautions: tuple[str, ...] = ()
    """What a reader of the numbers must know, in figures."""
    host_to_host: Latency | None
    comparison: Comparison | None
    """Against the baseline. None for the baseline and for cases without samples."""
    throughput: float | None
    """Items a second: batch over the p50 of compute."""
    gflop_per_s: float | None
    """The model's floating-point operations, whatever the engine made of them, over the p50 of compute."""
    peak_bytes: int | None
    """Largest resident memory of a measuring worker."""
    launches: int
    worst_drift: int | None
    """Index into `case.drift` of the output farthest from the reference, a failed one first."""
    marked_windows: int
    windows: int
    dropped_windows: int = 0
    """Windows in which the GPU was disturbed: nothing here rests on them."""
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    """What disturbed it -> windows."""
    disturbed: dict[str, int] = msgspec.field(default_factory=dict)
    """The same where no window was left without it, so that all were kept: such numbers are of a disturbed card."""
    energy: Energy | None = None
    device_memory: DeviceMemory | None = None
    """The most of any launch, phase by phase."""
    package_energy_per_inference_j: float | None = None
    """What all processor packages took over the windows of compute, an iteration; None off the CPU, or unmeasured."""


class WorkloadSummary(Record, frozen=True, kw_only=True):
    """One table: a workload and its cases."""

    workload: Workload
    seeded: bool
    """The weights are random: distance from the reference is numerical agreement, and says nothing of accuracy."""
    rows: list[CaseSummary]
    """Measured cases from fastest to slowest, then the others in the order asked for."""
    baseline: str | None
    """None where it has no samples."""
    control: Comparison | None
    """The baseline's second worker against the first: an A/A comparison."""
    suspicious: bool
    """The control lies outside its interval."""
    noise_floor: float | None
    """Smallest relative difference that this workload's launches could have called, such as 0.013."""
    gpus: list[GpuSummary] = msgspec.field(default_factory=list)
    closing: str
    """The sentence that a person would say of it."""


class Standing(Record, frozen=True, kw_only=True):
    """One case over all workloads of a suite."""

    case: str
    is_baseline: bool
    ratio: Estimate | None
    """Geometric mean of its ratios to the baseline over the workloads where it is `ok`; None where there are none."""
    over: int
    """How many workloads that mean is over. Means over different workloads are not comparable with each other."""
    wins: int
    """Workloads in which it was the fastest `ok` case for sure."""
    ties: int
    """Workloads in which no `ok` case was faster for sure, but it was not sure to be the fastest either."""
    ok: int
    drifted: int
    compiled: int
    """Built for a device that this machine does not have."""
    failed: int
    """Workloads without a result for any other reason."""


class Suite(Record, frozen=True, kw_only=True):
    """What can be said over several workloads together."""

    baseline: str
    """What the ratios are to: the baseline of most workloads."""
    workloads: list[str]
    """Keys of the workloads that the means are over: those that were measured against this baseline."""
    left_out: list[str]
    """Keys of the others: without a measured baseline, or with another one."""
    rows: list[Standing]
    """Cases with a mean over all `workloads` from fastest to slowest; then those with a mean over fewer, the ones over
    most first, else in the order asked for; then those without."""
    contested: int
    """Workloads with a winner or a tie: at least two `ok` cases and verdicts."""
    rounds_only: bool
    """A mean holds intervals that lack the spread between processes, so it lacks it too."""


class Overall(Record, frozen=True, kw_only=True):
    """Which case to deploy where one is to serve all workloads that were measured."""

    case: str | None
    """The best on geometric mean of those that meet the wish everywhere, of several in a tie the one that compiles
    fastest; None where no case meets it everywhere."""
    ratio: Estimate | None = None
    """Geometric mean of its time over the baseline's."""
    tied: list[str] = msgspec.field(default_factory=list)
    """Others that meet it everywhere, and that the run cannot tell from the best one."""
    meets: dict[str, int]
    """Case -> in how many workloads it meets the wish; only those that do in any."""
    workloads: int
    doubts: list[Doubt] = msgspec.field(default_factory=list)
    """Those of any workload."""


class Part(Record, frozen=True, kw_only=True):
    """A workload of which a composed figure is made."""

    model: str
    workload: str
    calls: int


class ComposedRow(Record, frozen=True, kw_only=True):
    """A composed figure by one case."""

    case: str
    seconds: Estimate | None
    """Sum over parts of calls times the p50 of compute; None where a part has no result."""
    lacks: dict[str, Status]
    """Workloads in which the case is not `ok`, and what it is there."""


class Composed(Record, frozen=True, kw_only=True):
    """A figure put together from parts that were measured; never measured as a whole."""

    name: str
    what: str
    parts: list[Part]
    rows: list[ComposedRow]
    """From fastest to slowest, then those without a figure."""


class Point(Record, frozen=True, kw_only=True):
    """One case at one size."""

    status: Status
    throughput: Estimate | None
    """Items a second."""


class Series(Record, frozen=True, kw_only=True):
    """One case over a sweep."""

    case: str
    points: list[Point | None]
    """One a size; None where the case was not planned."""


class Sweep(Record, frozen=True, kw_only=True):
    """Workloads that differ in the size of one free dimension only."""

    model: str
    dim: str
    fixed: dict[str, int]
    """The other free dimensions."""
    sizes: list[int]
    """Ascending."""
    workloads: list[str]
    """Keys, one a size."""
    series: list[Series]


class Price(Record, frozen=True, kw_only=True):
    """What it costs at one workload that an engine takes every shape of the sweep."""

    workload: str
    static: str
    """Case id of the engine for this shape only."""
    dynamic: str
    comparison: Comparison | None
    """The dynamic engine's latency over the static one's; None where one of them was not measured."""
    statuses: tuple[Status, Status]
    """Of the static and of the dynamic case."""


class RunSummary(Record, frozen=True, kw_only=True):
    """All that a report needs."""

    run: Run
    workloads: list[WorkloadSummary]
    suite: Suite | None
    """None where fewer than two workloads were measured."""
    overall: Overall | None = None
    """What to deploy for all of them for speed and outputs that pass; None where fewer than two were measured, or
    against different baselines."""
    composed: list[Composed]
    sweeps: list[Sweep]
    prices: list[Price]
    closing: str
    """The sentence that a person would say of all of it."""
