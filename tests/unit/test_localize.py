"""The search for the first tensor that drifted, against oracles that know the answer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from harness.errors import RunError
from harness.localize import Look, Oracle, first_overflow, judge_tensor, search, spread
from harness.protocol import SharedTensor


def tensor(name: str, parents: Sequence[str], high: float = 1.0) -> SharedTensor:
    return SharedTensor(
        name=name,
        node=f"node {name}",
        op="Op",
        position=0,
        parents=list(parents),
        shape=[1],
        low=0.0,
        high=high,
        nan_count=0,
        inf_count=0,
    )


def chain(count: int) -> list[SharedTensor]:
    return [tensor(str(index), [str(index - 1)] if index else ["input"]) for index in range(count)]


class Knowing:
    """An oracle that knows which tensors drifted, and counts what it is asked."""

    def __init__(self, drifted: set[str]) -> None:
        self.drifted = drifted
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> Look:
        self.asked.append(list(names))
        return Look(drifted={name: name in self.drifted for name in names})


@pytest.mark.parametrize("count", [1, 2, 9, 100, 1000])
@pytest.mark.parametrize("width", [1, 8])
def test_a_chain_takes_logarithmically_many_looks(count: int, width: int) -> None:
    for begin in {0, count // 3, count - 1}:
        oracle = Knowing({str(index) for index in range(begin, count)})
        found = search(chain(count), [str(count - 1)], oracle, width=width)
        assert found.tensor == str(begin)
        assert not found.unseen
        assert all(len(names) <= width for names in oracle.asked)
        assert found.looks == len(oracle.asked) <= 1 + math.ceil(math.log(count, width + 1))


@pytest.mark.parametrize("seed", range(50))
def test_drift_begins_where_all_before_is_clean_whatever_grows_or_fades(seed: int) -> None:
    draw = random.Random(seed)
    tensors = [
        tensor(str(index), [str(draw.randrange(max(0, index - 9), index)) for _ in range(2)] if index else ["input"])
        for index in range(80)
    ]
    # No monotony at all: any tensor may have drifted, and the last has.
    drifted = {str(index) for index in range(79) if draw.random() < 0.3} | {"79"}
    found = search(tensors, ["79"], Knowing(drifted), looks_at_most=80)
    assert found.tensor in drifted
    assert not set(tensors[int(found.tensor)].parents) & drifted
    assert not found.unseen


@pytest.mark.parametrize("layers", [12, 48])
def test_residual_streams_are_parted_between_layers(layers: int) -> None:
    tensors, stream = [], "input"
    for index in range(layers):
        tensors += [tensor(f"a{index}", [stream]), tensor(f"b{index}", [f"a{index}"])]
        tensors.append(tensor(f"s{index}", [stream, f"b{index}"]))
        stream = f"s{index}"
    bad = layers // 2
    drifted = {f"b{bad}"} | {f"{word}{index}" for index in range(bad, layers) for word in "s"}
    drifted |= {f"{word}{index}" for index in range(bad + 1, layers) for word in "ab"}
    oracle = Knowing(drifted)
    assert search(tensors, [stream], oracle).tensor == f"b{bad}"
    assert len(oracle.asked) <= 4, "one look a tensor in a stream that skips them all would be many more"


def test_of_several_outputs_the_search_starts_at_the_first() -> None:
    found = search(chain(10), ["9", "4"], Knowing({"3", "4", "9"}))
    assert found.tensor == "3"


def test_it_stops_where_looking_makes_drift_vanish() -> None:
    def shy(names: Sequence[str]) -> Look:
        return Look(drifted=dict.fromkeys(names, False), still=False)

    found = search(chain(30), ["29"], shy)
    assert found.vanished
    assert found.looks == 1


def failing_on(blind: set[str], drifted: set[str]) -> Oracle:
    def look(names: Sequence[str]) -> Look:
        if blind & set(names):
            raise RunError("no")
        return Look(drifted={name: name in drifted for name in names})

    return look


def test_a_tensor_that_cannot_be_an_output_is_passed_by() -> None:
    drifted = {str(index) for index in range(5, 12)}
    found = search(chain(12), ["11"], failing_on({"5"}, drifted))
    assert (found.tensor, found.unseen) == ("6", ("5",))
    assert found.failures


def test_it_gives_up_on_a_backend_that_always_fails() -> None:
    found = search(chain(40), ["39"], failing_on({str(index) for index in range(39)}, set()))
    assert found.tensor == "39"
    assert len(found.unseen) == 39, "everything above it is open"
    assert found.looks == len(found.failures) == 5


def test_it_stops_after_as_many_looks_as_it_may_take() -> None:
    found = search(chain(1000), ["999"], Knowing({"999"}), width=1, looks_at_most=3)
    assert found.looks == 3
    assert found.unseen


def test_spread_takes_the_narrow_places() -> None:
    # Two layers of a fan of three each, joined at "j0" and "j1".
    tensors = {f"{word}0": ["input"] for word in "abc"} | {"j0": ["a0", "b0", "c0"]}
    tensors |= {f"{word}1": ["j0"] for word in "abc"} | {"j1": ["a1", "b1", "c1"]} | {"end": ["j1"]}
    names = list(tensors)
    assert spread(names[:-1], names, tensors, 1) == ["j0"]
    assert spread(names[:3], names, tensors, 8) == names[:3]


def test_overflow_is_followed_to_where_it_begins() -> None:
    line = [
        tensor("a", ["x"]),
        tensor("b", ["a"], 1e5),
        tensor("c", ["b"], 2e5),
        tensor("d", ["c"]),
        tensor("e", ["d"]),
    ]
    tensors = {one.name: one for one in line}
    assert first_overflow(tensors, "d", "fp16") == "b"
    assert first_overflow(tensors, "c", "fp16") == "b"
    assert first_overflow(tensors, "e", "fp16") is None
    assert first_overflow(tensors, "d", "bf16") is None


def test_what_float16_cannot_hold_is_not_compared_in_it() -> None:
    reference = np.array([1.0, 2.0, -1e30], dtype=np.float32)
    candidate = np.array([1.0, 2.0, -65504.0], dtype=np.float32)
    assert judge_tensor("t", candidate, reference, "fp16", 0).passed
    assert not judge_tensor("t", candidate, reference, "fp32", 0).passed
    assert judge_tensor("t", candidate[2:], reference[2:], "fp16", 0).passed
    lost = np.array([np.inf, 2.0, -65504.0], dtype=np.float32)
    assert not judge_tensor("t", lost, reference, "fp16", 0).passed
