"""Published figures, and whether a measurement bears them out. Pure functions of records and summaries.

`claims.json` is the table that comes with harness; a user's own has the same layout. A claim is of one device. What of
it is a ratio may be looked at on another device where its row says what that shows; every other figure may not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from harness import ratios
from harness.advice import METRICS
from harness.errors import UsageError
from harness.modelspec import parse_models
from harness.summary import CaseSummary, Estimate, RunSummary, WorkloadSummary

TABLE = Path(__file__).with_name("claims.json")
RATIO = "time-ratio"
OWN: Mapping[str, str] = {
    RATIO: "time ratio",
    "rate": "iterations a second",
    "composed": "composed time",
    "accuracy": "mAP@0.5",
    "utilisation": "utilisation",
}
"""Metrics beside those of `harness.advice`."""
UNMEASURED = frozenset({"accuracy", "utilisation"})
"""Those that no comparison of ours gives; a figure in them says what it lacks."""
_ID = re.compile(r"[A-Za-z0-9.-]{1,40}")
"""It becomes a part of a folder's name."""

ONE_LAUNCH = "one launch cannot show how processes differ, so there is no verdict: a larger --budget allows more"

Sense = Literal["about", "at most", "at least"]
Verdict = Literal["holds", "does not hold", "undecided", "not measured", "not runnable"]
"""`not measured`: it was tried, or would need something else; `not runnable`: this machine cannot."""


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of a claim, in seconds, bytes, items a second, or as a ratio of times."""

    metric: str
    case: str
    """In the grammar of `--backends`."""
    over: str | None = None
    """Of a ratio: the case whose time it is relative to."""
    model: str | None = None
    """In the grammar of `--model`; None: the claim's only one."""
    at: dict[str, int] = {}
    """Sizes of a sweep's dimensions at which it is meant."""
    composition: str | None = None
    """Of a composed figure: its name in the registry."""
    value: float
    sense: Sense = "about"
    tolerance: float
    """Relative: how far a measurement may lie from the value and still bear it out."""
    why: str
    """Why so far."""
    lacks: str = ""
    """Why it cannot be measured even on its device."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest measurement that bears it out."""
        low, high = self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)
        return (0.0 if self.sense == "at most" else low), (math.inf if self.sense == "at least" else high)


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was published of one set-up, and how it is measured again."""

    id: str
    subject: str
    device: str
    """As the driver's name of the card holds it, such as `RTX 4090`."""
    models: list[str]
    backends: list[str]
    baseline: str | None = None
    batch: int = 1
    dims: dict[str, list[int]] = {}
    conditions: str
    """What the source leaves open, and what is taken instead."""
    elsewhere: str = ""
    """What its ratios show on another device; empty: nothing."""
    lacks: str = ""
    """Why harness cannot measure it on any machine."""
    figures: list[Figure]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Claims of one source."""

    source: str
    claims: list[Claim]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One figure beside what was measured."""

    figure: Figure
    verdict: Verdict
    measured: Estimate | None = None
    ratio: float | None = None
    """Measured over claimed."""
    reason: str = ""
    """Why there is no verdict on it."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One claim and all that was found."""

    claim: Claim
    device: str | None = None
    """Where it was measured; None where it was not."""
    elsewhere: bool = False
    """That device is another one than the claim's."""
    run: str | None = None
    """Folder of the comparison."""
    cached: bool = False
    """It was measured by an earlier command."""
    figures: list[Judged]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `harness claims`."""

    source: str
    checked: list[Checked]
    interrupted: bool = False


def read(path: Path = TABLE) -> Table:
    """Return a table of claims.

    Raises:
        UsageError: The file cannot be read, or is no such table; the message says where.
    """
    try:
        table = msgspec.json.decode(path.read_bytes(), type=Table)
    except OSError as exc:
        raise UsageError(f"--table {path} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"--table {path} is no table of claims: {exc}", hint=f"as an example: {TABLE}") from exc
    ids = [claim.id for claim in table.claims]
    if bad := [one for one in ids if not _ID.fullmatch(one)]:
        raise UsageError(f"--table {path}: '{bad[0]}' is no id", hint="letters, digits, dots and dashes, 40 at most")
    if twice := [one for one in dict.fromkeys(ids) if ids.count(one) > 1]:
        raise UsageError(f"--table {path} has {twice[0]} twice")
    for claim in table.claims:
        for figure in claim.figures:
            if problem := _problem(claim, figure):
                raise UsageError(f"--table {path}: {claim.id}, {figure.metric}: {problem}")
    return table


def _problem(claim: Claim, figure: Figure) -> str:
    if figure.metric not in METRICS and figure.metric not in OWN:
        return f"there is no such metric; known: {', '.join(sorted({*METRICS, *OWN}))}"
    if figure.metric in UNMEASURED and not figure.lacks:
        return "a comparison does not give it, so it must say what it lacks"
    if (figure.metric == RATIO) != (figure.over is not None):
        return "`over` belongs to a ratio of times, and a ratio needs it"
    if (figure.metric == "composed") != (figure.composition is not None):
        return "`composition` belongs to a composed figure, which needs it"
    if not 0 <= figure.tolerance < 1 or not (figure.value > 0 and math.isfinite(figure.value)):
        return "a value above zero and a tolerance from 0 to below 1 are wanted"
    if unknown := [case for case in (figure.case, figure.over) if case and case not in claim.backends]:
        return f"{unknown[0]} is not among the claim's backends"
    if figure.model is not None and figure.model not in claim.models:
        return f"{figure.model} is not among the claim's models"
    return ""


def title(metric: str) -> str:
    """Return what a metric is called."""
    return METRICS[metric].title if metric in METRICS else OWN[metric]


def measurable(claim: Claim, *, elsewhere: bool) -> list[Figure]:
    """Return the figures that a comparison on the claim's device gives, or on another one."""
    if claim.lacks or (elsewhere and not claim.elsewhere):
        return []
    return [one for one in claim.figures if not one.lacks and (one.metric == RATIO or not elsewhere)]


