"""Tables of a published history: where each case stands now, and lists of models, backends, machines and runs.

Links are seen from a page in a folder; those of the first page are made to fit by `root`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from harness.history import site
from harness.history.changes import latency_change
from harness.history.points import Point
from harness.history.queries import RunRow
from harness.history.site import CaseHistory
from reports.formatting import MISSING, clean, listed, ratio, scientific, shorten, significant, time_unit
from reports.table import OF_STATUS, OF_VERDICT, Cell, Column, Drawn, Table, assembled

UP = "../"
MACHINE_CHARACTERS = 48
NAMED = 4
"""Things that a cell names; of more it gives the number."""
MB = 1e6
DAY = 10
"""Characters of a time of day that are its day."""


def standings(cases: Sequence[CaseHistory], *, shows: Iterable[str] = ("model", "setting", "machine")) -> Table:
    """Return where each case stands now, and what became of it since the run before; `shows` says where it was."""
    wanted = set(shows)
    unit = time_unit([case.last.latency_ns * 1e-9 for case in cases if case.last.latency_ns])
    changes = [latency_change(case.points[-2:-1], case.points[-1:]) for case in cases]

    def column(key: str, title: str, show: Callable[[Point], Cell], unit: str = "", *, left: bool = False) -> Drawn:
        return _head(key, title, unit, left=left), [show(case.last) for case in cases]

    columns = [
        column("case", "case", lambda one: text(one.case), left=True),
        column("model", "model", lambda one: link(one.key.model, UP + site.model_path(one.key.model)), left=True),
        column("setting", "setting", lambda one: text(setting_name(one)), left=True),
        column("p50", "p50", lambda one: number(one.latency_ns, unit.seconds * 1e9, 4), unit.name),
        (
            _head("change", "since the run before", "time ratio [99 %]"),
            [Cell() if one is None else Cell(text=ratio(one.ratio), value=one.ratio.value) for one in changes],
        ),
        (
            _head("verdict", "verdict", left=True),
            [
                Cell() if one is None else Cell(
                    text=one.verdict, value=one.verdict, emphasis=OF_VERDICT.get(one.verdict, "")
                )
                for one in changes
            ],
        ),
        column("status", "status", _status, left=True),
        column("compile", "compile", lambda one: number(one.compile_s, 1.0), "s"),
        column("memory", "peak", lambda one: number(one.memory_bytes, MB), "MB"),
        column("engine", "engine", lambda one: number(one.engine_bytes, MB), "MB"),
        column("drift", "drift", _drift, "rel. L2"),
        column("version", "version", lambda one: text(one.circumstances.version or ""), left=True),
        (_head("runs", "runs"), [Cell(text=str(len(each.points)), value=len(each.points)) for each in cases]),
        column("run", "newest run", lambda one: link(one.created[:DAY], UP + site.run_path(one.run)), left=True),
        column("machine", "machine", _machine, left=True),
    ]  # fmt: skip
    always = {"case", "status", "run", *wanted}
    optional = {"model", "setting", "machine"} - wanted
    return assembled(
        [
            one
            for one in columns
            if one[0].key in always or (one[0].key not in optional and any(cell.text != MISSING for cell in one[1]))
        ]
    )


def models(cases: Sequence[CaseHistory]) -> Table:
    """Return the models, as the first page shows them."""
    return _groups("model", cases, lambda point: point.key.model, site.model_path, others=("backends", "machines"))


def backends(cases: Sequence[CaseHistory]) -> Table:
    """Return the backends, as the first page shows them."""
    return _groups("backend", cases, lambda point: point.key.backend, site.backend_path, others=("models", "versions"))


def machines(cases: Sequence[CaseHistory]) -> Table:
    """Return the classes of machines, as the first page shows them."""
    return _groups("machine", cases, lambda point: point.key.machine, site.machine_path, others=("models", "backends"))


def versions(cases: Sequence[CaseHistory]) -> Table:
    """Return the versions of a backend that were measured, the newest first."""
    found: dict[str, list[Point]] = {}
    for point in sorted((point for case in cases for point in case.points), key=lambda one: one.created):
        if point.circumstances.version:
            found.setdefault(point.circumstances.version, []).append(point)
    rows = list(found.items())[::-1]
    return assembled(
        [
            (_head("version", "version", left=True), [text(name) for name, _ in rows]),
            (_head("first", "first run", left=True), [_run(of[0]) for _, of in rows]),
            (_head("last", "newest run", left=True), [_run(of[-1]) for _, of in rows]),
            (_head("runs", "runs"), [_count({point.run for point in of}) for _, of in rows]),
            (_head("cases", "cases"), [_count({point.series for point in of}) for _, of in rows]),
        ]
    )


def runs(rows: Sequence[RunRow], points: Iterable[Point], *, root: str) -> Table:
    """Return runs in the order given; `root` leads from the page to the first one."""
    of_run: dict[str, list[Point]] = {}
    for point in points:
        of_run.setdefault(point.run, []).append(point)
    found = [of_run.get(row.id, []) for row in rows]

    def names(of: list[Point], key: Callable[[Point], str]) -> Cell:
        return _named(dict.fromkeys(key(point) for point in of))

    return assembled(
        [
            (_head("run", "run", left=True), [link(row.id, root + site.run_path(row.id)) for row in rows]),
            (_head("created", "began", left=True), [text(row.created[:16].replace("T", " ")) for row in rows]),
            (_head("workloads", "workloads", left=True), [names(of, lambda one: one.workload) for of in found]),
            (_head("backends", "backends", left=True), [names(of, lambda one: one.key.backend) for of in found]),
            (_head("results", "results", left=True), [_results(of) for of in found]),
            (_head("state", "state", left=True), [_state(row) for row in rows]),
            (_head("commit", "commit", left=True), [text(row.commit[:12]) for row in rows]),
            (_head("host", "host", left=True), [text(row.hostname) for row in rows]),
        ]
    )


def setting_name(point: Point) -> str:
    """Return shape, precision and device of a case."""
    key = point.key
    where = f"for {key.target}" if key.target else key.device
    threads = f"{key.threads} thread{'' if key.threads == '1' else 's'}"
    return clean(", ".join(part for part in (key.dims or "batch=1", key.precision, where, threads) if part))


def text(value: str, limit: int = 0) -> Cell:
    """Return a cell with foreign text."""
    shown = clean(value) or MISSING
    return Cell(text=shorten(shown, limit) if limit else shown, value=value)


def link(value: str, to: str, limit: int = 0) -> Cell:
    """Return a cell that leads to another page."""
    cell = text(value, limit)
    return Cell(text=cell.text, value=cell.value, link=to)


def number(value: float | None, per: float, digits: int = 3) -> Cell:
    """Return a cell with a figure, or an empty one."""
    return Cell() if value is None else Cell(text=significant(value / per, digits), value=value)


def _groups(
    what: str,
    cases: Sequence[CaseHistory],
    key: Callable[[Point], str],
    path: Callable[[str], str],
    *,
    others: Sequence[str],
) -> Table:
    keys: dict[str, Callable[[Point], str]] = {
        "models": lambda point: point.key.model,
        "backends": lambda point: point.key.backend,
        "machines": lambda point: point.key.machine,
        "versions": lambda point: point.circumstances.version or "",
    }
    groups: dict[str, list[CaseHistory]] = {}
    for case in cases:
        groups.setdefault(key(case.last), []).append(case)
    rows = sorted(groups.items())
    points = [[point for case in of for point in case.points] for _, of in rows]
    lasts = [max(of, key=lambda point: point.created) for of in points]
    drawn: list[Drawn] = [
        (_head(what, what, left=True), [link(name, path(name), MACHINE_CHARACTERS) for name, _ in rows])
    ]
    if what == "model":
        drawn += _fastest(lasts, points)
    drawn += [
        (_head("cases", "cases"), [_count({case.last.series for case in of}) for _, of in rows]),
        (_head("runs", "runs"), [_count({point.run for point in of}) for of in points]),
        (_head("newest", "newest run", left=True), [_run(last, root="") for last in lasts]),
    ]
    for other in others:
        show = keys[other]
        named = [_named(dict.fromkeys(show(case.last) for case in of)) for _, of in rows]
        drawn.append((_head(other, other, left=True), named))
    return assembled(drawn)


def _fastest(lasts: Sequence[Point], points: Sequence[Sequence[Point]]) -> list[Drawn]:
    """Return the fastest sound case of the newest run of each model, in the first workload of that run."""
    best: list[Point | None] = []
    for last, of in zip(lasts, points, strict=True):
        beside = [one for one in of if one.run == last.run and one.status == "ok" and one.latency_ns]
        first = [one for one in beside if one.workload == beside[0].workload]
        best.append(min(first, key=lambda one: one.latency_ns or 0.0, default=None))
    unit = time_unit([one.latency_ns * 1e-9 for one in best if one and one.latency_ns])
    return [
        (_head("fastest", "fastest in its newest run", left=True), [text(one.case) if one else Cell() for one in best]),
        (
            _head("p50", "p50", unit.name),
            [number(one.latency_ns, unit.seconds * 1e9, 4) if one else Cell() for one in best],
        ),
        (_head("setting", "at", left=True), [text(setting_name(one)) if one else Cell() for one in best]),
    ]


def _head(key: str, title: str, unit: str = "", *, left: bool = False) -> Column:
    return Column(key=key, title=title, unit=unit, align="left" if left else "right")


def _named(names: Iterable[str]) -> Cell:
    shown = [shorten(clean(name), MACHINE_CHARACTERS) for name in names if name]
    return Cell(text=listed(shown, most=NAMED), value=" ".join(shown)) if shown else Cell()


def _count(of: set[str]) -> Cell:
    return Cell(text=str(len(of)), value=len(of))


def _run(point: Point, root: str = UP) -> Cell:
    return link(point.created[:DAY], root + site.run_path(point.run))


def _machine(point: Point) -> Cell:
    return link(point.key.machine, UP + site.machine_path(point.key.machine), MACHINE_CHARACTERS)


def _status(point: Point) -> Cell:
    return Cell(text=point.status, value=point.status, emphasis=OF_STATUS.get(point.status, "bad"))


def _drift(point: Point) -> Cell:
    return Cell() if point.drift is None else Cell(text=scientific(point.drift), value=point.drift)


def _state(row: RunRow) -> Cell:
    return Cell(text=row.state, value=row.state, emphasis="" if row.state == "finished" else "bad")


def _results(points: Sequence[Point]) -> Cell:
    counts = Counter(point.status for point in points)
    said = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    return Cell(text=said or MISSING, value=said, emphasis="bad" if "drifted" in counts else "")
