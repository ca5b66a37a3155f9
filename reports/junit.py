"""JUnit XML: what continuous integration shows as tests, a suite a workload and a test a case.

| status                            | becomes   |
|-----------------------------------|-----------|
| `ok`                              | a pass    |
| `drifted`                         | a failure |
| `compiled`, `unavailable`, `unsupported` | skipped |
| everything else                   | an error  |

`time` is what making the case took in seconds: all stages of a fresh process. Latencies are properties, with their unit
in the name, as in the CSV report.
"""

from __future__ import annotations

from xml.etree import ElementTree

from harness.api import Report, Scalar
from harness.summary import CaseSummary, RunSummary, WorkloadSummary
from reports import details, sections
from reports.blocks import Problem
from reports.formatting import clean
from reports.values import values

SKIPPED = ("compiled", "unavailable", "unsupported")
PROPERTIES = (
    *("p50_ns", "p95_ns", "p99_ns", "throughput_per_s", "ratio", "ratio_low", "ratio_high", "verdict", "noisy"),
    *("compile_s", "warm_load_s", "engine_bytes", "peak_bytes", "drift_relative_l2", "provider", "version"),
)


class Junit(Report):
    """For continuous integration."""

    name = "junit"
    summary = "JUnit XML: a test a case, failed where outputs drifted"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the document; `color` and `width` change nothing."""
        root = ElementTree.Element("testsuites", name=f"harness {sections.title(run)}", time=f"{run.run.wall_s:.3f}")
        for workload in run.workloads:
            _suite(root, workload, run)
        ElementTree.indent(root)
        return f"<?xml version='1.0' encoding='utf-8'?>\n{ElementTree.tostring(root, encoding='unicode')}\n"


def _suite(root: ElementTree.Element, workload: WorkloadSummary, run: RunSummary) -> None:
    statuses = [row.case.status for row in workload.rows]
    skipped = sum(status in SKIPPED for status in statuses)
    drifted = statuses.count("drifted")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=clean(workload.workload.key),
        tests=str(len(statuses)),
        failures=str(drifted),
        errors=str(len(statuses) - skipped - drifted - statuses.count("ok")),
        skipped=str(skipped),
        time=f"{sum(_seconds(row) for row in workload.rows):.3f}",
        timestamp=clean(run.run.created),
        hostname=clean(run.run.environment.hostname),
    )
    found = {problem.subject: problem for problem in details.problems(workload, run)}
    shared = next(iter(found.values()), None) if workload.workload.failure else None
    for row in workload.rows:
        _case(suite, row, found.get(clean(row.case.id)) or shared, workload, run)


def _case(
    suite: ElementTree.Element, row: CaseSummary, problem: Problem | None, workload: WorkloadSummary, run: RunSummary
) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=clean(row.case.id),
        classname=f"harness.{clean(workload.workload.key)}",
        time=f"{_seconds(row):.3f}",
    )
    flat = values(row, workload, run)
    known = {key: flat[key] for key in PROPERTIES if flat.get(key) is not None}
    if known:
        properties = ElementTree.SubElement(case, "properties")
        for key, value in known.items():
            ElementTree.SubElement(properties, "property", name=key, value=_text(value))
    status = row.case.status
    if status == "ok":
        return
    reason = problem.reason if problem else status
    if status in SKIPPED:
        ElementTree.SubElement(case, "skipped", message=f"{status}: {reason}" if problem else status)
        return
    kind = "failure" if status == "drifted" else "error"
    node = ElementTree.SubElement(case, kind, type=status, message=reason)
    if problem:
        facts = [("hint", problem.hint), ("log", problem.log), ("reproduce", problem.reproduce)]
        node.text = "\n".join([reason, *(f"{key}: {text}" for key, text in facts if text), *problem.log_tail])


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(row: CaseSummary) -> float:
    stages = row.case.stages
    parts = ("load", "tune", "build")  # of compile
    return sum(took for name, took in stages.items() if name not in parts)
