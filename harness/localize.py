"""Where drift begins: the search, as pure functions of an oracle that looks at tensors.

A tensor is *clean* where a candidate's value is within the precision's tolerance of the reference's, else it has
*drifted*. Drift begins at a tensor that has drifted while all that it is computed from is clean. Such a tensor lies
above every output that drifted, whether or not drift grows on the way down: a search that only ever moves to drifted
ancestors, and never past clean ones, ends at one. On a chain of n tensors it needs about log n / log(width + 1) looks;
where branches hide the way, more.

What lies beyond the range of float16 is not compared there: a mask of -3e38 becomes the lowest number and does no harm.
It is remembered, and named where what reads it has drifted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness import drift
from harness.errors import HarnessError
from harness.protocol import SharedTensor
from harness.records import OutputDrift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

HALF_MAX = 65504.0
"""The largest finite float16."""
HALF = "fp16"
WIDTH = 8
"""Tensors that one engine is asked for: each extra output may keep a compiler from fusing."""
LOOKS_AT_MOST = 24
FAILURES_AT_MOST = 4
"""Engines with extra outputs that may fail before the search is given up."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one engine said of some tensors."""

    drifted: Mapping[str, bool]
    still: bool = True
    """Whether the model's outputs drifted as they do in the engine without extra outputs."""


Oracle = Callable[[Sequence[str]], Look]
"""Looks at tensors with one engine. Raises a `HarnessError` where the backend gives no result."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a search ended."""

    tensor: str
    """The first that drifted, as far as could be seen."""
    unseen: tuple[str, ...] = ()
    """Tensors above it that could not be looked at: drift may begin at one of them."""
    vanished: tuple[str, ...] = ()
    """Extra outputs with which the model's own outputs drifted no longer; the search stopped there."""
    looks: int
    failures: tuple[str, ...] = ()
    """What the backend said where it gave no result."""


@dataclass
class _State:
    parents: Mapping[str, Sequence[str]]
    order: Mapping[str, int]
    drifted: dict[str, bool]
    blind: set[str] = field(default_factory=set)

    def frontier(self, start: str) -> tuple[str, list[str]]:
        """Return the highest known drifted tensor above `start`, and those above it that nothing is known of."""
        suspect = start
        while True:
            reached = self._above(suspect)
            bad = [name for name in reached if self.drifted.get(name)]
            if not bad:
                unknown = [name for name in reached if name not in self.drifted and name not in self.blind]
                return suspect, sorted(unknown, key=self.order.__getitem__)
            suspect = min(bad, key=self.order.__getitem__)

    def _above(self, name: str) -> set[str]:
        """Return the ancestors that are reached without crossing a clean tensor."""
        out: set[str] = set()
        left = list(self.parents[name])
        while left:
            one = left.pop()
            if one in out or one not in self.order or self.drifted.get(one) is False:
                continue
            out.add(one)
            left += self.parents[one]
        return out

    def hidden(self, suspect: str) -> tuple[str, ...]:
        return tuple(sorted(self._above(suspect) & self.blind, key=self.order.__getitem__))


