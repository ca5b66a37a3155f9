"""What a bisect found, as people read it: each pair that was measured, the guilty ones, what changed beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.bisect.found import NAMES, Bisected, Guilty, Trial, ratio_text, words
from harness.bisect.pairs import OVER_RUNS, Change, Figure
from harness.bisect.search import Kind
from reports.blocks import Block, Line, Section
from reports.formatting import MISSING, clean, counted, duration, listed, percent, scientific, size
from reports.page import Page
from reports.table import Cell, Column, Drawn, Emphasis, Table, assembled
from reports.terminal import render_page

OF_KIND: dict[Kind, Emphasis] = {"changed": "bad", "improved": "good", "untestable": "muted"}
IN_WORDS: dict[Kind, str] = {
    "changed": "worse",
    "improved": "better",
    "like": "the same",
    "undecided": "undecided",
    "untestable": "skipped",
}
TIMES: tuple[Figure, ...] = ("compile",)
SIZES: tuple[Figure, ...] = ("memory", "device-memory", "compile-memory", "engine")
PACKAGES = 12
"""Names of packages that are listed; of more, so many and a count."""


def render(found: Bisected, *, color: bool = False, width: int | None = None) -> str:
    """Return what `harness bisect` prints."""
    return render_page(draw(found), color=color, width=width)


def draw(found: Bisected) -> Page:
    """Return the page of a bisect, without a format."""
    blocks: list[Block] = [_table(found)]
    for number, step in enumerate(found.steps, 1):
        name = f"step {number}" if len(found.steps) > 1 else "the step"
        blocks.append(
            Section(title=f"{name}: {step.before.version}, then {step.after.version}", lines=tuple(_lines(step, found)))
        )
    if found.skipped:
        lines = tuple(Line(label=version, text=clean(reason)) for version, reason in found.skipped.items())
        blocks.append(Section(title="skipped", lines=lines))
    return Page(
        title=f"{NAMES[found.figure]} of {clean(found.model)} on {clean(found.backend)}, {found.good} to {found.bad}: "
        f"{found.precision}, {found.device}, {counted(len(found.versions), 'version', 'versions')}",
        blocks=tuple(blocks),
        closing=" ".join(_closing(found)),
    )


def _table(found: Bisected) -> Table:
    released = {one.version: one.released for one in found.versions}
    trials = found.trials
    columns: list[Drawn] = [
        (
            Column(key="version", title="version", align="left"),
            [Cell(text=one.after, value=one.after) for one in trials],
        ),
        (
            Column(key="released", title="released", align="left"),
            [Cell(text=released.get(one.after) or MISSING, value=released.get(one.after)) for one in trials],
        ),
        (
            Column(key="against", title="against", align="left"),
            [Cell(text=one.before, value=one.before) for one in trials],
        ),
        (Column(key="before", title=NAMES[found.figure], unit="there"), [_side(one.change, 0) for one in trials]),
        (Column(key="after", title=NAMES[found.figure], unit="here"), [_side(one.change, 1) for one in trials]),
    ]
    if found.figure != "status":
        columns.append((Column(key="ratio", title="ratio", unit="[99 %]"), [Cell(text=_ratio(one)) for one in trials]))
    columns += [
        (
            Column(key="verdict", title="verdict", align="left"),
            [Cell(text=IN_WORDS[one.kind], value=one.kind, emphasis=OF_KIND.get(one.kind, "")) for one in trials],
        ),
        (
            Column(key="values", title="runs" if found.figure in OVER_RUNS else "launches"),
            [_values(one) for one in trials],
        ),
        (Column(key="run", title="run", align="left"), [_run(one) for one in trials]),
    ]
    return assembled(columns)


def _side(change: Change | None, which: int) -> Cell:
    if change is None:
        return Cell()
    if change.figure == "status" or (change.before, change.after)[which] is None:
        return Cell(text=words(change.statuses[which]), value=change.statuses[which])
    value = (change.before, change.after)[which]
    assert value is not None
    return Cell(text=shown(value, change.figure), value=value)


def shown(value: float, figure: Figure) -> str:
    """Return a figure with its unit."""
    if figure == "latency":
        return duration(value * 1e-9)
    if figure in TIMES:
        return duration(value)
    return size(int(value)) if figure in SIZES else scientific(value)


def _ratio(trial: Trial) -> str:
    return ratio_text(trial.change.change, trial.change.half_width) if trial.change else MISSING


def _values(trial: Trial) -> Cell:
    return Cell(text=str(trial.change.values), value=trial.change.values) if trial.change else Cell()


def _run(trial: Trial) -> Cell:
    if not trial.runs:
        return Cell()
    name = trial.runs[-1].rpartition("/")[2]
    return Cell(text=f"{clean(name)}{' (remembered)' if trial.remembered else ''}", value=trial.runs[-1])


def _lines(step: Guilty, found: Bisected) -> Iterator[Line]:
    dates = step.before.released, step.after.released
    yield Line(label="released", text=" > ".join(date or "not known" for date in dates))
    change = step.trial.change if step.trial else None
    if change is not None and change.figure != "status" and change.before is not None and change.after is not None:
        pair = f"{shown(change.before, change.figure)}, then {shown(change.after, change.figure)}"
        yield Line(label=NAMES[found.figure], text=f"{pair}: {ratio_text(step.change, step.half_width)}")
    elif found.figure != "status":
        yield Line(
            label=NAMES[found.figure],
            text=f"{ratio_text(step.change, step.half_width)}, from what both are against {found.good}",
        )
    elif change is not None:
        yield Line(
            label="status",
            text=f"{words(change.statuses[0])}, then {words(change.statuses[1])}: {clean(change.failures[1])}",
        )
    for version, reason in step.unknown.items():
        yield Line(label=f"not known: {version}", text=clean(reason))
    yield Line(label="changed besides", text=_packages(step.packages))
    yield Line(label="reproduce", text=clean(step.reproduce))


def _packages(packages: Mapping[str, tuple[str | None, str | None]]) -> str:
    if not packages:
        return "nothing: the other packages of both environments are the same"
    named = [f"{clean(name)} {before or 'none'} > {after or 'none'}" for name, (before, after) in packages.items()]
    return listed(named, most=PACKAGES)


def _closing(found: Bisected) -> Iterator[str]:
    name = NAMES[found.figure]
    end = ratio_text(found.ends.change.change, found.ends.change.half_width) if found.ends.change else MISSING
    if found.outcome == "no_change":
        if found.figure == "status" and found.ends.change is not None:
            both = "Both ends work" if found.ends.change.statuses == ("ok", "ok") else "Neither end works"
            yield f"{both}: there is nothing to search for."
        else:
            yield (
                f"There is no step: {found.bad} has {end} the {name} of {found.good}, less than the threshold "
                f"of {percent(found.threshold)}."
            )
    elif found.outcome == "undecided":
        yield (
            f"The ends cannot be told apart: {found.bad} has {end} the {name} of {found.good}, which is not "
            f"decided against a threshold of {percent(found.threshold)}. A quieter machine may tell; --cold measures "
            "anew."
        )
    elif found.outcome == "interrupted":
        yield "INTERRUPTED. What was measured is remembered: the same command goes on from here."
    for step in found.steps:
        yield _verdict(step, found)
    if found.rest is not None:
        yield f"Whether more changed between {found.rest.before} and {found.bad} is not decided ({_ratio(found.rest)})."
    yield f"{counted(found.measurements, 'measurement', 'measurements')}."


def _verdict(step: Guilty, found: Bisected) -> str:
    ratio = "" if found.figure == "status" else f" ({ratio_text(step.change, step.half_width)})"
    name = NAMES[found.figure]
    span = f"between {step.before.version} and {step.after.version}{ratio}"
    if step.unknown:
        what = f"{name} changed {span}; which of {listed([*step.unknown, step.after.version])} did it is not known"
        return f"{what[:1].upper()}{what[1:]}."
    if step.kind == "like":
        return (
            f"No single release did it: {name} has added up to the threshold by {step.after.version}, which "
            f"alone changed it by less{ratio}."
        )
    if step.kind != "changed":
        return (
            f"It came with {step.after.version}, but against {step.before.version} itself that is {step.kind}{ratio}."
        )
    if found.figure == "status":
        return f"{step.after.version} is the first that does not work; {step.before.version} does."
    times = ratio_text(step.change, step.half_width)
    return f"{step.after.version} did it: its {name} is {times} that of {step.before.version}."
