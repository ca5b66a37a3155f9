"""LaTeX: a table a workload for a paper, drawn by tabulate with booktabs' rules, with what it was measured on."""

from __future__ import annotations

from tabulate import tabulate

from harness.api import Report
from harness.summary import RunSummary, WorkloadSummary
from reports import details, sections
from reports.formatting import clean
from reports.table import Table, draw_table

SHOWN = ("case", "p50_ns", "p99_ns", "ratio", "verdict", "drift_relative_l2", "compile_s", "peak_bytes", "status")
"""Columns that fit a page; the precision comes besides where there are several."""
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Shrinks what is wider than the text, and leaves what is not."""
_MEANS_SOMETHING = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_TABLE = str.maketrans(_MEANS_SOMETHING)


class Latex(Report):
    """For papers."""

    name = "latex"
    summary = "booktabs tables with captions, for a paper"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the tables; `color` and `width` change nothing."""
        machine = [f"% {line.label}: {line.text}" for line in sections.environment(run.run)]
        head = [r"% \usepackage{booktabs,graphicx}; names in other scripts take xelatex or lualatex", *machine]
        tables = [_float(workload, run) for workload in run.workloads if workload.rows]
        closing = [f"% {sections.closing(run)}"] if len(run.workloads) != 1 and run.closing else []
        return "\n\n".join(["\n".join(head), *tables, *closing]) + "\n"


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is, outside a table."""
    return text.translate(_TABLE)


def _float(workload: WorkloadSummary, run: RunSummary) -> str:
    table = draw_table(workload, run)
    several = len({row.case.precision for row in workload.rows}) > 1
    shown = {*SHOWN, *(["precision"] if several else [])}
    table = table.select([column.key for column in table.columns if column.key in shown])
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{escape(details.heading(workload, run))}}}",
            f"  {_FITTED}",
            _tabular(table),
            "  }",
            f"  % {clean(workload.closing)}",
            r"\end{table}",
        ]
    )


def _tabular(table: Table) -> str:
    units = [column.unit for column in table.columns]
    lines = tabulate(
        [units, *([cell.text for cell in row] for row in table.rows)],
        headers=[column.title for column in table.columns],
        tablefmt="latex_booktabs",  # it escapes
        colalign=[column.align for column in table.columns],
        disable_numparse=True,
    ).split("\n")
    rule = lines.index(r"\midrule")  # the units stand above it
    lines[rule], lines[rule + 1] = lines[rule + 1], lines[rule]
    return "\n".join(lines)