def search(
    tensors: Sequence[SharedTensor],
    drifted: Collection[str],
    look: Oracle,
    *,
    width: int = WIDTH,
    looks_at_most: int = LOOKS_AT_MOST,
    known: Mapping[str, bool] | None = None,
) -> Found:
    """Find where drift begins.

    Args:
        tensors: In topological order. A parent that is not among them is an input of the graph, and clean.
        drifted: Outputs of the model that drifted; at least one.
        look: Asked for at most `width` tensors at a time.
        width: How many extra outputs one engine may have.
        looks_at_most: Engines that may be built.
        known: What is known already: tensor -> whether it drifted.
    """
    order = {tensor.name: index for index, tensor in enumerate(tensors)}
    parents = {tensor.name: tensor.parents for tensor in tensors}
    state = _State(parents, order, {**(known or {}), **dict.fromkeys(drifted, True)})
    start = min(drifted, key=order.__getitem__)
    looks, room = 0, width
    failures: list[str] = []
    while True:
        suspect, unknown = state.frontier(start)
        done = not unknown or looks >= looks_at_most or len(failures) > FAILURES_AT_MOST
        if done:
            unseen = (*unknown, *state.hidden(suspect))
            return Found(tensor=suspect, unseen=unseen, looks=looks, failures=tuple(failures))
        picks = spread(unknown, [*unknown, suspect], parents, room)
        looks += 1
        try:
            answer = look(picks)
        except HarnessError as exc:
            failures.append(f"with {', '.join(picks)} as outputs: {exc.status.replace('_', ' ')}: {exc.message}")
            if len(picks) == 1:
                state.blind.add(picks[0])
            room = 1  # one at a time: which of them the backend cannot have as an output is to be seen
            continue
        if not answer.still:
            return Found(
                tensor=suspect, unseen=tuple(unknown), vanished=tuple(picks), looks=looks, failures=tuple(failures)
            )
        state.drifted.update(answer.drifted)


def spread(
    unknown: Sequence[str], region: Sequence[str], parents: Mapping[str, Sequence[str]], width: int
) -> list[str]:
    """Choose tensors that part a region evenly, each where the fewest others are needed further down.

    Between the layers of a network few tensors are alive, inside one many. A clean tensor that is the only one alive
    clears all above it, one of several does not.
    """
    if len(unknown) <= width:
        return list(unknown)
    place = {name: index for index, name in enumerate(region)}
    last_use: dict[str, int] = {}
    for name, index in place.items():
        for parent in parents[name]:
            if parent in place:
                last_use[parent] = index
    changes = [0] * (len(region) + 1)
    for name, index in place.items():
        changes[index] += 1
        changes[last_use.get(name, index)] -= 1
    alive: list[int] = []
    for change in changes:
        alive.append((alive[-1] if alive else 0) + change)
    picks = []
    step = len(unknown) / (width + 1)
    for number in range(1, width + 1):
        middle = number * step - 0.5
        low, high = int(middle - step / 2) + 1, int(middle + step / 2) + 1
        bucket = range(max(0, low), min(len(unknown), max(high, low + 1)))
        best = min(bucket, key=lambda at: (alive[place[unknown[at]]], abs(at - middle)))
        picks.append(unknown[best])
    return list(dict.fromkeys(picks))


def first_overflow(tensors: Mapping[str, SharedTensor], found: str, precision: str) -> str | None:
    """Return the tensor from which a value beyond float16 comes, where one that `found` is computed from holds such.

    None where there is none, or where the precision has the range of float32.
    """
    if precision != HALF:
        return None
    if beyond_half(tensors[found]):
        here = found
    else:
        above = [name for name in tensors[found].parents if name in tensors and beyond_half(tensors[name])]
        if not above:
            return None
        here = above[0]
    while above := [name for name in tensors[here].parents if name in tensors and beyond_half(tensors[name])]:
        here = above[0]
    return here


def beyond_half(tensor: SharedTensor) -> bool:
    """Say whether the reference holds finite values that float16 cannot."""
    return max(abs(tensor.low or 0.0), abs(tensor.high or 0.0)) > HALF_MAX


def judge_tensor(name: str, candidate: Array, reference: Array, precision: str, input_set: int) -> OutputDrift:
    """Judge a tensor of the middle of a graph; in float16 only where its reference is within float16's range.

    There is no float64 run to hold it against: the float32 reference stands for it.
    """
    if precision == HALF and candidate.shape == reference.shape and np.issubdtype(reference.dtype, np.floating):
        inside = ~(np.isfinite(reference) & (np.abs(reference) > HALF_MAX))
        if not inside.any():
            return OutputDrift(output=name, input_set=input_set, elements=0, passed=True)
        if not inside.all():
            candidate, reference = candidate[inside], reference[inside]
    return drift.judge({name: candidate}, {name: reference}, precision=precision, input_set=input_set)[0]
