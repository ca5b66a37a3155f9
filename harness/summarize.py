"""From a run to its numbers: `summarize` derives all that the reports draw. Pure functions of the records."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from harness import closing, composing, drift, gpu_figures, ratios, roofline, stats, suite, sweeps
from harness.advice import Wish
from harness.cautions import cautions, off_device
from harness.recommend import overall
from harness.records import CONTROL, Case, Run, Settings, Workload
from harness.summary import CaseSummary, Comparison, Estimate, Latency, RunSummary, WorkloadSummary

SEEDED = "seeded"
"""What `ModelInfo.weights` says of random weights."""


def summarize(run: Run) -> RunSummary:
    """Derive latencies, comparisons, verdicts and closing sentences from a run's raw samples.

    Works on a run in any state: what has no samples has no numbers. Windows that something on the host disturbed are
    counted, not left out: which ones are marked differs from case to case, so leaving them out would favour one over
    another. Those in which the GPU was slowed or shared are left out, because the card itself was another one then; see
    `ratios.visits`.
    """
    workloads = [roofline.with_limits(of_workload(workload, run.settings), run.ceilings) for workload in run.workloads]
    summary = RunSummary(
        run=run,
        workloads=workloads,
        suite=suite.standings(workloads, run.settings.cases),
        composed=composing.composed(workloads),
        sweeps=sweeps.sweeps(workloads),
        prices=sweeps.prices(run.workloads),
        closing="",
    )
    summary = msgspec.structs.replace(summary, overall=overall(summary, Wish()))
    return msgspec.structs.replace(summary, closing=closing.of_run(summary))


def of_workload(workload: Workload, settings: Settings) -> WorkloadSummary:
    """Derive the numbers of one workload; of the settings only what was asked for, and in which order, matters."""
    cases, contrasts = ratios.estimates(workload)
    comparisons = ratios.comparisons(cases, contrasts)
    rows = [_row(case, workload, comparisons.get(case.id)) for case in workload.cases if not case.id.endswith(CONTROL)]
    baseline = next((row for row in rows if row.is_baseline and row.compute), None)
    summary = WorkloadSummary(
        workload=workload,
        seeded=_seeded(workload, settings),
        rows=_ordered(rows, baseline, settings.cases),
        baseline=baseline.case.id if baseline else None,
        control=comparisons.get(cases[1]),
        suspicious=bool(stats.suspicious(contrasts)),
        noise_floor=stats.noise_floor(contrasts),
        gpus=gpu_figures.gpus(workload),
        closing="",
    )
    return msgspec.structs.replace(summary, closing=closing.of_workload(summary, settings.asked))


def precise(workload: Workload, to: float = stats.EFFECT) -> bool:
    """Say whether every ratio to the baseline is known to +-`to`, so that more launches are not needed.

    Looks at the widths of intervals only; see `stats.precise`. A case that failed is not waited for.
    """
    gone = {case.id for case in workload.cases if case.failure is not None and case.status != "drifted"}
    launches = [
        msgspec.structs.replace(launch, sittings=[one for one in launch.sittings if one.case not in gone])
        for launch in workload.launches
    ]
    contrasts = ratios.estimates(msgspec.structs.replace(workload, launches=launches))[1]
    return bool(stats.precise(contrasts, to))


def _seeded(workload: Workload, settings: Settings) -> bool:
    if workload.info is not None:
        return workload.info.weights == SEEDED
    return workload.model.kind == "reference" and settings.weights in (None, SEEDED)


def _latency(seen: ratios.Visits) -> Latency | None:
    if not seen.windows:
        return None
    samples = np.sort(np.concatenate([np.asarray(window.samples_ns, dtype=np.float64) for _, window in seen.windows]))
    # Too few for an interval at 95 %: the range is all that can be said, and the count beside it says how little.
    middle = stats.percentile(samples, 0.5) or Estimate(
        value=float(np.median(samples)), low=float(samples[0]), high=float(samples[-1])
    )
    return Latency(
        samples=len(samples),
        p50=middle,
        p90=stats.percentile(samples, 0.9),
        p95=stats.percentile(samples, 0.95),
        p99=stats.percentile(samples, 0.99),
        cv=stats.variation(samples),
        window_p50_ns=float(np.median([np.median(window.samples_ns) for _, window in seen.windows])),
    )


def _row(case: Case, workload: Workload, comparison: Comparison | None) -> CaseSummary:
    compute = ratios.visits(workload.launches, case.id, "compute")
    outside = ratios.visits(workload.launches, case.id, "host-to-host")
    on_device = ratios.visits(workload.launches, case.id, "device")
    every = (compute, on_device, outside)
    latency, device, outer = _latency(compute), _latency(on_device), _latency(outside)
    enqueue_ns = _middle([ns for _, window in on_device.windows for ns in window.enqueue_ns])
    per_s = 1e9 / latency.p50.value if latency and latency.p50.value > 0 else None
    gflop = workload.info.gflop if workload.info else None
    sittings = [sitting for launch in workload.launches for sitting in launch.sittings if sitting.case == case.id]
    is_baseline = case.id == workload.baseline
    return CaseSummary(
        case=case,
        is_baseline=is_baseline,
        compute=latency,
        on_device=device,
        enqueue_p50_ns=enqueue_ns,
        off_device=off_device(case),
        cautions=tuple(cautions(case, compute=latency, device=device, outside=outer, enqueue_ns=enqueue_ns)),
        host_to_host=outer,
        comparison=None if is_baseline else comparison,
        throughput=workload.batch * per_s if per_s else None,
        gflop_per_s=gflop * per_s if gflop is not None and per_s else None,
        peak_bytes=max((sitting.peak_bytes for sitting in sittings), default=0) or None,
        launches=len({workload.launches[index].index for index, _ in compute.windows}),
        worst_drift=drift.worst(case.drift),
        marked_windows=sum(one.marked for one in every),
        windows=sum(one.total for one in every),
        dropped_windows=sum(one.dropped_windows for one in every),
        dropped=gpu_figures.added([one.dropped for one in every]),
        disturbed=gpu_figures.added([one.disturbed for one in every]),
        energy=gpu_figures.energy(sittings),
        device_memory=gpu_figures.device_memory(sittings),
        package_energy_per_inference_j=_package_energy(compute) if case.device == "cpu" else None,
    )


def _package_energy(seen: ratios.Visits) -> float | None:
    measured = [window for _, window in seen.windows if window.package_energy_j is not None]
    iterations = sum(len(window.samples_ns) for window in measured)
    joules = sum(window.package_energy_j or 0.0 for window in measured)
    return joules / iterations if iterations else None


def _middle(durations_ns: list[int]) -> float | None:
    return float(np.median(durations_ns)) if durations_ns else None


def _ordered(rows: list[CaseSummary], baseline: CaseSummary | None, asked: list[str]) -> list[CaseSummary]:
    """Return measured rows from fastest to slowest, then the others in the order asked for.

    Speed is the ratio to the baseline, which drift of the machine does not touch; without one it is the median.
    """
    unit = baseline.compute.p50.value if baseline and baseline.compute else 1.0

    def duration(row: CaseSummary) -> float:
        if row.comparison and baseline:
            return row.comparison.ratio.value
        return row.compute.p50.value / unit if row.compute else math.inf

    places = {case: place for place, case in enumerate(asked)}
    measured = sorted((row for row in rows if row.compute), key=duration)
    others = sorted((row for row in rows if not row.compute), key=lambda row: places.get(row.case.id, len(places)))
    return measured + others
