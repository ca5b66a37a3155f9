"""From a run to its points, by the statistics of a comparison. Pure functions of the records."""

from __future__ import annotations

import math
import statistics

import numpy as np
import scipy.special

from harness import ratios, summarize
from harness.history.keys import circumstances_of, key_of, subject_of
from harness.history.points import Evidence, Point, Relative, sortable
from harness.records import REUSED, Case, Launch, Run, Workload
from harness.stats import CONFIDENCE


def points_of(run: Run) -> list[Point]:
    """Return a point for every case of a run, whatever became of it."""
    return [point for workload in run.workloads for point in _of_workload(workload, run)]


def _of_workload(workload: Workload, run: Run) -> list[Point]:
    rows = {row.case.id: row for row in summarize.of_workload(workload, run.settings).rows}
    relatives = _relatives(workload, run)
    subject = subject_of(workload)
    points = []
    for case in workload.cases:
        if case.id not in rows:  # a control
            continue
        row, key = rows[case.id], key_of(case, workload, run.environment)
        levels = _levels(workload.launches, case.id)
        others_cpu, mhz = _machine(workload.launches, case.id)
        points.append(
            Point(
                run=run.id,
                created=sortable(run.created),
                workload=workload.key,
                case=case.id,
                series=key.series,
                key=key,
                subject=subject,
                circumstances=circumstances_of(case, workload, run),
                status=case.status,
                failure=_failure(case),
                latency_ns=row.compute.p50.value if row.compute else None,
                compile_s=case.stages.get("compile"),
                compiled_at=str(case.facts[REUSED]) if REUSED in case.facts else None,
                memory_bytes=row.peak_bytes,
                device_memory_bytes=_device_memory(workload.launches, case.id),
                compile_memory_bytes=case.peak_compile_bytes,
                engine_bytes=case.engine_bytes,
                drift=_drift(case),
                evidence=Evidence(levels=levels, relatives=relatives.get(case.id, [])) if levels else None,
                others_cpu=others_cpu,
                mhz=mhz,
                labels=run.labels,
            )
        )
    return points


def _levels(launches: list[Launch], case: str) -> list[float]:
    seen: dict[int, list[float]] = {}
    for index, window in ratios.visits(launches, case, "compute").windows:
        # Groups of one launch are records of their own: a case sits in one of them, the baseline in each.
        seen.setdefault(launches[index].index, []).append(math.log(max(float(np.median(window.samples_ns)), 1.0)))
    return [float(np.median(levels)) for _, levels in sorted(seen.items())]


def _machine(launches: list[Launch], case: str) -> tuple[float | None, float | None]:
    """Return what others took of the CPUs, and how fast these ran, while a case was sampled."""
    windows = [window for _, window in ratios.visits(launches, case, "compute").windows]
    others = [window.others_cpu for window in windows if window.others_cpu is not None]
    clocks = [window.mhz for window in windows if window.mhz is not None]
    return statistics.fmean(others) if others else None, statistics.median(clocks) if clocks else None


def _relatives(workload: Workload, run: Run) -> dict[str, list[Relative]]:
    """Return each case against the baseline, and the baseline against each of them."""
    of_id = {case.id: case for case in workload.cases}
    if workload.baseline not in of_id:
        return {}
    cases, contrasts = ratios.estimates(workload)
    out: dict[str, list[Relative]] = {}
    for index, id_ in enumerate(cases[1:]):
        freedom = float(contrasts.freedom[index])
        error = float(contrasts.half_width[index]) / float(scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
        if id_ not in of_id or contrasts.launches[index] < 2 or not math.isfinite(error):
            continue
        difference = float(contrasts.difference[index])
        for of, other, sign in ((id_, workload.baseline, 1.0), (workload.baseline, id_, -1.0)):
            against = Relative(
                series=key_of(of_id[other], workload, run.environment).series,
                version=of_id[other].version,
                case=other,
                difference=sign * difference,
                error=error,
                freedom=freedom,
            )
            out.setdefault(of, []).append(against)
    return {of: sorted(found, key=lambda each: each.error) for of, found in out.items()}


def _device_memory(launches: list[Launch], case: str) -> int | None:
    found = [
        sitting.device_memory.peak_bytes
        for launch in launches
        for sitting in launch.sittings
        if sitting.case == case and sitting.device_memory is not None
    ]
    return max(found, default=None)


def _drift(case: Case) -> float | None:
    found = [one.relative_l2 for one in case.drift if one.relative_l2 is not None]
    return max(found, default=None)


def _failure(case: Case) -> str | None:
    if case.failure is None:
        return None
    return f"{case.failure.stage}: {case.failure.message.splitlines()[0] if case.failure.message else ''}"
