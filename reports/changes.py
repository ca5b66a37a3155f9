"""Cases then and now, as people read them: the table, what changed besides, what cannot be compared, one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.history.changes import Change
from harness.history.diff import Difference, Row, Unlike
from reports.blocks import Banners, Block, Legend, Line, Section
from reports.formatting import MISSING, clean, counted, listed, ratio, shorten, significant, time_unit
from reports.page import Page
from reports.table import OF_STATUS, OF_VERDICT, Cell, Column, Drawn, Table, assembled

FIGURES = (
    ("compile", "compile"),
    ("memory", "peak"),
    ("device-memory", "device memory"),
    ("compile-memory", "compiling"),
    ("engine", "engine"),
    ("drift", "drift"),
)
"""Besides latency: metric, title of its column."""
NOTABLE = 0.01
"""A figure that moved by less is shown as the same."""
VALUE_CHARACTERS = 48
NAMED = 3
VERSION = "version"
WORDS = {"FASTER": "faster", "SLOWER": "slower", "SAME": "as fast as before"}


def draw_difference(found: Difference) -> Page:
    """Return the page of a comparison of two sides."""
    blocks: list[Block] = []
    if found.rows:
        blocks += [change_table(found.rows), Legend(texts=tuple(legend(found.rows)))]
    else:
        text = "the two sides have no case in common: nothing can be said"
        blocks.append(Banners(lines=(Line(label="NOT COMPARABLE", text=text, emphasis="bad"),)))
    blocks += sections(found.rows, found.unlike)
    notes = [Line(text=clean(note)) for note in dict.fromkeys([*found.before.notes, *found.after.notes])]
    if notes:
        blocks.append(Section(title="notes", lines=tuple(notes)))
    return Page(
        title=f"{_side(found.before.name, found.before.runs)}, then {_side(found.after.name, found.after.runs)}",
        blocks=tuple(blocks),
        closing=" ".join(_said(found.rows)),
    )


def change_table(rows: Sequence[Row], drawn: Sequence[Drawn] = ()) -> Table:
    """Return one row a case; `drawn` are further columns, put after those of the latency."""
    latencies = [row.of("latency") for row in rows]
    unit = time_unit([one.after * 1e-9 for one in latencies if one])

    def p50(value: float | None) -> Cell:
        return Cell() if value is None else Cell(text=significant(value * 1e-9 / unit.seconds, 4), value=value)

    several = len({row.workload for row in rows}) > 1
    columns: list[Drawn] = [
        (
            Column(key="case", title="workload, case" if several else "case", align="left"),
            [Cell(text=clean(f"{row.workload}, {row.case}" if several else row.case), value=row.case) for row in rows],
        ),
        (Column(key="version", title="version", unit="then > now", align="left"), [_version(row) for row in rows]),
        (
            Column(key="before", title="p50", unit=f"then {unit.name}"),
            [p50(one.before if one else None) for one in latencies],
        ),
        (
            Column(key="after", title="p50", unit=f"now {unit.name}"),
            [p50(one.after if one else None) for one in latencies],
        ),
        (Column(key="ratio", title="latency", unit="now / then [99 %]"), [_ratio(one) for one in latencies]),
        (Column(key="verdict", title="verdict", align="left"), [_verdict(one) for one in latencies]),
        (Column(key="basis", title="held against", align="left"), [_basis(one) for one in latencies]),
        *drawn,
    ]
    for metric, title in FIGURES:
        changes = [row.of(metric) for row in rows]
        if any(changes):
            columns.append((Column(key=metric, title=title, unit="now / then"), [_factor(one) for one in changes]))
    columns.append((Column(key="status", title="status", align="left"), [_status(row) for row in rows]))
    return assembled(columns)


def legend(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how to read the table, and what its verdicts claim."""
    bases = {change.basis for row in rows if (change := row.of("latency"))}
    yield (
        "Two runs share no round, so whatever the machine did on each day is in them. FASTER and SLOWER need the "
        "interval clear of 1 and at least 1 % of effect, SAME needs it within 1 %, else UNDECIDED."
    )
    if "another case" in bases:
        yield (
            "held against a case = the ratio to that case within each run, in the same version then and now: what "
            "slows the whole machine down is not in it."
        )
    if "launches" in bases:
        yield (
            "launches = the case's own latency; runs are taken to differ as much as launches do, since too few runs "
            "show how they differ. A case of which nothing changed is UNDECIDED then: the machine is another matter."
        )
    if "earlier runs" in bases:
        yield "earlier runs = the case's own latency; the interval holds how the runs before differed."
    if "none" in bases:
        yield "one launch = a single launch cannot show how processes differ: there is no interval and no verdict."


