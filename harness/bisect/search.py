"""Which of many versions changed a figure: what to measure next, and what may be said in the end. Pure functions.

Versions are numbers from 0, the good end, to `count - 1`, the bad one. Each judgement holds a candidate against a
reference, which is the good end. First the ends themselves, then the middle of what is left, until two neighbours are
left; these are held against each other, so that the figure of the guilty pair is its own. Where a second step as
large as the threshold may hide behind the first, the search begins again there, with the later of the pair as its
good end. For one step this takes 1 + log2 + 1 judgements, at most log2(count) + 3.

| judgement   | interval of the ratio                                       | what the search makes of it          |
|-------------|-------------------------------------------------------------|--------------------------------------|
| changed     | above 1, and the estimate at or above 1 + threshold         | the step is at or before it          |
| improved    | below 1, and the estimate at or below 1 / (1 + threshold)   | the step is behind it                |
| like        | below 1 + threshold                                         | the step is behind it                |
| undecided   | anything else, after as many samples as are allowed         | neighbours are tried, it stays open  |
| untestable  | there is none: it could not be installed, or gave no result | neighbours are tried, it stays open  |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from harness.records import Record

Kind = Literal["changed", "improved", "like", "undecided", "untestable"]
OPEN_AT_MOST = 3
"""Undecided candidates between two that are decided: more of them would only say again that the step is small."""
ADDING_UP = 0.75
"""Share of the threshold from which on a change that may be left is looked into."""


class Judgement(Record, frozen=True, kw_only=True):
    """What can be said of a candidate against a reference."""

    kind: Kind
    change: float | None = None
    """Natural logarithm of the ratio, candidate over reference."""
    half_width: float | None = None
    """Of the 99 % interval of `change`; None where there is none."""
    reason: str = ""
    """Why it is untestable."""
    measured: bool = True
    """Whether something was run for it: a version that cannot be installed costs no measurement."""


class Step(Record, frozen=True, kw_only=True):
    """Two versions between which the figure changed."""

    before: int
    after: int
    judgement: Judgement
    """Of the later against the earlier. `like` where the change against the good end has only added up by then."""
    unknown: dict[int, Judgement]
    """Versions between them that could not be tried, or were not decided."""


class Found(Record, frozen=True, kw_only=True):
    """All that a search found."""

    ends: Judgement
    """Of the bad end against the good one."""
    steps: list[Step]
    """In the order of versions; empty unless the ends differ."""
    skipped: dict[int, str]
    """Versions that could not be tried, and why."""
    measurements: int
    rest: Judgement | None = None
    """Of the bad end against the last step's later version, where a change may be left there and was not located."""


Judge = Callable[[int, int], Judgement]
"""(reference, candidate) -> judgement."""
Say = Callable[[int, int], None]
"""(versions left, judgements still needed at most, unless some fail)."""


def classify(change: float | None, half_width: float | None, threshold: float) -> Kind:
    """Return what a change amounts to: statistics and the threshold have to agree. The table above.

    Args:
        change: Natural logarithm of a ratio.
        half_width: Of its interval; 0 for a figure that does not vary.
        threshold: Share, such as 0.05.
    """
    if change is None or half_width is None:
        return "undecided"
    limit = math.log1p(threshold)
    if change >= limit and change - half_width > 0:
        return "changed"
    if change <= -limit and change + half_width < 0:
        return "improved"
    return "like" if change + half_width < limit else "undecided"


