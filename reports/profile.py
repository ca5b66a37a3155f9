"""Profiles as people read them: the operators that take most, backends side by side, and what became of each node."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from harness.profiles import (
    By,
    CaseProfile,
    Fate,
    ProfileRecord,
    ProfileRow,
    WorkloadProfile,
    fates,
    kinds,
    leading,
    operators_of,
    ops_of,
    rows,
)
from reports.blocks import Banners, Block, Failures, Heading, Legend, Line, Problem, Section
from reports.formatting import (
    MISSING,
    clean,
    clean_lines,
    counted,
    listed,
    percent,
    shorten,
    significant,
    time_unit,
)
from reports.page import Page
from reports.table import OF_STATUS, Cell, Column, Drawn, Table, assembled
from reports.tracking import rendered

NAME_CHARACTERS = 48
SAID_CHARACTERS = 30
OWN_SHOWN = 4
NODES_SHOWN = 12
LOG_LINES = 8
NOTHING = -0.005
"""Operators that add up to more than the iteration by less than this are within what two clocks differ by."""


def profile(
    record: ProfileRecord, *, by: By, top: int, format_: str, color: bool = False, width: int | None = None
) -> str:
    """Return what `harness profile` prints."""
    if format_ == "csv":
        return table_of_operators(record)
    return rendered(draw(record, by, top), format_=format_, color=color, width=width)


def draw(record: ProfileRecord, by: By, top: int) -> Page:
    """Return the page of a record."""
    blocks: list[Block] = [Banners(lines=tuple(_banners(record)))]
    for workload in record.workloads:
        if len(record.workloads) > 1:
            blocks.append(Heading(text=clean(workload.key)))
        blocks += _workload(workload, by, top)
    names = listed([clean(one.key) for one in record.workloads], most=3) if record.workloads else "nothing"
    closing = " ".join(_said(record.workloads[0])) if len(record.workloads) == 1 else ""
    return Page(
        title=f"profile of {names}: {record.iterations} iterations, {clean(record.cpu)}",
        blocks=tuple(block for block in blocks if not _empty(block)),
        closing=closing,
    )


def _empty(block: Block) -> bool:
    return isinstance(block, (Banners, Section)) and not block.lines


def _banners(record: ProfileRecord) -> Iterator[Line]:
    text = (
        "each backend's own account of itself, under its own profiler and clock: no latencies, and nothing to compare"
    )
    yield Line(label="PROFILE", text=f"{text} backends by; harness compare does that")
    if record.state != "finished":
        yield Line(label="INTERRUPTED", text="what was finished is here", emphasis="bad")


def _workload(workload: WorkloadProfile, by: By, top: int) -> Iterator[Block]:
    cases = [case for case in workload.cases if case.profile]
    if cases:
        found = rows(workload, by)
        shown = found[:top]
        yield _side_by_side(shown, cases, by)
        yield Legend(texts=tuple(_legend(by, len(found), len(shown))))
        yield _totals(workload)
        yield Legend(
            texts=(
                "with profiler = the mean iteration by harness' own clock while the profiler is at work; unexplained = "
                "the share of it that no operator took, such as Python's time between operators. Without: the median "
                "iteration in the same process before, not for comparison. costs = the median with it over that one; "
                "what is below zero is the machine's noise.",
            )
        )
        ops = ops_of(workload)
        yield Section(title="fused groups among these rows", lines=tuple(_groups(shown, cases, ops)))
        yield Section(title="operators without a node of the graph", lines=tuple(_own(cases)))
        yield Section(title="nodes for which nothing runs", lines=tuple(_eliminated(cases, ops)))
    else:
        yield _totals(workload)
    notes = [Line(text=clean(note)) for note in workload.notes]
    notes += [
        Line(label=clean(case.id), text=clean(note))
        for case in cases
        for note in (case.profile.notes if case.profile else [])
    ]
    yield Section(title="notes", lines=tuple(notes))
    if problems := tuple(_problems(workload)):
        yield Failures(problems=problems)


# ---- side by side


def _side_by_side(shown: Sequence[ProfileRow], cases: Sequence[CaseProfile], by: By) -> Table:
    title = {"node": "node", "op": "operator", "group": "group, by its leading node"}[by]
    drawn: list[Drawn] = [
        (
            Column(key="name", title=title, align="left"),
            [Cell(text=shorten(clean(row.name), NAME_CHARACTERS), value=row.name) for row in shown],
        )
    ]
    if by != "op":
        drawn.append(
            (
                Column(key="op", title="operator", align="left"),
                [Cell(text=shorten(clean(row.op), SAID_CHARACTERS), value=row.op) for row in shown],
            )
        )
    times = [
        entry.ns * 1e-9 for row in shown for entry in row.entries.values() if entry.ns is not None and entry.ns > 0
    ]
    unit = time_unit(times)
    for case in cases:
        cells = [_cell(row, case.id, unit.seconds, by) for row in shown]
        drawn.append((Column(key=case.id, title=clean(case.id), unit=f"{unit.name} (share)"), cells))
    return assembled(drawn)


def _cell(row: ProfileRow, case: str, seconds: float, by: By) -> Cell:
    entry = row.entries.get(case)
    if entry is None:
        return Cell()
    if entry.ns is None or entry.share is None:
        return Cell(text=shorten(clean(entry.said), SAID_CHARACTERS) or MISSING, emphasis="muted")
    beside = f" {entry.said}" if entry.said and (by != "group" or entry.said != "1x") else ""
    return Cell(text=f"{significant(entry.ns * 1e-9 / seconds)}{beside} ({percent(entry.share)})", value=entry.ns)


def _legend(by: By, total: int, shown: int) -> Iterator[str]:
    yield (
        "share = of one iteration under that backend's profiler. Rows are ordered by their largest share in any "
        f"backend; {shown} of {total} are shown."
    )
    if by == "node":
        yield (
            "+1, +2, ... = with so many more nodes, which the backend runs in the same operators; those say in which "
            "row their time is. It cannot be parted."
        )
    elif by == "op":
        yield (
            "A fused group counts where its leading node does, the one with the most arithmetic; 3x = three operators. "
            "In brackets: a backend's own operators, which belong to no node."
        )
    else:
        yield (
            "A group holds the nodes that some backend runs in one operator, so that no operator reaches out of its "
            "row; 3x = three operators do it."
        )


# ---- one row a backend


def _totals(workload: WorkloadProfile) -> Table:
    ops = ops_of(workload)
    cases = workload.cases
    known = [fates(case, ops) for case in cases]
    times = [case.iteration_ns * 1e-9 for case in cases if case.profile]
    unit = time_unit(times)

    def time(ns: float | None) -> Cell:
        return Cell() if not ns else Cell(text=significant(ns * 1e-9 / unit.seconds), value=ns)

    def share(value: float | None) -> Cell:
        return Cell() if value is None else Cell(text=percent(value), value=value)

    def number(found: dict[str, Fate], *which: str) -> Cell:
        if not found:
            return Cell()
        count = sum(one.kind in which for one in found.values())
        return Cell(text=str(count), value=count)

    return assembled(
        [
            (Column(key="case", title="backend", align="left"), [Cell(text=clean(one.id)) for one in cases]),
            (
                Column(key="version", title="version", align="left"),
                [Cell(text=clean(one.version or MISSING)) for one in cases],
            ),
            (
                Column(key="clock", title="whose clock", align="left"),
                [Cell(text=clean(one.profile.clock if one.profile else MISSING)) for one in cases],
            ),
            (Column(key="plain", title="without", unit=f"{unit.name}"), [time(one.plain_median_ns) for one in cases]),
            (
                Column(key="profiled", title="with profiler", unit=unit.name),
                [time(one.iteration_ns) for one in cases],
            ),
            (Column(key="overhead", title="costs"), [share(one.overhead) for one in cases]),
            (Column(key="explained", title="operators", unit=unit.name), [time(one.explained_ns) for one in cases]),
            (Column(key="unexplained", title="unexplained"), [_unexplained(one) for one in cases]),
            (
                Column(key="operators", title="operators"),
                [_count(len(operators_of(one)) if one.profile else None) for one in cases],
            ),
            (Column(key="alone", title="nodes", unit="alone"), [number(one, "own") for one in known]),
            (Column(key="fused", title="nodes", unit="fused"), [number(one, "leads", "fused") for one in known]),
            (Column(key="gone", title="nodes", unit="eliminated"), [number(one, "eliminated") for one in known]),
            (Column(key="unseen", title="nodes", unit="not seen"), [number(one, "unseen") for one in known]),
            (
                Column(key="status", title="status", align="left"),
                [Cell(text=one.status, emphasis=OF_STATUS.get(one.status, "bad")) for one in cases],
            ),
        ],
        themes=(
            ("version", "clock", "status"),
            ("plain", "profiled", "overhead", "explained", "unexplained", "operators"),
            ("alone", "fused", "gone", "unseen"),
        ),
    )


def _unexplained(case: CaseProfile) -> Cell:
    value = case.unexplained
    if value is None:
        return Cell()
    if value < NOTHING:
        return Cell(text=f"{percent(value)} (operators overlap)", value=value, emphasis="bad")
    return Cell(text=percent(max(0.0, value)), value=value)


def _count(value: int | None) -> Cell:
    return Cell() if value is None else Cell(text=str(value), value=value)


# ---- what became of nodes


def _groups(shown: Sequence[ProfileRow], cases: Sequence[CaseProfile], ops: dict[str, str]) -> Iterator[Line]:
    """Yield the fused groups whose leading node stands in a row that is shown, each with its nodes and who has it."""
    names = {name for row in shown for name in row.nodes}
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for case in cases:
        for operator in operators_of(case):
            if len(operator.nodes) > 1 and leading(operator.nodes, ops) in names:
                found.setdefault(operator.nodes, {})[case.id] = None
    for nodes, who in found.items():
        yield Line(label=clean(", ".join(who)), text=clean(f"{kinds(nodes, ops)}: {_names(nodes)}"))


def _names(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
    return ", ".join(nodes[:NODES_SHOWN]) + more


def _own(cases: Sequence[CaseProfile]) -> Iterator[Line]:
    for case in cases:
        took: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for operator in operators_of(case):
            if not operator.nodes:
                took[operator.kind] += round(case.per_iteration(operator))
                count[operator.kind] += 1
        if not took:
            continue
        said = [
            f"{count[kind]}x {shorten(clean(kind), NAME_CHARACTERS)} {percent(ns / case.iteration_ns)}"
            for kind, ns in took.most_common(OWN_SHOWN)
        ]
        more = len(took) - len(said)
        rest = f" and {counted(more, 'kind', 'kinds')} more" if more > 0 else ""
        whole = percent(sum(took.values()) / case.iteration_ns)
        yield Line(label=clean(case.id), text=f"{whole} of its time: {', '.join(said)}{rest}")


def _eliminated(cases: Sequence[CaseProfile], ops: dict[str, str]) -> Iterator[Line]:
    for case in cases:
        of: dict[str, Counter[str]] = {}
        for name, reason in (case.profile.eliminated if case.profile else {}).items():
            of.setdefault(reason, Counter())[ops.get(name, "?")] += 1
        for reason, found in of.items():
            said = listed([f"{number} {op}" for op, number in found.most_common()], most=6)
            yield Line(label=clean(case.id), text=clean(f"{reason}: {said}"))


def _problems(workload: WorkloadProfile) -> Iterator[Problem]:
    for case in workload.cases:
        if case.failure is not None:
            yield Problem(
                subject=clean(case.id),
                status=case.status,
                stage=clean(case.failure.stage),
                reason=clean(case.failure.message),
                emphasis=OF_STATUS.get(case.status, "bad"),
                hint=clean(case.failure.hint or ""),
                log=clean(case.failure.log or ""),
                log_tail=tuple(clean_lines(case.failure.log_tail, last=LOG_LINES)),
            )
        elif case.profile is None:
            reason = (
                "built for a device that this machine does not have" if case.status == "compiled" else "not profiled"
            )
            yield Problem(subject=clean(case.id), status=case.status, stage="profile", reason=reason, emphasis="muted")


def _said(workload: WorkloadProfile) -> Iterator[str]:
    tops = rows(workload, "op")
    for case in workload.cases:
        shares = [(entry.share, row.name) for row in tops if (entry := row.entries.get(case.id)) and entry.share]
        if shares:
            share, name = max(shares)
            yield f"{clean(case.id)} spends {percent(share)} in {clean(name)}."


# ---- for spreadsheets


def table_of_operators(record: ProfileRecord) -> str:
    """Return one line an operator, in order of execution, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "workload",
            "case",
            "version",
            "position",
            "operator",
            "kind",
            "nodes",
            "ops",
            "calls",
            "iteration_ns",
            "share",
        ]
    )
    for workload in record.workloads:
        ops = ops_of(workload)
        for case in workload.cases:
            for position, one in enumerate(operators_of(case)):
                ns = case.per_iteration(one)
                writer.writerow(
                    [
                        *(workload.key, case.id, case.version, position, one.name, one.kind),
                        *(" ".join(one.nodes), kinds(one.nodes, ops), one.calls, ns, ns / case.iteration_ns),
                    ]
                )
    return text.getvalue()
