"""Which engines are in memory together."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.grouping import NONE, Memory, control_is_the_trouble, plan_groups


def host(size: int) -> Memory:
    return Memory(host_bytes=size)


def both(host_bytes: int, device_bytes: int) -> Memory:
    return Memory(host_bytes=host_bytes, device_bytes=device_bytes)


memories = st.builds(both, st.integers(0, 100), st.integers(0, 100))
rooms = st.builds(both, st.integers(0, 400), st.integers(0, 400))


@given(st.dictionaries(st.text("abcdef", min_size=1), memories, max_size=8), memories, rooms)
def test_groups_hold_every_case_once_and_fit(needs: dict[str, Memory], baseline: Memory, capacity: Memory) -> None:
    groups = plan_groups("base", {"base": baseline, **needs}, capacity)
    assert [case for group in groups for case in group] == list(needs), "each once, in the order asked for"
    assert groups, "the baseline alone is a group too"

    def together(cases: list[str]) -> Memory:
        return sum((needs[case] for case in cases), start=baseline + baseline)

    for group in groups:
        assert len(group) <= 1 or together(group).fits(capacity)
    for before, after in pairwise(groups):
        assert not together([*before, after[0]]).fits(capacity), "no group more than is needed"


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (100, [["a", "b", "c"]]),
        (80, [["a", "b", "c"]]),
        (79, [["a", "b"], ["c"]]),
        (50, [["a"], ["b"], ["c"]]),
        (0, [["a"], ["b"], ["c"]]),
    ],
)
def test_groups_by_hand(capacity: int, expected: list[list[str]]) -> None:
    # The baseline counts twice, for its control: 100 - 2 * 10 leaves 80.
    needs = {"base": host(10), "a": host(20), "b": host(20), "c": host(20)}
    assert plan_groups("base", needs, host(capacity)) == expected


def test_a_full_card_splits_what_the_host_could_hold() -> None:
    needs = {"base": both(10, 2), "a": both(10, 8), "cpu": both(10, 0), "b": both(10, 8)}
    assert plan_groups("base", needs, both(1000, 16)) == [["a", "cpu"], ["b"]]
    assert plan_groups("base", needs, both(1000, 20)) == [["a", "cpu", "b"]]


def test_only_the_baseline() -> None:
    assert plan_groups("base", {"base": host(10)}, host(5)) == [[]]


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (both(100, 100), False),  # all fits
        (both(39, 100), True),  # 10 + 20 fits, 10 + 10 + 20 does not
        (both(100, 9), True),  # on the card: 2 + 6 fits, 2 + 2 + 6 does not
        (both(29, 100), False),  # not even one of each: a second baseline is not the trouble
    ],
)
def test_when_the_control_is_the_trouble(capacity: Memory, expected: bool) -> None:
    assert control_is_the_trouble("base", {"base": both(10, 2), "a": both(20, 6)}, capacity) is expected
    assert control_is_the_trouble("base", {"base": host(10)}, host(15)), "two baselines alone"
    assert NONE.fits(NONE)
