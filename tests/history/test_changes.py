"""A case then and now: what is claimed, on which grounds, and how often that is wrong."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from harness import stats
from harness.history import changes
from harness.history.changes import MANY, Change, change, deviation, latency_change, verdict_of
from harness.history.deriving import points_of
from harness.history.points import Point
from harness.summary import Estimate
from tests.example_history import BOTH, a_run

TWO_EACH = {"eager": 10.0, "onnxruntime": 5.0}


def of(case: str = "onnxruntime", **fields: Any) -> Point:
    (point,) = (point for point in points_of(a_run(**fields)) if point.case == case)
    return point


def lately(before: list[Point] | Point, after: Point) -> Change:
    found = latency_change(before if isinstance(before, list) else [before], [after])
    assert found is not None
    return found


def test_limits_are_those_of_a_comparison() -> None:
    assert (changes.CONFIDENCE, changes.EFFECT) == (stats.CONFIDENCE, stats.EFFECT)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.05, 1.02, 1.08, "SLOWER"),
        (0.95, 0.92, 0.98, "FASTER"),
        (1.05, 0.99, 1.11, "UNDECIDED"),
        (1.005, 1.002, 1.008, "SAME"),
        (1.0, 0.98, 1.02, "UNDECIDED"),
        (0.999, 0.995, 1.003, "SAME"),
    ],
)
def test_verdicts(value: float, low: float, high: float, verdict: str) -> None:
    assert verdict_of(Estimate(value=value, low=low, high=high)) == verdict


def test_deviation_is_that_of_normal_values_and_hardly_moved_by_a_wild_one() -> None:
    random = np.random.default_rng(1)
    for count in (6, 9, 30):
        values = random.normal(0, 1, (2000, count))
        assert np.mean([deviation(list(row)) for row in values]) == pytest.approx(1.0, abs=0.06)
        values[:, 0] = 50.0
        assert np.mean([deviation(list(row)) for row in values]) < 1.7


# ---- which grounds


def test_the_mood_of_the_machine_is_taken_out_through_a_case_that_stayed_as_it_was() -> None:
    found = lately(of(seed=1), of(seed=2, machine=1.3, versions={"onnxruntime": "1.32.0"}))
    assert (found.basis, found.other, found.verdict) == ("another case", "eager", "SAME")
    assert found.ratio.value == pytest.approx(1.0, abs=0.01)
    assert found.moved == pytest.approx(1.3, rel=0.02)
    assert found.after / found.before == pytest.approx(1.3, rel=0.02)


def test_a_slow_down_is_found_through_another_case_whatever_the_mood() -> None:
    slowed = of(seed=2, machine=0.8, cases=TWO_EACH | {"onnxruntime": 5.5}, versions={"onnxruntime": "1.32.0"})
    found = lately(of(seed=1), slowed)
    assert (found.basis, found.verdict) == ("another case", "SLOWER")
    assert found.ratio.low < 1.1 < found.ratio.high
    assert found.moved is not None and found.moved < 1


def test_the_baseline_is_held_against_the_other_cases() -> None:
    found = lately(of("eager", seed=1), of("eager", seed=2, machine=1.3))
    assert (found.basis, found.other, found.verdict) == ("another case", "onnxruntime", "SAME")


def test_another_version_of_the_other_case_is_no_ground() -> None:
    upgraded = {"eager": "2.14.0", "onnxruntime": "1.32.0"}
    found = lately(of(seed=1), of(seed=2, machine=1.3, versions=upgraded))
    assert (found.basis, found.verdict) == ("launches", "SLOWER"), "both changed: nothing says that it is the machine"


def test_what_did_not_change_cannot_be_called_slower_by_launches_alone() -> None:
    found = lately(of("eager", seed=1), of("eager", seed=2, machine=1.3, versions={"onnxruntime": "1.32.0"}))
    assert (found.basis, found.verdict, found.excused) == ("launches", "UNDECIDED", True)
    assert found.ratio.low > 1


@pytest.mark.parametrize(
    "cause",
    [
        {"environment": {"gpus": [{"name": "H100", "driver_version": "570"}]}},
        {"environment": {"gpus": [{"name": "H100", "driver_version": "560", "power.limit": "300 W"}]}},
        {"environment": {"kernel": "6.2", "gpus": [{"name": "H100", "driver_version": "560"}]}},
    ],
    ids=["driver", "power limit", "kernel"],
)
def test_where_a_common_cause_changed_all_may_be_slower_together(cause: dict[str, Any]) -> None:
    card = {"gpus": [{"name": "H100", "driver_version": "560", "power.limit": "350 W"}]}
    found = lately(of(seed=1, environment=card), of(seed=2, machine=1.3, **cause))
    assert (found.basis, found.verdict) == ("launches", "UNDECIDED" if found.excused else "SLOWER")
    assert not found.excused


def test_many_earlier_runs_tell_how_runs_differ() -> None:
    alone = {"onnxruntime": 5.0}
    calm = [of(cases=alone, baseline="onnxruntime", seed=index) for index in range(MANY)]
    moods = (0.9, 1.1, 1.0, 0.95, 1.05, 1.12, 0.93, 1.0)
    moody = [of(cases=alone, baseline="onnxruntime", seed=index, machine=mood) for index, mood in enumerate(moods)]
    now = of(cases=alone, baseline="onnxruntime", seed=99, machine=1.1)
    assert (lately(calm, now).basis, lately(calm, now).verdict) == ("earlier runs", "SLOWER")
    assert (lately(moody, now).basis, lately(moody, now).verdict) == ("earlier runs", "UNDECIDED")
    assert lately(calm[1:], now).basis == "launches"


def test_one_launch_gives_no_interval() -> None:
    found = lately(of(launches=1), of(launches=1, machine=2.0, versions={"onnxruntime": "2", "eager": "3"}))
    assert (found.basis, found.verdict) == ("none", "UNDECIDED")
    assert found.ratio.low == found.ratio.high == found.ratio.value == pytest.approx(2.0, rel=0.05)


def test_what_was_not_measured_has_no_change() -> None:
    empty = msgspec.structs.replace(of(), evidence=None, latency_ns=None)
    assert latency_change([of()], [empty]) is latency_change([empty], [of()]) is latency_change([], [of()]) is None


# ---- other figures


def test_other_figures_are_ratios_with_an_interval_where_many_runs_tell_it() -> None:
    def compiled(seconds: float) -> Point:
        return of(fields={"onnxruntime": {"compile_s": seconds}})

    few = change("compile", [compiled(100.0)], [compiled(125.0)])
    assert few is not None
    assert (few.ratio.value, few.verdict, few.basis) == (1.25, "UNDECIDED", "none")
    noisy = [compiled(seconds) for seconds in (100, 110, 95, 130, 80, 105, 98)]
    many = change("compile", noisy, [compiled(125.0)])
    assert many is not None and (many.basis, many.verdict) == ("earlier runs", "UNDECIDED")
    steady = change("compile", [compiled(100 + index / 10) for index in range(7)], [compiled(125.0)])
    assert steady is not None and steady.verdict == "SLOWER"


def test_compile_time_of_an_earlier_run_is_no_figure_of_this_one() -> None:
    reused = of(fields={"onnxruntime": {"facts": {"engine_compiled_at": "2026-03-01"}}})
    assert change("compile", [of()], [reused]) is None
    assert change("engine", [of()], [reused]) is not None


def test_drift_from_nothing_is_infinitely_more() -> None:
    exact, far = of(fields={"onnxruntime": {"relative_l2": 0.0}}), of()
    more, same = change("drift", [exact], [far]), change("drift", [exact], [exact])
    assert more is not None and same is not None
    assert (more.ratio.value, same.ratio.value, same.verdict) == (math.inf, 1.0, "SAME")


# ---- how often it is wrong


def rates(trials: int, slowed: float, *, before: int = 1, alone: bool = False, mood: float = 0.1) -> float:
    """Return the share of trials in which a case is called SLOWER; the machine's mood varies from run to run."""
    random = np.random.default_rng(11)
    cases = {"onnxruntime": 5.0} if alone else BOTH
    baseline = "onnxruntime" if alone else "eager"
    found = 0
    for _ in range(trials):

        def run(factor: float, version: str) -> Point:
            return of(
                cases={name: value * (factor if name == "onnxruntime" else 1.0) for name, value in cases.items()},
                baseline=baseline,
                versions={"onnxruntime": version},
                machine=float(np.exp(random.normal(0, mood))),
                seed=int(random.integers(1 << 31)),
                rounds=2,
                process_sd=0.005,
            )

        found += lately([run(1.0, "1.31.0") for _ in range(before)], run(slowed, "1.32.0")).verdict == "SLOWER"
    return found / trials


def test_false_calls_and_power_through_another_case() -> None:
    assert rates(150, 1.0) <= 0.03
    assert rates(40, 1.05) >= 0.9


def test_false_calls_and_power_by_earlier_runs() -> None:
    assert rates(40, 1.0, before=10, alone=True, mood=0.02) <= 0.05
    assert rates(15, 1.25, before=10, alone=True, mood=0.02) >= 0.9
