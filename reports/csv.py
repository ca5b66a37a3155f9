"""CSV: one line a case, every number at full precision with its unit in the column's name, nothing formatted.

The columns are those of `reports.values.values`; an empty field means that there is no value. A case is told by
`workload` and `case` together; `dims` holds the free dimensions but the batch, as `sequence=128`. `ratio` is time over
the time of the workload's baseline. A value that is no finite number is left empty; counts of NaN and Inf in outputs
have columns of their own. Raw samples are in the run's `run.json`.
"""

from __future__ import annotations

import csv
import io
import math

from harness.api import Report, Scalar
from harness.modelspec import ModelSpec
from harness.records import Case, Workload
from harness.summary import CaseSummary, RunSummary, WorkloadSummary
from reports.values import values


class Csv(Report):
    """For spreadsheets and data frames."""

    name = "csv"
    summary = "one line a case, full precision, units in the column names"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the lines of the file, a header first; `color` and `width` change nothing."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=columns(run), lineterminator="\n")
        writer.writeheader()
        for workload in run.workloads:
            for row in workload.rows:
                writer.writerow({key: _field(value) for key, value in values(row, workload, run).items()})
        return text.getvalue()


def columns(run: RunSummary) -> list[str]:
    """Return the names of all columns; they are the same for every run, also for one without cases."""
    return list(values(_NO_CASE, _NO_WORKLOAD, run))


def _field(value: Scalar) -> Scalar:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NO_CASE = CaseSummary(
    case=Case(id="", backend="", options={}, device="", precision="", batch=0, threads=0, status="interrupted"),
    is_baseline=False,
    compute=None,
    host_to_host=None,
    comparison=None,
    throughput=None,
    gflop_per_s=None,
    peak_bytes=None,
    launches=0,
    worst_drift=None,
    marked_windows=0,
    windows=0,
)
_NO_WORKLOAD = WorkloadSummary(
    workload=Workload(key="", model=ModelSpec(name=""), dims={}, batch=0, baseline=""),
    seeded=False,
    rows=[],
    baseline=None,
    control=None,
    suspicious=False,
    noise_floor=None,
    closing="",
)
