"""A check as JUnit XML: a suite a workload, a test a figure of a case, and a failing test a regression.

| outcome                          | becomes   |
|----------------------------------|-----------|
| `regression`, a missing case     | a failure |
| `undecided`, `excused`           | skipped, with what is known; a failure where `undecided` fails |
| a case without a counterpart     | skipped   |
| nothing could be compared        | an error  |
| everything else                  | a pass    |
"""

from __future__ import annotations

from xml.etree import ElementTree

from harness.history.gate import Check, Judged
from reports.changes import without_counterpart
from reports.formatting import clean
from reports.gate import TITLES, closing, statement, status_statement

DOUBTFUL = ("undecided", "excused")


def render(check: Check) -> str:
    """Return the document."""
    root = ElementTree.Element("testsuites", name=clean(f"harness check {check.after.name}"))
    workloads = [one.row.workload for one in check.judged]
    workloads += [one.workload for one in check.missing] + [one.workload for one in check.unlike]
    for workload in dict.fromkeys(workloads):
        _suite(root, workload, check)
    if check.outcome == "nothing compared":
        suite = ElementTree.SubElement(root, "testsuite", name="harness check")
        _case(suite, "harness check", "compared", "error", closing(check))
        _count(suite)
    ElementTree.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ElementTree.tostring(root, encoding='unicode')}\n"


def _suite(root: ElementTree.Element, workload: str, check: Check) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=clean(workload))
    worse = {"regression", "undecided"} if check.limits.undecided == "fail" else {"regression"}
    for one in check.judged:
        if one.row.workload == workload:
            _judged(suite, one, worse)
    for missing in check.missing:
        if missing.workload == workload:
            _case(suite, f"{workload}.{missing.case}", "status", "failure", f"missing: it was in {missing.run}")
    for unlike in check.unlike:
        if unlike.workload == workload:
            text = f"not compared: {without_counterpart(unlike)[1]}"
            _case(suite, f"{workload}.{unlike.case}", "compared", "skipped", text)
    _count(suite)


def _judged(suite: ElementTree.Element, one: Judged, worse: set[str]) -> None:
    name = f"{one.row.workload}.{one.row.case}"
    failing = one.status in ("regression", "suspicious")
    _case(suite, name, "status", "failure" if failing else "", status_statement(one))
    for figure in one.figures:
        kind = "failure" if figure.outcome in worse else "skipped" if figure.outcome in DOUBTFUL else ""
        _case(suite, name, TITLES[figure.metric], kind, statement(one, figure))


def _case(suite: ElementTree.Element, of: str, name: str, kind: str, text: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", name=name, classname=clean(f"harness.{of}"))
    if not kind:
        ElementTree.SubElement(case, "system-out").text = clean(text)
        return
    node = ElementTree.SubElement(case, kind, message=clean(text))
    if kind != "skipped":
        node.set("type", "regression" if kind == "failure" else "error")
        node.text = clean(text)


def _count(suite: ElementTree.Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{kind}"))))
