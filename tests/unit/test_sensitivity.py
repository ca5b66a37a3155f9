"""Which nodes are worth keeping in float32, against a drift that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from harness.sensitivity import Trial, choices, efficient, explore, split

NODES = [f"n{index}" for index in range(60)]


class Sum:
    """Drift that is the sum of what each narrow node adds; counts what it is asked."""

    def __init__(self, added: dict[str, float]) -> None:
        self.added = added
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, keep: Sequence[str]) -> float:
        self.asked.append(tuple(keep))
        return sum(amount for name, amount in self.added.items() if name not in keep)


def test_the_worst_nodes_come_first() -> None:
    added = dict.fromkeys(NODES, 0.001) | {"n17": 1.0, "n42": 0.5}
    oracle = Sum(added)
    found = explore(NODES, oracle([]), oracle, trials=60)
    assert [trial.nodes for trial in found[:2]] == [("n17",), ("n42",)]
    assert found[0].gain == pytest.approx(1.0)
    kept = [name for trial in found for name in trial.nodes]
    assert sorted(kept) == sorted(NODES), "disjoint, and all of them"
    assert choices(found, 2) == [("n17",), ("n17", "n42")]


def test_it_asks_no_more_often_than_it_may() -> None:
    oracle = Sum(dict.fromkeys(NODES, 1.0))
    explore(NODES, 60.0, oracle, trials=10)
    assert len(oracle.asked) <= 10


def test_what_gains_only_together_stays_together() -> None:
    pair = {"n4", "n5"}

    def drift(keep: Sequence[str]) -> float:
        return 0.1 if pair <= set(keep) else 1.0

    found = explore(NODES, 1.0, drift, trials=60)
    assert pair <= set(found[0].nodes)
    assert len(found[0].nodes) > 1


def test_an_overflow_across_two_stretches_is_found_in_pairs() -> None:
    pair = {"n9", "n10"}  # the last of the first stretch, the first of the second

    def drift(keep: Sequence[str]) -> float:
        return 0.1 if pair <= set(keep) else math.inf

    found = explore(NODES, math.inf, drift, trials=60)
    assert pair <= set(found[0].nodes)
    assert found[0].drift == 0.1
    assert all(not math.isnan(trial.gain) for trial in found)


def test_an_overflow_across_three_stretches_is_found() -> None:
    far = {"n9", "n10", "n20"}

    def drift(keep: Sequence[str]) -> float:
        return 0.1 if far <= set(keep) else math.inf

    assert far <= set(explore(NODES, math.inf, drift, trials=60)[0].nodes)


def test_a_stretch_stays_whole_where_time_was_up_before_its_best_part_was_tried() -> None:
    added = {"n0": 0.1, "n9": 1.0}
    oracle = Sum(added)
    left = 7  # the six stretches, and the first third of the first

    def drift(keep: Sequence[str]) -> float | None:
        return oracle(keep) if len(oracle.asked) < left else None

    found = explore(NODES, sum(added.values()), drift, trials=60)
    assert found[0].nodes == tuple(NODES[:10])
    assert found[0].gain == pytest.approx(1.1), "what it was known to gain is not lost"


def test_where_nothing_gains_nothing_is_advised() -> None:
    found = explore(NODES[:3], 1.0, lambda keep: 1.0, trials=60)
    assert len(found) == 3
    assert choices(found, 5) == []


def test_a_graph_that_cannot_be_had_is_left_out() -> None:
    found = explore(NODES[:2], 1.0, lambda keep: None if "n0" in keep else 0.5, trials=60)
    assert found == [Trial(nodes=("n1",), drift=0.5, gain=0.5)]


def test_split_loses_nothing() -> None:
    for count in (1, 5, 6, 7, 60):
        parts = split(NODES[:count], 6)
        assert [name for part in parts for name in part] == NODES[:count]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert split([], 6) == []


def test_what_another_beats_in_both_is_not_efficient() -> None:
    assert efficient([(1.0, 1.0), (0.5, 2.0), (0.6, 3.0), (1.0, 1.5), (1.0, 1.0)]) == [True, True, False, False, True]