def refused(claim: Claim, reason: str) -> Checked:
    """Return a claim that this machine cannot run, for one reason; what no machine could keeps its own."""
    return Checked(
        claim=claim,
        figures=[
            _without(one, claim, Judged(figure=one, verdict="not runnable", reason=reason)) for one in claim.figures
        ],
    )


def checked(claim: Claim, summary: RunSummary, *, device: str, elsewhere: bool) -> Checked:
    """Return a claim beside the comparison that was made for it."""
    wanted = measurable(claim, elsewhere=elsewhere)
    other = f"a figure of the {claim.device} says nothing of another device"
    figures = [
        _judged(one, claim, summary)
        if one in wanted
        else _without(one, claim, Judged(figure=one, verdict="not runnable", reason=other))
        for one in claim.figures
    ]
    return Checked(claim=claim, device=device, elsewhere=elsewhere, figures=figures)


def verdict(figure: Figure, measured: Estimate) -> Verdict:
    """Return what a measurement says of a figure.

    | the interval lies               | verdict |
    |---------------------------------|---------|
    | within the bounds, ends counted | holds |
    | beyond one of them              | does not hold |
    | across one of them              | undecided |

    It takes intervals that hold the spread between processes, so what was measured in one launch is undecided anyway.
    """
    low, high = figure.bounds
    if low <= measured.low and measured.high <= high:
        return "holds"
    return "does not hold" if measured.high < low or measured.low > high else "undecided"


def _without(figure: Figure, claim: Claim, otherwise: Judged) -> Judged:
    lacks = claim.lacks or figure.lacks
    return Judged(figure=figure, verdict="not measured", reason=lacks) if lacks else otherwise


def _judged(figure: Figure, claim: Claim, summary: RunSummary) -> Judged:
    found = _composed(figure, summary) if figure.metric == "composed" else _single(figure, claim, summary)
    if isinstance(found, str):
        return Judged(figure=figure, verdict="not measured", reason=found)
    alone = _launches(figure, claim, summary) < 2
    return Judged(
        figure=figure,
        verdict="undecided" if alone else verdict(figure, found),
        measured=found,
        ratio=found.value / figure.value,
        reason=ONE_LAUNCH if alone else "",
    )


def _launches(figure: Figure, claim: Claim, summary: RunSummary) -> int:
    """Return in how many launches the cases of a figure were measured, the fewest of any."""
    own = _workload(figure, claim, summary.workloads)
    workloads = summary.workloads if figure.composition else [own] if own else []
    rows = [row for one in workloads for row in one.rows if row.case.id in (figure.case, figure.over)]
    return min((row.launches for row in rows), default=0)


def _composed(figure: Figure, summary: RunSummary) -> Estimate | str:
    whole = next((one for one in summary.composed if one.name == figure.composition), None)
    row = next((one for one in whole.rows if one.case == figure.case), None) if whole else None
    if row is None or row.seconds is None:
        gone = (
            ", ".join(f"{name}: {status}" for name, status in row.lacks.items()) if row else "its parts have no result"
        )
        return f"it cannot be put together: {gone}"
    return row.seconds


def _single(figure: Figure, claim: Claim, summary: RunSummary) -> Estimate | str:
    workload = _workload(figure, claim, summary.workloads)
    if workload is None:
        return "the comparison has no such workload"
    rows = {row.case.id: row for row in workload.rows}
    for case in (figure.case, figure.over):
        if case and (problem := _unsound(case, rows.get(case), workload)):
            return problem
    row = rows[figure.case]
    if figure.over is not None:
        comparison = ratios.against(workload.workload, figure.over).get(figure.case)
        return comparison.ratio if comparison else "too little was measured of the two side by side"
    if figure.metric == "rate":
        found = METRICS["latency"].of(row)
        return Estimate(value=1 / found.value, low=1 / found.high, high=1 / found.low) if found else "it has no samples"
    return METRICS[figure.metric].of(row) or f"this run has no {title(figure.metric)}: not measured, or too few samples"


def _workload(figure: Figure, claim: Claim, workloads: Sequence[WorkloadSummary]) -> WorkloadSummary | None:
    (spec,) = parse_models([figure.model or claim.models[0]], Path())
    wanted = {**spec.dims, **figure.at}
    return next(
        (
            one
            for one in workloads
            if (one.workload.model.name, one.workload.model.options) == (spec.name, spec.options)
            and wanted.items() <= one.workload.dims.items()
        ),
        None,
    )


def _unsound(case: str, row: CaseSummary | None, workload: WorkloadSummary) -> str:
    """Return why a case's numbers cannot be held against a claim, if they cannot."""
    if row is None:
        failure = workload.workload.failure
        return failure.message.partition("\n")[0] if failure else f"{case} has no row"
    if row.case.status == "drifted":
        return f"the outputs of {case} drifted: it is not what was claimed"
    if row.case.status == "ok" and row.compute is None:
        return f"{case} has no samples"
    if row.case.status != "ok":
        why = f": {row.case.failure.message.partition(chr(10))[0]}" if row.case.failure else ""
        return f"{case}: {row.case.status.replace('_', ' ')}{why}"
    return ""
