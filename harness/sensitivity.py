"""Which nodes, kept in float32, buy back most accuracy, and what that costs: the search, as pure functions.

The nodes that a conversion narrowed are split into stretches in the order of the graph, and each stretch is tried
alone: kept in float32, the rest narrow. Where none gains anything, neighbours are tried together, two, three and more,
since what overflows in one node may have to stay wide through the next. The stretch that gains most is then split
further, again and again, until single nodes are left or the trials are spent. The advice is made of the smallest parts
that were tried: in the order of their gain a node, the first, the first two, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STRETCHES = 6
"""Into how many parts the graph is split first."""
PARTS = 3
"""Into how many parts a stretch is split."""

Drift = Callable[[Sequence[str]], float | None]
"""Drift with some nodes kept in float32; None where there is no such graph or no result."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A stretch of nodes that was kept in float32."""

    nodes: tuple[str, ...]
    drift: float
    gain: float
    """How much lower drift is than with nothing kept; below zero where it is higher."""


def explore(nodes: Sequence[str], nothing_kept: float, drift: Drift, *, trials: int) -> list[Trial]:
    """Try stretches of nodes, the most promising in ever smaller parts.

    Args:
        nodes: In the order of the graph.
        nothing_kept: Drift of the whole graph as it was converted.
        drift: Called at most `trials` times.
        trials: How many stretches may be tried.

    Returns:
        Disjoint stretches, the smallest that were tried, by gain a node, the largest first. Those that gain nothing
        are among them.
    """
    leaves: list[Trial] = []
    whole: set[tuple[str, ...]] = set()
    left = trials

    def try_all(parts: list[tuple[str, ...]]) -> bool:
        nonlocal left
        if left < len(parts):
            return False
        for part in parts:
            left -= 1
            got = drift(part)
            if got is not None:
                leaves.append(tried(part, got, nothing_kept))
        return True

    stretches = split(nodes, STRETCHES)
    if not try_all(stretches):
        return []
    alone = leaves.copy()
    for width in range(2, len(stretches)):
        if any(leaf.gain > 0 for leaf in leaves):
            break
        all_tried = try_all([sum(stretches[at : at + width], ()) for at in range(len(stretches) - width + 1)])
        gaining = [leaf for leaf in leaves[len(alone) :] if leaf.gain > 0]
        leaves[:] = alone
        if gaining:
            best = max(gaining, key=lambda leaf: leaf.gain)
            leaves[:] = [best, *(leaf for leaf in alone if not set(leaf.nodes) & set(best.nodes))]
        if not all_tried:
            break
    while divisible := [leaf for leaf in leaves if len(leaf.nodes) > 1 and leaf.nodes not in whole and leaf.gain > 0]:
        best = max(divisible, key=lambda leaf: leaf.gain)
        known = len(leaves)
        parts = split(best.nodes, PARTS)
        if not try_all(parts):
            break
        gained = max((leaf.gain for leaf in leaves[known:]), default=0.0)
        # Of parts that have no result, as when time is up, nobody knows what they would have gained.
        if gained > 0 and (len(leaves) == known + len(parts) or gained >= best.gain):
            leaves.remove(best)
        else:  # only together do they gain: the stretch stays whole
            del leaves[known:]
            whole.add(best.nodes)
    return ranked(leaves)


def tried(nodes: tuple[str, ...], drift: float, nothing_kept: float) -> Trial:
    """Return what keeping these nodes in float32 has shown."""
    gain = 0.0 if drift == nothing_kept else nothing_kept - drift  # both may be infinite
    return Trial(nodes=nodes, drift=drift, gain=gain)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials by gain a node, the largest first."""
    return sorted(trials, key=lambda trial: (trial.gain / len(trial.nodes), -trial.drift), reverse=True)


def split(nodes: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Split nodes into at most so many stretches of about equal length."""
    count = min(count, len(nodes))
    edges = [round(index * len(nodes) / count) for index in range(count + 1)] if count else []
    return [tuple(nodes[low:high]) for low, high in itertools.pairwise(edges)]


def choices(trials: Sequence[Trial], top: int) -> list[tuple[str, ...]]:
    """Return what to keep in float32: the best stretch, the best two, and so on, at most `top` of them."""
    gaining = [trial for trial in trials if trial.gain > 0]
    return [
        tuple(name for trial in gaining[: count + 1] for name in trial.nodes) for count in range(min(top, len(gaining)))
    ]


def efficient(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say which points (drift, latency) no other beats in both; of equal ones all are."""
    return [
        not any((d <= drift and t <= time) and (d < drift or t < time) for d, t in points) for drift, time in points
    ]