def sections(rows: Sequence[Row], unlike: Sequence[Unlike]) -> Iterator[Section]:
    """Yield what changed besides the figures, and which cases have no counterpart."""
    if changed := list(circumstances(rows)):
        yield Section(title="what changed", lines=tuple(changed))
    if unlike:
        yield Section(
            title="not compared", lines=tuple(Line(label=of, text=why) for of, why in map(without_counterpart, unlike))
        )


def circumstances(rows: Sequence[Row]) -> Iterator[Line]:
    """Yield each circumstance that changed, with the cases for which it did where that is not all of them."""
    seen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, values in told(row.circumstances):
            seen.setdefault((name, values), []).append(row.case)
    for (name, values), cases in seen.items():
        of = f"{listed([clean(case) for case in dict.fromkeys(cases)], most=NAMED)}: " if len(cases) < len(rows) else ""
        yield Line(label=name, text=f"{of}{values}")


def told(circumstances: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the name of each circumstance that changed, and what it was and is."""
    of_libraries = {values for name, values in circumstances.items() if name != VERSION}
    for name, (before, after) in circumstances.items():
        if name != VERSION or (before, after) not in of_libraries:  # a backend is mostly its library
            yield clean(name), f"{_value(before)} > {_value(after)}"


def moved(change: Change) -> str:
    """Return how far a figure moved, in words that take it as slower or bigger now."""
    value = change.ratio.value
    return f"{significant(value if value >= 1 else 1 / value)}x"


def _said(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        change = row.of("latency")
        name = clean(f"{row.workload}, {row.case}")
        if change is None or change.verdict == "UNDECIDED":
            continue
        word = WORDS[change.verdict]
        yield f"{name}: {word}." if change.verdict == "SAME" else f"{name}: {moved(change)} {word}."
    undecided = [row for row in rows if (change := row.of("latency")) and change.verdict == "UNDECIDED"]
    if undecided:
        names = listed([clean(f"{row.workload}, {row.case}") for row in undecided], most=NAMED)
        yield f"Undecided: {names}."


def _side(name: str, runs: Sequence[str]) -> str:
    if len(runs) == 1:
        return clean(name) if name == runs[0] else clean(f"{name} ({runs[0]})")
    return f"{clean(name)} ({counted(len(runs), 'run', 'runs')})"


def _version(row: Row) -> Cell:
    before, after = (point.circumstances.version or MISSING for point in (row.before, row.after))
    return Cell(text=clean(after if before == after else f"{before} > {after}"), value=after)


def _ratio(change: Change | None) -> Cell:
    if change is None:
        return Cell()
    text = ratio(change.ratio) if change.basis != "none" else f"{change.ratio.value:.3f}x"
    return Cell(text=text, value=change.ratio.value, emphasis=OF_VERDICT.get(change.verdict, ""))


def _verdict(change: Change | None) -> Cell:
    if change is None:
        return Cell()
    return Cell(text=change.verdict, value=change.verdict, emphasis=OF_VERDICT.get(change.verdict, ""))


def _basis(change: Change | None) -> Cell:
    if change is None:
        return Cell()
    words = {"another case": change.other, "none": "one launch"}
    return Cell(text=clean(words.get(change.basis, change.basis)), value=change.basis, emphasis="muted")


def _factor(change: Change | None) -> Cell:
    if change is None:
        return Cell()
    value = change.ratio.value
    if abs(value - 1) < NOTABLE:
        return Cell(text="same", value=value, emphasis="muted")
    return Cell(text=f"{significant(value)}x", value=value, emphasis="bad" if value > 1 else "good")


def _status(row: Row) -> Cell:
    before, after = row.before.status, row.after.status
    return Cell(
        text=after if before == after else f"{before} > {after}", value=after, emphasis=OF_STATUS.get(after, "bad")
    )


def without_counterpart(one: Unlike) -> tuple[str, str]:
    """Return a case that has no counterpart, and why not."""
    label = clean(f"{one.workload}, {one.case}")
    if not one.differs:
        return label, f"only in {clean(one.side)}{', and not asked for in this run' if one.unasked else ''}"
    differs = listed([f"{name}: {_value(a)} > {_value(b)}" for name, (a, b) in one.differs.items()])
    return label, f"{differs}{'' if one.nearest == one.case else f'; nearest is {clean(one.nearest)}'}"


def _value(text: str) -> str:
    return shorten(clean(text), VALUE_CHARACTERS) or "none"
