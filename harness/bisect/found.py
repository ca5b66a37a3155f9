"""What a bisect found: records, for people by `reports.bisected`, for machines as they are."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from harness.bisect.pairs import BEYOND, Change, Figure
from harness.bisect.search import Kind
from harness.records import Record

NAMES: dict[Figure, str] = {
    "latency": "latency",
    "compile": "compile time",
    "memory": "memory",
    "device-memory": "device memory",
    "compile-memory": "memory of compiling",
    "engine": "engine size",
    "drift": "drift",
    "status": "status",
}
"""Figures in running text."""
Outcome = Literal["found", "no_change", "undecided", "interrupted"]
"""`interrupted`: of what was measured by then only the trials are told, and no step."""


class Release(Record, frozen=True, kw_only=True):
    """A version that was there to be tried."""

    version: str
    released: str | None = None
    """ISO 8601 date; None where the index does not say."""


class Trial(Record, frozen=True, kw_only=True):
    """Two versions that were measured in one run."""

    before: str
    after: str
    kind: Kind
    change: Change | None
    """None where one of them could not be installed."""
    reason: str = ""
    """Why it could not be tried."""
    runs: list[str] = msgspec.field(default_factory=list)
    """Folders of the runs, for `harness show`."""
    remembered: bool = False
    """Whether an earlier bisect had measured it."""


class Guilty(Record, frozen=True, kw_only=True):
    """Two releases between which the figure changed."""

    before: Release
    after: Release
    kind: Kind
    """`like`: each release changed less than the threshold, but by here it had added up to it."""
    trial: Trial | None
    """The two against each other. None where their figures follow from those of others."""
    change: float | None
    """Natural logarithm of the ratio, after over before."""
    half_width: float | None
    unknown: dict[str, str]
    """Versions between them that were not decided, and why."""
    packages: dict[str, tuple[str | None, str | None]]
    """What else differs between their environments: distribution -> its versions, None where it is not there."""
    reproduce: str


class Bisected(Record, frozen=True, kw_only=True):
    """The whole of it."""

    model: str
    backend: str
    """With its options, without a version."""
    device: str
    precision: str
    figure: Figure
    threshold: float
    good: str
    bad: str
    versions: list[Release]
    """From the good end to the bad one."""
    outcome: Outcome
    ends: Trial
    steps: list[Guilty]
    """In the order of `versions`."""
    skipped: dict[str, str]
    """Versions that could not be tried, and why."""
    rest: Trial | None = None
    """Of the bad end against the last step, where something may be left there that was not decided."""
    trials: list[Trial]
    """In the order in which they were made."""
    measurements: int
    """Pairs that it rests on, remembered ones among them."""


def interval(change: float | None, half_width: float | None) -> tuple[float, float, float] | None:
    """Return a ratio and the ends of its interval, which are the ratio itself where it does not vary."""
    if change is None:
        return None
    half = half_width or 0.0
    return math.exp(change), math.exp(change - half), math.exp(change + half)


def said(trial: Trial) -> str:
    """Return a trial in half a sentence: `1.31.1 against 1.20.0: latency 1.12x [1.10, 1.14]: changed`."""
    pair = f"{trial.after} against {trial.before}"
    change = trial.change
    if trial.kind == "untestable" or change is None:
        return f"{pair}: skipped: {trial.reason}"
    if change.figure == "status":
        return f"{pair}: {' against '.join(words(status) for status in reversed(change.statuses))}"
    return f"{pair}: {NAMES[change.figure]} {ratio_text(change.change, change.half_width)}: {trial.kind}"


def ratio_text(change: float | None, half_width: float | None) -> str:
    """Return a ratio with its interval as a person reads it."""
    found = interval(change, half_width)
    if found is None or change is None:
        return "-"
    if abs(change) >= BEYOND:
        return "from nothing to something" if change > 0 else "from something to nothing"
    ends = f" [{found[1]:.3f}, {found[2]:.3f}]" if half_width else ""
    return f"{found[0]:.3f}x{ends}"


def words(status: str) -> str:
    """Return a status as words of running text."""
    return "works" if status == "ok" else status.replace("_", " ")


def differing(before: dict[str, str], after: dict[str, str], own: str) -> dict[str, tuple[str | None, str | None]]:
    """Return the distributions of which two environments hold other versions, but for the one that is bisected."""
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after} - {own})
        if before.get(name) != after.get(name)
    }


class Measured(Record, frozen=True, kw_only=True):
    """What is remembered of a pair, whatever the threshold was."""

    runs: list[str]
    """Absolute folders, the newest last; one may have been interrupted."""
    change: Change | None = None
    """None while the first measurement goes on."""
    attempts: int = 0
    """How often more was measured."""
    packages: tuple[dict[str, str], dict[str, str]] = msgspec.field(default_factory=lambda: ({}, {}))
    """Of the two environments."""
    reproduce: str = ""
    """The command that compares the two."""
