"""What several sizes of one dimension say together: throughput by size, and the price of dynamic shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import ratios
from harness.modelspec import BATCH
from harness.records import Case, Workload
from harness.summary import CaseSummary, Estimate, Point, Price, Series, Sweep, WorkloadSummary

_DYNAMIC = "dynamic"
"""The option of `BackendOptions` that asks for one engine for all shapes."""

_Others = tuple[tuple[str, int], ...]


def sweeps(workloads: Sequence[WorkloadSummary]) -> list[Sweep]:
    """Return every set of two or more workloads that differ in the size of one free dimension only.

    Over two dimensions at once, such as batch and sequence, there is one sweep over each for every size of the other.
    """
    groups: dict[tuple[tuple[object, ...], str, _Others], dict[int, WorkloadSummary]] = {}
    for one in workloads:
        dims = _dims(one.workload)
        for dim, size in dims.items():
            others = tuple(sorted((key, value) for key, value in dims.items() if key != dim))
            groups.setdefault((_model(one.workload), dim, others), {}).setdefault(size, one)
    several = len({_place(one.workload) for one in workloads}) > 1
    return [
        _sweep(dim, dict(others), dict(sorted(points.items())), placed=several)
        for (_, dim, others), points in groups.items()
        if len(points) > 1
    ]


def prices(workloads: Sequence[Workload]) -> list[Price]:
    """Compare every dynamic engine with the static one of the same backend and options, workload by workload."""
    found = []
    for workload in workloads:
        for dynamic in workload.cases:
            static = _static_sibling(dynamic, workload.cases)
            if static is not None:
                found.append(
                    Price(
                        workload=workload.key,
                        static=static.id,
                        dynamic=dynamic.id,
                        comparison=ratios.against(workload, static.id).get(dynamic.id),
                        statuses=(static.status, dynamic.status),
                    )
                )
    return found


def _sweep(dim: str, fixed: Mapping[str, int], points: Mapping[int, WorkloadSummary], *, placed: bool) -> Sweep:
    of = list(points.values())
    first = of[0].workload
    cases = dict.fromkeys(row.case.id for one in of for row in one.rows)
    return Sweep(
        model=f"{first.model.label} on {first.device}" if placed else first.model.label,
        dim=dim,
        fixed=dict(fixed),
        sizes=list(points),
        workloads=[one.workload.key for one in of],
        series=[Series(case=case, points=[_point(one, case) for one in of]) for case in cases],
    )


def _point(summary: WorkloadSummary, case: str) -> Point | None:
    row = next((row for row in summary.rows if row.case.id == case), None)
    return None if row is None else Point(status=row.case.status, throughput=_throughput(row, summary.workload.batch))


def _throughput(row: CaseSummary, batch: int) -> Estimate | None:
    if row.compute is None or row.compute.p50.low <= 0:
        return None
    p50 = row.compute.p50
    return Estimate(value=batch * 1e9 / p50.value, low=batch * 1e9 / p50.high, high=batch * 1e9 / p50.low)


def _model(workload: Workload) -> tuple[object, ...]:
    spec = workload.model
    return spec.kind, spec.name, tuple(sorted(spec.options.items(), key=lambda item: item[0])), *_place(workload)


def _place(workload: Workload) -> tuple[str, str | None]:
    return workload.device, workload.target


def _dims(workload: Workload) -> dict[str, int]:
    return {BATCH: workload.batch} | workload.dims


def _static_sibling(dynamic: Case, cases: Sequence[Case]) -> Case | None:
    if dynamic.options.get(_DYNAMIC) is not True:
        return None
    rest = {key: value for key, value in dynamic.options.items() if key != _DYNAMIC}
    fits = (
        case
        for case in cases
        if case.backend == dynamic.backend
        and not case.options.get(_DYNAMIC)
        and {key: value for key, value in case.options.items() if key != _DYNAMIC} == rest
    )
    return next(fits, None)
