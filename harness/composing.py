"""Figures put together from measured parts, such as an image in 50 steps. Pure functions of summaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from harness import registry
from harness.api import Composition
from harness.records import Status, Workload
from harness.summary import CaseSummary, Composed, ComposedRow, Estimate, Part, WorkloadSummary


def composed(
    workloads: Sequence[WorkloadSummary],
    compositions: Sequence[Composition] | None = None,
    ordinary: Callable[[Workload], bool] | None = None,
) -> list[Composed]:
    """Return the figures all of whose parts are workloads of this run, with the same weights and precision.

    A figure is the sum over parts of calls times the p50 of compute. A sum of medians is not the median of the sum,
    and copies between the parts, schedulers and tokenizers are not in it. Its interval adds up the ends of the parts'
    intervals, as if all parts were at the same end at once: too wide, never too narrow.

    Args:
        workloads: All of the run.
        compositions: Those of the registry unless given.
        ordinary: Says whether a workload has the default options and sizes of its model, which a part needs.
    """
    if sum(one.workload.model.kind == "reference" for one in workloads) < 2:
        return []
    figures = registry.compositions() if compositions is None else compositions
    parts: dict[tuple[str, bool, str], WorkloadSummary] = {}
    wanted = {model for figure in figures for model in figure.calls}
    for one in workloads:
        workload = one.workload
        if workload.model.kind == "reference" and workload.model.name in wanted and (ordinary or is_default)(workload):
            kind = (workload.model.name, one.seeded, workload.device)
            parts.setdefault(kind, one)
    kinds = dict.fromkeys((seeded, device) for _, seeded, device in parts)
    return [
        _figure(figure, {model: parts[(model, *kind)] for model in figure.calls})
        for figure in figures
        for kind in kinds
        if all((model, *kind) in parts for model in figure.calls)
    ]


def is_default(workload: Workload) -> bool:
    """Say whether a workload of a reference model has its default options and sizes."""
    kind = registry.model_class(workload.model.name)
    options = msgspec.structs.asdict(kind.Options())
    plain = all(options.get(key) == value for key, value in workload.model.options.items())
    return plain and {**kind.dims, **workload.dims} == dict(kind.dims)


def _figure(figure: Composition, parts: Mapping[str, WorkloadSummary]) -> Composed:
    cases = dict.fromkeys(row.case.id for one in parts.values() for row in one.rows)
    rows = [_row(case, figure, parts) for case in cases]
    return Composed(
        name=figure.name,
        what=figure.what,
        parts=[
            Part(model=model, workload=parts[model].workload.key, calls=calls) for model, calls in figure.calls.items()
        ],
        rows=sorted(rows, key=lambda row: row.seconds.value if row.seconds else math.inf),
    )


def _row(case: str, figure: Composition, parts: Mapping[str, WorkloadSummary]) -> ComposedRow:
    total = Estimate(value=0.0, low=0.0, high=0.0)
    lacks: dict[str, Status] = {}
    for model, calls in figure.calls.items():
        row = next((row for row in parts[model].rows if row.case.id == case), None)
        if row is None or row.case.status != "ok" or row.compute is None:
            lacks[parts[model].workload.key] = _why(row)
            continue
        p50, seconds = row.compute.p50, calls * 1e-9
        total = Estimate(
            value=total.value + seconds * p50.value,
            low=total.low + seconds * p50.low,
            high=total.high + seconds * p50.high,
        )
    return ComposedRow(case=case, seconds=None if lacks else total, lacks=lacks)


def _why(row: CaseSummary | None) -> Status:
    # A case that is said to be ok but holds no samples was cut off between its judgement and its first window.
    return "interrupted" if row is None or row.case.status == "ok" else row.case.status
