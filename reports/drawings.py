"""Charts of a run one by one, for files of their own: the entry point of `harness plot`, see `registry.drawings`."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.summary import RunSummary
from reports import charting, charts, details, pictures
from reports.blocks import Plot
from reports.formatting import clean, shorten
from reports.overview import sweep_plots

SUBJECT_CHARACTERS = 88


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One chart of a run."""

    chart: charting.Chart
    workloads: tuple[str, ...]
    subject: str
    """What it is of, below its title."""

    @property
    def kind(self) -> str:
        """Return what it shows."""
        return self.chart.key

    def content(self, format_: str) -> bytes:
        """Return the picture as the content of a file."""
        return pictures.file(self.chart, self.subject, format_)


def drawings(run: RunSummary) -> list[Drawing]:
    """Return all charts that there are data for, workload by workload, then those of sweeps.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if not pictures.is_available():
        raise UsageError("charts need matplotlib, which is not installed", hint=charting.INSTALL)
    found = [
        Drawing(
            chart=chart,
            workloads=(workload.workload.key,),
            subject=shorten(details.heading(workload, run), SUBJECT_CHARACTERS),
        )
        for workload in run.workloads
        for chart in charts.of_workload(workload, run.run.ceilings)
    ]
    for sweep, plot in sweep_plots(run):
        found.append(_of_sweep(tuple(sweep.workloads), plot))
    return found


def _of_sweep(workloads: tuple[str, ...], plot: Plot) -> Drawing:
    return Drawing(
        chart=charts.of_plot(plot), workloads=workloads, subject=shorten(clean(plot.title), SUBJECT_CHARACTERS)
    )