def middle(left: Sequence[int]) -> int:
    """Return which of the versions between two that are decided is judged next."""
    return left[len(left) // 2]


def needed(left: int) -> int:
    """Return how many judgements find the step among so many versions between two that are decided."""
    return math.ceil(math.log2(left + 1))


def search(count: int, judge: Judge, say: Say, *, threshold: float, exact: bool = False, several: bool = True) -> Found:
    """Find the steps between version 0 and version `count - 1`.

    Args:
        count: At least 2.
        judge: Asked for each pair once.
        say: Told before each judgement within the ends.
        threshold: Share from which on a change counts.
        exact: The figure does not vary: what follows from other judgements is not measured.
        several: Go on behind the first step, where more is left.
    """
    return _Search(judge, say, threshold, exact=exact).run(count - 1, several=several)


class _Search:
    def __init__(self, judge: Judge, say: Say, threshold: float, *, exact: bool) -> None:
        self._judge = judge
        self._say = say
        self._threshold = threshold
        self._exact = exact
        self._known: dict[tuple[int, int], Judgement] = {}
        self._skipped: dict[int, str] = {}

    def run(self, last: int, *, several: bool) -> Found:
        ends = self._of(0, last)
        steps: list[Step] = []
        reference, of_last, rest = 0, ends, None
        while of_last.kind == "changed":
            step = self._locate(reference, last, of_last)
            steps.append(step)
            if step.after == last or not several:
                break
            left = _minus(of_last, self._of(reference, step.after))
            if not self._may_hold_a_step(left):
                break
            reference = step.after
            of_last = rest = self._derived(left) if self._exact else self._of(reference, last)
            if rest.kind == "changed":
                rest = None  # it will be located
        return Found(
            ends=ends,
            steps=steps,
            skipped=self._skipped,
            measurements=sum(one.measured for one in self._known.values()),
            rest=rest if rest is not None and rest.kind == "undecided" else None,
        )

    def _of(self, reference: int, candidate: int) -> Judgement:
        pair = reference, candidate
        if pair not in self._known:
            self._known[pair] = self._judge(reference, candidate)
        return self._known[pair]

    def _locate(self, reference: int, high: int, of_high: Judgement) -> Step:
        """Return the step at which the change against the reference first reaches the threshold."""
        low, of_low = reference, Judgement(kind="like", change=0.0, half_width=0.0)
        unsure: dict[int, Judgement] = {}
        while left := [one for one in range(low + 1, high) if one not in self._skipped and one not in unsure]:
            if sum(low < one < high for one in unsure) >= OPEN_AT_MOST:
                break
            self._say(len(left), needed(len(left)))
            chosen = middle(left)
            found = self._of(reference, chosen)
            if found.kind == "changed":
                high, of_high = chosen, found
            elif found.kind == "untestable":
                self._skipped[chosen] = found.reason
            elif found.kind == "undecided":
                unsure[chosen] = found
            else:
                low, of_low = chosen, found
        unknown = {
            one: unsure.get(one) or Judgement(kind="untestable", reason=self._skipped.get(one, "not tried"))
            for one in range(low + 1, high)
        }
        return Step(before=low, after=high, judgement=self._between(low, of_low, high, of_high), unknown=unknown)

    def _between(self, low: int, of_low: Judgement, high: int, of_high: Judgement) -> Judgement:
        if (low, high) in self._known:
            return self._known[low, high]
        if self._exact:
            return self._derived(_minus(of_high, of_low))
        self._say(0, 1)
        return self._of(low, high)

    def _derived(self, difference: Judgement) -> Judgement:
        kind = classify(difference.change, difference.half_width, self._threshold)
        return msgspec.structs.replace(difference, kind=kind)

    def _may_hold_a_step(self, left: Judgement) -> bool:
        limit = math.log1p(self._threshold)
        if left.change is None or left.half_width is None:
            return True  # nothing speaks against it
        return left.change + left.half_width >= limit and left.change >= ADDING_UP * limit


def _minus(one: Judgement, other: Judgement) -> Judgement:
    """Return the change from what `other` was judged on to what `one` was, both against the same reference."""
    if one.change is None or other.change is None:
        return Judgement(kind="undecided", measured=False)
    halves = [half for half in (one.half_width, other.half_width) if half is not None]
    half = math.hypot(*halves) if len(halves) == 2 else None
    return Judgement(kind="undecided", change=one.change - other.change, half_width=half, measured=False)
