"""What `harness check` found, as people read it: the verdict, what is worse, what is not, what was not compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from harness.history.gate import LEAST_COMPILE_S, Check, Figure, Judged, Outcome
from harness.history.limits import Limits
from harness.history.points import Metric
from reports.blocks import Banners, Block, Legend, Line, Section
from reports.changes import change_table, legend, sections, without_counterpart
from reports.formatting import clean, counted, duration, listed, percent, scientific, shorten, significant, size
from reports.formatting import ratio as interval
from reports.page import Page
from reports.table import Cell, Column, Emphasis

TITLES: dict[Metric, str] = {
    "latency": "latency",
    "compile": "compile time",
    "memory": "peak memory",
    "device-memory": "device memory",
    "compile-memory": "memory while compiling",
    "engine": "engine",
    "drift": "drift",
}
WORDS: dict[Outcome, str] = {
    "regression": "regression",
    "suspicious": "suspicious",
    "undecided": "undecided",
    "excused": "moved",
    "unconfirmed": "gone again",
    "improvement": "better",
    "pass": "ok",
}
"""From the worst to the best: the first that a case has stands in the table."""
EMPHASIS: dict[Outcome, Emphasis] = {"regression": "bad", "improvement": "good"}
REASON_CHARACTERS = 160
Statement = tuple[str, str]
"""What it is about, and what is said of it."""


def draw_check(check: Check) -> Page:
    """Return the page of a check."""
    rows = [one.row for one in check.judged]
    blocks: list[Block] = [Banners(lines=tuple(_banners(check)))]
    if rows:
        marks = [_mark(one) for one in check.judged]
        table = change_table(rows, [(Column(key="check", title="check", align="left"), marks)])
        blocks += [table, Legend(texts=(*legend(rows), *_legend(check)))]
    for title, lines in (
        ("regressions", [*regressions(check)]),
        ("suspicious, and gone when measured again", [*_stated(check, "unconfirmed")]),
        ("undecided", [*_stated(check, "undecided")]),
        ("moved, though nothing changed that could be to blame", [*_stated(check, "excused")]),
        ("over the limit, and no more than usual", [*_usual(check)]),
        ("better", [*_stated(check, "improvement")]),
    ):
        if lines:
            blocks.append(Section(title=title, lines=tuple(Line(label=of, text=text) for of, text in lines)))
    blocks += sections(rows, check.unlike)
    blocks.append(Section(title="limits", lines=tuple(_limits(check.limits))))
    if notes := [Line(text=clean(note)) for note in [*dict.fromkeys(check.notes), *_uncompared(check)]]:
        blocks.append(Section(title="notes", lines=tuple(notes)))
    return Page(title=f"check: {_held(check)}", blocks=tuple(blocks), closing=closing(check))


def regressions(check: Check) -> Iterator[Statement]:
    """Yield what is worse."""
    yield from _stated(check, "regression")
    for one in check.missing:
        yield clean(f"{one.workload}, {one.case}"), f"missing: it was in {clean(one.run)}, and is not in this run"


def closing(check: Check) -> str:
    """Return what a person would say."""
    if check.outcome == "nothing compared":
        why = next(
            (f"; {of}: {text}" for one in check.unlike if one.differs for of, text in [without_counterpart(one)]), ""
        )
        return f"Nothing could be compared: {_held(check)}{why}."
    compared = counted(len(check.judged), "case", "cases")
    bad = [*regressions(check)]
    doubtful = list(dict.fromkeys(of for of, _ in _stated(check, "undecided")))
    if check.outcome == "passed":
        doubt = f", {counted(len(doubtful), 'case', 'cases')} undecided" if doubtful else ""
        return f"Nothing is worse in {compared}{doubt}."
    found = []
    if bad:
        names = listed(list(dict.fromkeys(of for of, _ in bad)), most=3)
        found.append(f"{counted(len(bad), 'regression', 'regressions')} in {compared}: {names}")
    if doubtful and check.limits.undecided == "fail":
        found.append(
            f"{counted(len(doubtful), 'case', 'cases')} undecided, which fails here: {listed(doubtful, most=3)}"
        )
    return f"{'; '.join(found)}."


def remarks(check: Check, most: int = 10) -> list[tuple[str, str, str]]:
    """Return level, title and message of what a workflow is to be told; of each level at most what it shows."""
    if check.outcome == "nothing compared":
        return [("error", "harness check", closing(check))]
    out = []
    doubtful = [*_stated(check, "undecided")]
    for level, found in (
        ("error", [*regressions(check), *(doubtful if check.limits.undecided == "fail" else [])]),
        ("warning", [*(doubtful if check.limits.undecided == "pass" else []), *_stated(check, "excused")]),
    ):
        shown = found if len(found) <= most else found[: most - 1]
        out += [(level, f"harness: {of}", text) for of, text in shown]
        if len(found) > len(shown):
            out.append((level, "harness check", f"and {len(found) - len(shown)} more, see the report"))
    return out


def statement(one: Judged, figure: Figure) -> str:
    """Return what is said of one figure."""
    change = figure.change
    factor = interval(change.ratio) if change.basis != "none" else f"{significant(change.ratio.value)}x"
    before, after = (_value(figure.metric, value) for value in (change.before, change.after))
    limit = f", limit {significant(figure.limit)}x" if math.isfinite(figure.limit) else ""
    parts = [
        f"{TITLES[figure.metric]} {factor} ({before} > {after}{limit})",
        *_grounds(figure),
        *_confirmed(one, figure),
    ]
    return "; ".join(parts)


def status_statement(one: Judged) -> str:
    """Return what is said of a case that fails now and did not then, or the other way round."""
    row = one.row
    parts = [f"{row.before.status} > {row.after.status}"]
    if row.after.failure:
        parts.append(shorten(clean(row.after.failure), REASON_CHARACTERS))
    if one.status == "unconfirmed":
        parts.append(f"it did not fail again in {listed(one.again, most=3)}")
    elif one.status == "regression":
        parts += _repeated(one, "failed again in")
    return "; ".join(parts)


def _stated(check: Check, outcome: Outcome) -> Iterator[Statement]:
    for one in check.judged:
        of = clean(f"{one.row.workload}, {one.row.case}")
        if one.status == outcome:
            yield of, status_statement(one)
        for figure in one.figures:
            if figure.outcome == outcome:
                yield of, statement(one, figure)


def _usual(check: Check) -> Iterator[Statement]:
    for one in check.judged:
        for figure in one.figures:
            usual = figure.change.basis == "earlier runs" and figure.change.ratio.value > figure.limit
            if figure.outcome == "pass" and usual:
                yield clean(f"{one.row.workload}, {one.row.case}"), statement(one, figure)


def _grounds(figure: Figure) -> Iterator[str]:
    change = figure.change
    if figure.metric == "latency":
        words = {
            "another case": f"held against {clean(change.other)} in each run",
            "earlier runs": "earlier runs show how it varies",
            "launches": "from the launches of each run",
            "none": "one launch cannot show how processes differ",
        }
        yield words[change.basis]
        if figure.busy:
            yield "other processes kept the machine busy, so all of the interval and the latency itself must be over it"
    elif change.basis == "earlier runs":
        yield f"{figure.earlier} earlier runs show how it varies"
    elif figure.metric != "drift":
        yield f"by the limit alone: {counted(figure.earlier, 'earlier run', 'earlier runs')} cannot show how it varies"


def _confirmed(one: Judged, figure: Figure) -> Iterator[str]:
    if figure.first is not None:
        first = f"{significant(figure.first.ratio.value)}x at first"
        verb = "confirmed" if figure.outcome == "regression" else "measured again"
        yield f"{verb} in {listed(one.again, most=3)}, {first}"
    elif one.not_again and figure.outcome in ("regression", "undecided", "unconfirmed"):
        yield f"not measured again: {clean(one.not_again)}"


def _repeated(one: Judged, words: str) -> list[str]:
    if one.again:
        return [f"{words} {listed(one.again, most=3)}"]
    return [f"not measured again: {clean(one.not_again)}"] if one.not_again else []


def _value(metric: Metric, value: float) -> str:
    shown: dict[Metric, Callable[[float], str]] = {
        "latency": lambda nanoseconds: duration(nanoseconds * 1e-9),
        "compile": duration,
        "drift": scientific,
    }
    return shown[metric](value) if metric in shown else size(round(value))


def _mark(one: Judged) -> Cell:
    worst = next(outcome for outcome in WORDS if outcome in one.outcomes)
    return Cell(text=WORDS[worst], value=worst, emphasis=EMPHASIS.get(worst, ""))


def _held(check: Check) -> str:
    before = check.before
    (run,) = check.after.runs
    held = (
        f"{before.name} ({counted(len(before.runs), 'run', 'runs')})" if before.runs != [before.name] else before.name
    )
    return clean(f"{run} against {held}")


def _banners(check: Check) -> Iterator[Line]:
    if check.outcome == "passed":
        yield Line(label="PASSED", text=closing(check), emphasis="good")
        return
    label = "FAILED" if check.outcome == "failed" else "NOT COMPARABLE"
    yield Line(label=label, text=closing(check), emphasis="bad")


def _legend(check: Check) -> Iterator[str]:
    figures = [figure for one in check.judged for figure in one.figures if figure.metric != "latency"]
    if figures:
        yield (
            "Compile time, memory and engine are one value a run: with six earlier runs of a case they must leave the "
            "spread of these (99 %, from median and MAD), with fewer the limit alone decides. A compilation that takes "
            f"less than {duration(LEAST_COMPILE_S)} longer never fails."
        )
    if any(figure.first for one in check.judged for figure in one.figures):
        yield (
            "What was measured again is judged on all measurements together; a figure with one value a run must be "
            "over its limit in each."
        )


def _limits(limits: Limits) -> Iterator[Line]:
    for label, growth in (
        ("latency", limits.slowdown),
        ("compile time", limits.compile),
        ("memory", limits.memory),
        ("engine", limits.size),
    ):
        yield Line(label=label, text=f"at most {percent(growth)} more" if math.isfinite(growth) else "any")
    drift = limits.drift
    words = {
        "factor": f"at most {significant(drift.value)} times what it was",
        "distance": f"a relative L2 distance of at most {scientific(drift.value)}",
        "pass": "whatever agrees with the reference",
        "any": "any",
    }
    yield Line(label="drift", text=words[drift.kind])
    yield Line(label="undecided", text={"pass": "passes", "fail": "fails"}[limits.undecided])


def _uncompared(check: Check) -> Iterator[str]:
    reused = [one.row for one in check.judged if one.row.after.compiled_at or one.row.before.compiled_at]
    if reused:
        yield (
            f"compile time of {counted(len(reused), 'case', 'cases')} is not compared: an engine was taken from an "
            "earlier run; harness compare --cold compiles anew"
        )
    if any("undecided" in one.outcomes for one in check.judged):
        yield (
            "more measurements decide what is undecided: harness check --remeasure 3, or harness compare with a larger "
            "--budget, or with more --launches"
        )
    single = [one.row for one in check.judged if (change := one.row.of("latency")) and change.basis == "none"]
    if single:
        yield (
            f"latency of {counted(len(single), 'case', 'cases')} has no interval, since a run had one launch, so it "
            "cannot fail: harness compare without --quick, or --against last:10 with six runs before"
        )
