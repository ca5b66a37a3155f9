"""The search for a step among versions: on exact judges, noisy ones, versions that fail, and several steps."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.bisect.pairs import BEYOND
from harness.bisect.search import Found, Judgement, classify, needed, search

THRESHOLD = 0.05
QUANTILE = 2.81
"""Of the 99 % interval with the freedom of five launches of two cases."""


class Bench:
    """Judges versions of known speed. Each comparison has an error of its own, of a size that it knows."""

    def __init__(
        self,
        factors: Sequence[float],
        *,
        error: float = 0.0,
        broken: Collection[int] = (),
        uninstallable: Collection[int] = (),
        seed: int = 0,
    ) -> None:
        self.levels = [math.log(factor) for factor in factors]
        self.error = error
        self.broken = broken
        self.uninstallable = uninstallable
        self.random = random.Random(seed)
        self.asked: list[tuple[int, int]] = []
        self.said: list[tuple[int, int]] = []

    def judge(self, reference: int, candidate: int) -> Judgement:
        self.asked.append((reference, candidate))
        if candidate in self.uninstallable:
            return Judgement(kind="untestable", reason="does not install", measured=False)
        if candidate in self.broken:
            return Judgement(kind="untestable", reason="crashed")
        true = self.levels[candidate] - self.levels[reference]
        for launches in (1, 2, 4):  # as long as it is undecided, up to a limit
            error = self.error / math.sqrt(launches)
            change, half = true + self.random.gauss(0, error), QUANTILE * error
            kind = classify(change, half, THRESHOLD)
            if kind != "undecided":
                break
        return Judgement(kind=kind, change=change, half_width=half)

    def search(self, *, exact: bool = False, several: bool = True) -> Found:
        return search(
            len(self.levels),
            self.judge,
            lambda left, more: self.said.append((left, more)),
            threshold=THRESHOLD,
            exact=exact,
            several=several,
        )


def stepped(count: int, steps: Mapping[int, float]) -> list[float]:
    """Return the factors of versions that change at the given ones, by the given ratios."""
    factors, level = [], 1.0
    for version in range(count):
        level *= steps.get(version, 1.0)
        factors.append(level)
    return factors


def pairs(found: Found) -> list[tuple[int, int]]:
    return [(step.before, step.after) for step in found.steps]


@pytest.mark.parametrize(
    ("change", "half", "kind"),
    [
        (math.log(1.06), 0.02, "changed"),
        (math.log(1.06), 0.07, "undecided"),  # beyond the threshold, and may be nothing at all
        (math.log(1.049), 0.02, "undecided"),  # surely slower; by how much is not clear
        (math.log(1.05), 0.0, "changed"),
        (math.log(1.049), 0.0, "like"),
        (0.0, 0.02, "like"),
        (-0.02, 0.02, "like"),
        (0.0, 0.06, "undecided"),
        (-math.log(1.06), 0.02, "improved"),
        (-math.log(1.06), 0.2, "undecided"),
        (BEYOND, 0.0, "changed"),
        (None, None, "undecided"),
        (0.5, None, "undecided"),
    ],
)
def test_statistics_and_threshold_must_agree(change: float | None, half: float | None, kind: str) -> None:
    assert classify(change, half, THRESHOLD) == kind


@pytest.mark.parametrize("count", [*range(2, 20), 33, 34, 64, 65, 100])
def test_every_place_of_a_step_is_found_within_the_promise(count: int) -> None:
    for place in range(1, count):
        bench = Bench(stepped(count, {place: 1.1}))
        found = bench.search()
        assert pairs(found) == [(place - 1, place)]
        assert found.steps[0].judgement.kind == "changed"
        assert found.steps[0].judgement.change == pytest.approx(math.log(1.1))
        assert found.measurements == len(bench.asked) <= math.log2(count) + 3
        assert bench.asked[0] == (0, count - 1), "the ends first"
        assert all(reference == 0 for reference, _ in bench.asked[:-1]), "all against the good end"


def test_no_pair_is_judged_twice() -> None:
    bench = Bench(stepped(30, {7: 1.1, 20: 1.3}))
    bench.search()
    assert len(set(bench.asked)) == len(bench.asked)


@pytest.mark.parametrize(("last", "kind"), [(1.0, "like"), (1.03, "like"), (0.9, "improved")])
def test_ends_that_do_not_differ_end_the_search(last: float, kind: str) -> None:
    bench = Bench(stepped(9, {4: last}))
    found = bench.search()
    assert found.ends.kind == kind
    assert not found.steps
    assert bench.asked == [(0, 8)]


def test_an_end_that_cannot_be_tried_ends_the_search() -> None:
    found = Bench(stepped(9, {4: 1.1}), broken=[8]).search()
    assert (found.ends.kind, found.ends.reason, found.steps) == ("untestable", "crashed", [])


def test_it_says_how_much_is_left() -> None:
    bench = Bench(stepped(16, {5: 1.1}))
    bench.search()
    assert bench.said == [(14, 4), (7, 3), (3, 2), (1, 1), (0, 1)] or bench.said[0] == (14, 4)
    assert [more for _, more in bench.said] == sorted((more for _, more in bench.said), reverse=True)


def test_a_version_that_fails_beside_the_step_leaves_a_range() -> None:
    found = Bench(stepped(16, {8: 1.1}), broken=[8]).search()
    assert pairs(found) == [(7, 9)]
    assert {version: one.reason for version, one in found.steps[0].unknown.items()} == {8: "crashed"}
    assert found.skipped == {8: "crashed"}


def test_a_version_that_fails_elsewhere_does_not_matter() -> None:
    bench = Bench(stepped(16, {11: 1.1}), uninstallable=[7, 8])
    found = bench.search()
    assert pairs(found) == [(10, 11)]
    assert not found.steps[0].unknown
    assert found.measurements < len(bench.asked), "what cannot be installed costs no measurement"


def test_all_between_fail() -> None:
    found = Bench(stepped(6, {3: 1.1}), broken=range(1, 5)).search()
    assert pairs(found) == [(0, 5)]
    assert list(found.steps[0].unknown) == [1, 2, 3, 4]


def test_a_change_that_only_adds_up_is_called_so() -> None:
    found = Bench([1.02**version for version in range(8)]).search()
    assert {step.judgement.kind for step in found.steps} == {"like"}
    assert pairs(found)[0] == (2, 3), "where it has added up to the threshold"


def test_two_steps_are_found_with_a_good_end_each() -> None:
    bench = Bench(stepped(20, {4: 1.1, 15: 1.2}))
    found = bench.search()
    assert pairs(found) == [(3, 4), (14, 15)]
    assert [math.exp(step.judgement.change or 0) for step in found.steps] == pytest.approx([1.1, 1.2])
    assert (4, 19) in bench.asked, "what is left behind the first step is held against its own good end"


def test_only_the_first_step_where_no_more_are_wanted() -> None:
    assert pairs(Bench(stepped(20, {4: 1.1, 15: 1.2})).search(several=False)) == [(3, 4)]


def test_what_follows_from_other_figures_is_not_measured() -> None:
    bench = Bench(stepped(20, {4: 1.1, 15: 1.2}))
    found = bench.search(exact=True)
    assert pairs(found) == [(3, 4), (14, 15)]
    assert not {(3, 4), (4, 19), (14, 15)} & set(bench.asked)


def test_a_figure_that_was_zero() -> None:
    found = search(
        9,
        lambda _, version: Judgement(
            kind="changed" if version > 5 else "like", change=BEYOND if version > 5 else 0.0, half_width=0.0
        ),
        lambda *_: None,
        threshold=THRESHOLD,
        exact=True,
    )
    assert pairs(found) == [(5, 6)]


def test_a_step_of_the_size_of_the_threshold_in_noise_ends_as_a_range() -> None:
    bench = Bench([1.0, *[1.05] * 30, 1.3], error=0.01)
    found = bench.search()
    step = found.steps[0]
    assert (step.before, step.after) != (0, 1) or step.judgement.kind == "changed"
    undecided = [version for version, one in step.unknown.items() if one.kind == "undecided"]
    assert len(undecided) <= 4
    assert len(bench.asked) < 20


@settings(max_examples=300)
@given(
    count=st.integers(2, 60),
    data=st.data(),
    ratio=st.floats(1.1, 2.0),
    error=st.floats(0.0, 0.008),
    seed=st.integers(0, 1 << 30),
)
def test_one_step_in_noise(count: int, data: st.DataObject, ratio: float, error: float, seed: int) -> None:
    place = data.draw(st.integers(1, count - 1))
    broken = data.draw(st.sets(st.integers(1, max(1, count - 2)), max_size=3)) if count > 2 else set()
    bench = Bench(stepped(count, {place: ratio}), error=error, broken=broken, seed=seed)
    found = bench.search()
    assert found.ends.kind == "changed"
    first = found.steps[0]
    assert first.before < place <= first.after
    # Whatever else lies in the range could not be tried.
    assert set(range(first.before + 1, first.after)) <= set(broken)
    assert found.measurements <= math.log2(count) + 3 + len(broken & {one for _, one in bench.asked})


def test_simulation_of_many_searches() -> None:
    """Random places, noise, failing versions, one step or two: how often is the answer wrong, or dear?"""
    drawn = random.Random(7)
    right = wrong = over = 0
    for seed in range(1500):
        count = drawn.randint(3, 60)
        wanted = sorted(drawn.sample(range(1, count), min(count - 1, drawn.choice([1, 1, 2]))))
        broken = {one for one in range(1, count - 1) if drawn.random() < 0.05}
        steps = {place: drawn.uniform(1.1, 1.25) for place in wanted}
        bench = Bench(stepped(count, steps), error=0.012, broken=broken, seed=seed)
        found = bench.search()
        hits = [
            step.before < place <= step.after and set(range(step.before + 1, step.after)) <= broken
            for place, step in zip(wanted, found.steps, strict=False)
        ]
        # Two steps may be closer than what could be tried: then they are one.
        merged = len(found.steps) < len(wanted) and any(
            step.before < min(wanted) and max(wanted) <= step.after for step in found.steps
        )
        good = len(found.steps) == len(wanted) and all(hits)
        right += good or merged
        wrong += not (good or merged)
        tried = len(broken & {one for _, one in bench.asked})
        over += len(wanted) == 1 and found.measurements > math.log2(count) + 3 + tried
    assert right + wrong == 1500
    assert wrong <= 5, f"{wrong} of 1500 searches went wrong"
    assert over <= 15, f"{over} of 1500 searches took more than was promised"


def test_needed() -> None:
    assert [needed(left) for left in (0, 1, 2, 3, 4, 7, 8)] == [0, 1, 2, 2, 3, 3, 4]
