"""What several workloads say together: means, wins, composed figures, sweeps, the price of dynamic shapes."""

from __future__ import annotations

import math
from typing import Any  # keyword arguments of helpers

import msgspec
import numpy as np
import pytest

from harness import registry
from harness.api import Composition
from harness.composing import composed, is_default
from harness.modelspec import ModelSpec
from harness.ratios import against
from harness.records import CONTROL, Failure, Status, Workload
from harness.suite import geometric_mean, leaders, standings
from harness.summarize import summarize
from harness.summary import Estimate, Standing, Suite
from harness.sweeps import prices, sweeps
from tests.unit.test_summarize import case, info_of, launch, measured, run_of, settings_of, summed, workload_of

SPEEDS = {"eager": 1.0, "fast": 0.5, "slow": 2.0}
ASKED = ["slow", "eager", "fast"]


def workload(key: str, speeds: dict[str, float], statuses: dict[str, Status] | None = None, **options: Any) -> Workload:
    return msgspec.structs.replace(measured(speeds, statuses, **options), key=key)


def of(*workloads: Workload, asked: list[str] = ASKED) -> Suite:
    found = standings([summed(one) for one in workloads], asked)
    assert found is not None
    return found


def standing(suite: Suite, name: str) -> Standing:
    return next(row for row in suite.rows if row.case == name)


def estimate(value: float, half: float = 0.0) -> Estimate:
    return Estimate(value=value, low=value * math.exp(-half), high=value * math.exp(half))


class TestGeometricMean:
    def test_of_equal_ratios(self) -> None:
        found = geometric_mean([estimate(0.5, 0.02)] * 4)
        assert found.value == pytest.approx(0.5)
        assert math.log(found.high / found.low) / 2 == pytest.approx(0.01)  # 0.02 / sqrt(4)

    def test_of_a_ratio_and_its_inverse(self) -> None:
        assert geometric_mean([estimate(0.25), estimate(4.0)]) == estimate(1.0)

    def test_half_widths_add_in_quadrature(self) -> None:
        found = geometric_mean([estimate(1.0, 0.03), estimate(1.0, 0.04)])
        assert math.log(found.high) == pytest.approx(0.05 / 2)

    def test_a_single_ratio_is_its_own_mean(self) -> None:
        found = geometric_mean([estimate(0.7, 0.01)])
        assert [found.value, found.low] == pytest.approx([0.7, 0.7 * math.exp(-0.01)])

    def test_covers_the_true_mean_as_often_as_it_says(self) -> None:
        # 99 % intervals of t with 8 degrees of freedom each, as five launches give them.
        rng = np.random.default_rng(1)
        truths = np.log([0.4, 0.9, 1.3])
        missed = 0
        for sample in rng.normal(truths[:, None], 0.02, (2000, 3, 9)):
            halves = 3.355 * sample.std(-1, ddof=1) / 3
            found = geometric_mean(
                [estimate(math.exp(log.mean()), half) for log, half in zip(sample, halves, strict=True)]
            )
            missed += not found.low < math.exp(truths.mean()) < found.high
        assert missed <= 20  # 1 %; about 5 expected, since it is too wide by a fifth, and 190 at half its width


class TestStandings:
    def test_means_over_all_workloads_are_ranked(self) -> None:
        suite = of(workload("a", SPEEDS), workload("b", {"eager": 1.0, "fast": 0.9, "slow": 4.0}, seed=1))
        assert [row.case for row in suite.rows] == ["fast", "eager", "slow"]
        assert suite.baseline == "eager"
        assert suite.workloads == ["a", "b"]
        fast, slow = standing(suite, "fast").ratio, standing(suite, "slow").ratio
        assert fast is not None
        assert slow is not None
        assert fast.low < math.sqrt(0.5 * 0.9) < fast.high
        assert slow.value == pytest.approx(math.sqrt(8), rel=0.01)
        assert standing(suite, "eager").ratio == Estimate(value=1.0, low=1.0, high=1.0)

    def test_a_mean_over_fewer_is_never_ranked_among_the_others(self) -> None:
        # By itself `half` looks three times as fast as `fast`, because it lacks the workload that is hard for both.
        easy = workload("a", {"eager": 1.0, "half": 0.1, "fast": 0.1})
        hard = workload("b", {"eager": 1.0, "half": 0.9, "fast": 0.9}, {"half": "compile_failed"})
        suite = of(easy, hard, asked=["half", "fast", "eager"])
        assert [(row.case, row.over) for row in suite.rows] == [("fast", 2), ("eager", 2), ("half", 1)]

    def test_means_over_fewer_keep_the_order_asked_for(self) -> None:
        one = workload("a", {"eager": 1.0, "x": 0.9, "y": 0.1}, {"x": "drifted"})
        two = workload("b", {"eager": 1.0, "x": 0.9, "y": 0.1}, {"y": "drifted"})
        assert [row.case for row in of(one, two, asked=["x", "y", "eager"]).rows] == ["eager", "x", "y"]
        assert [row.case for row in of(one, two, asked=["y", "x", "eager"]).rows] == ["eager", "y", "x"]

    def test_a_drifted_case_is_counted_and_neither_wins_nor_has_a_mean(self) -> None:
        suite = of(workload("a", SPEEDS, {"fast": "drifted"}), workload("b", SPEEDS, {"fast": "drifted"}))
        fast = standing(suite, "fast")
        assert (fast.ratio, fast.over, fast.wins, fast.ties) == (None, 0, 0, 0)
        assert (fast.ok, fast.drifted) == (0, 2)
        assert standing(suite, "eager").wins == 2

    def test_wins_and_ties_are_counted(self) -> None:
        won = workload("a", {"eager": 1.0, "fast": 0.5, "other": 0.8})
        tied = workload("b", {"eager": 1.0, "fast": 0.5, "other": 0.5})
        lost = workload("c", {"eager": 1.0, "fast": 2.0, "other": 2.0})
        suite = of(won, tied, lost)
        assert {row.case: (row.wins, row.ties) for row in suite.rows} == {
            "fast": (1, 1),
            "other": (0, 1),
            "eager": (1, 0),
        }
        assert suite.contested == 3

    def test_counts(self) -> None:
        gone = workload_of([case("eager"), case("fast", "compiled"), case("slow", "timeout")], [], key="c")
        broken = workload_of([], [], key="d", failure=Failure(stage="export", message="no"))
        suite = of(workload("a", SPEEDS), workload("b", SPEEDS), gone, broken)
        assert suite.workloads == ["a", "b"]
        assert suite.left_out == ["c", "d"]
        counts = {row.case: (row.ok, row.drifted, row.compiled, row.failed) for row in suite.rows}
        assert counts == {"fast": (2, 0, 1, 1), "eager": (3, 0, 0, 1), "slow": (2, 0, 0, 2)}

    def test_ratios_to_another_baseline_are_left_out(self) -> None:
        other = msgspec.structs.replace(measured({"fast": 1.0, "eager": 3.0}), key="c", baseline="fast")
        suite = of(workload("a", SPEEDS), workload("b", SPEEDS), other)
        assert suite.left_out == ["c"]
        assert standing(suite, "fast").over == 2

    def test_one_workload_is_no_suite(self) -> None:
        assert standings([], ASKED) is None
        assert standings([summed(workload("a", SPEEDS))], ASKED) is None
        assert standings([summed(workload("a", SPEEDS)), summed(workload_of([case("eager")], []))], ASKED) is None

    def test_one_launch_wins_nothing(self) -> None:
        suite = of(workload("a", SPEEDS, launches=1), workload("b", SPEEDS, launches=1))
        assert suite.rounds_only
        assert suite.contested == 0
        assert {(row.wins, row.ties) for row in suite.rows} == {(0, 0)}
        assert not of(workload("a", SPEEDS), workload("b", SPEEDS)).rounds_only


class TestLeaders:
    def test_a_clear_winner(self) -> None:
        assert leaders(summed(workload("a", SPEEDS))) == ["fast"]

    def test_a_baseline_may_win(self) -> None:
        assert leaders(summed(workload("a", {"eager": 1.0, "slow": 2.0}))) == ["eager"]

    def test_overlapping_intervals_tie(self) -> None:
        found = leaders(summed(workload("a", {"eager": 1.0, "one": 0.5, "two": 0.5, "three": 0.8})))
        assert found is not None
        assert sorted(found) == ["one", "two"]

    def test_estimates_far_apart_tie_where_their_intervals_overlap(self) -> None:
        summary = summed(workload("a", {"eager": 1.0, "one": 0.5, "two": 0.53}, noise=0.1))
        one, two = (next(row.comparison for row in summary.rows if row.case.id == name) for name in ("one", "two"))
        assert one is not None
        assert two is not None
        assert one.ratio.value < 0.97 * two.ratio.value
        assert one.ratio.high > two.ratio.low
        assert leaders(summary) == ["one", "two"]

    def test_a_difference_below_the_smallest_effect_is_a_tie(self) -> None:
        # Intervals clear of each other, but 0.3 % apart.
        summary = summed(workload("a", {"eager": 1.0, "one": 0.5, "two": 0.5015}, noise=1e-5))
        one, two = (row.comparison for row in summary.rows[:2])
        assert one is not None
        assert two is not None
        assert one.ratio.high < two.ratio.low
        assert leaders(summary) == ["one", "two"]

    def test_agrees_with_the_verdict_against_the_baseline(self) -> None:
        for ratio in (0.95, 0.985, 0.995, 1.0, 1.005, 1.02, 1.1):
            summary = summed(workload("a", {"eager": 1.0, "other": ratio}, noise=1e-4))
            comparison = next(row.comparison for row in summary.rows if row.comparison)
            expected = {"FASTER": ["other"], "SLOWER": ["eager"]}.get(comparison.verdict, ["eager", "other"])
            assert sorted(leaders(summary) or []) == expected

    def test_a_lone_case_has_nothing_to_win(self) -> None:
        assert leaders(summed(workload("a", SPEEDS, {"fast": "drifted", "slow": "crashed"}))) is None


PARTS = Composition(name="image", what="one image", calls={"text": 2, "unet": 50})


def part(name: str, speeds: dict[str, float], statuses: dict[str, Status] | None = None, **changes: Any) -> Workload:
    made = msgspec.structs.replace(
        measured(speeds, statuses), key=name, model=ModelSpec(name=name), info=info_of("seeded")
    )
    return msgspec.structs.replace(made, **changes)


def compose(*workloads: Workload) -> dict[str, tuple[Estimate | None, dict[str, Status]]]:
    figures = composed([summed(one) for one in workloads], [PARTS], lambda _: True)
    return {row.case: (row.seconds, row.lacks) for figure in figures for row in figure.rows}


class TestComposed:
    def test_is_the_sum_of_calls_times_medians(self) -> None:
        text, unet = part("text", SPEEDS), part("unet", {"eager": 3.0, "fast": 1.0, "slow": 5.0})
        found = compose(text, unet)
        assert list(found) == ["fast", "eager", "slow"]
        for name, (seconds, lacks) in found.items():
            assert lacks == {}
            assert seconds is not None
            p50 = [next(row.compute for row in summed(one).rows if row.case.id == name) for one in (text, unet)]
            ends = [
                sum(calls * getattr(one.p50, end) * 1e-9 for calls, one in zip((2, 50), p50, strict=True) if one)
                for end in ("low", "value", "high")
            ]
            assert [seconds.low, seconds.value, seconds.high] == pytest.approx(ends)
            assert seconds.low < seconds.value < seconds.high

    def test_a_part_that_is_not_ok_leaves_no_figure(self) -> None:
        found = compose(part("text", SPEEDS), part("unet", SPEEDS, {"fast": "drifted"}))
        assert found["fast"] == (None, {"unet": "drifted"})
        assert found["eager"][0] is not None
        assert list(found)[-1] == "fast"

    def test_a_case_that_a_part_was_not_measured_with(self) -> None:
        found = compose(part("text", SPEEDS), part("unet", {"eager": 1.0}))
        assert found["fast"] == (None, {"unet": "interrupted"})

    def test_needs_every_part(self) -> None:
        assert compose(part("text", SPEEDS), part("other", SPEEDS)) == {}

    def test_parts_with_other_weights_or_device_do_not_mix(self) -> None:
        assert compose(part("text", SPEEDS), part("unet", SPEEDS, info=info_of("ORG/NAME"))) == {}
        assert compose(part("text", SPEEDS), part("unet", SPEEDS, device="cuda:0")) == {}
        trained: dict[str, Any] = {"info": info_of("ORG/NAME")}
        assert set(compose(part("text", SPEEDS, **trained), part("unet", SPEEDS, **trained))) == set(SPEEDS)

    def test_parts_at_other_sizes_or_options_are_none(self) -> None:
        tiny = part("tiny", SPEEDS, model=ModelSpec(name="tiny"), dims={"batch": 1}, batch=1)
        assert is_default(tiny)
        assert not is_default(msgspec.structs.replace(tiny, dims={"batch": 4}, batch=4))
        assert not is_default(msgspec.structs.replace(tiny, model=ModelSpec(name="tiny", options={"size": "odd"})))
        workloads = [summed(part("text", SPEEDS)), summed(part("unet", SPEEDS))]
        assert composed(workloads, [PARTS], lambda one: one.model.name == "text") == []

    def test_a_users_own_model_is_no_part(self) -> None:
        own = part("unet", SPEEDS, model=ModelSpec(kind="factory", name="unet"))
        assert compose(part("text", SPEEDS), part("other", SPEEDS), own) == {}

    def test_the_figures_of_the_registry_are_the_default(self) -> None:
        figure = registry.compositions()[0]
        workloads = [
            part(name, SPEEDS, model=ModelSpec(name=name), dims=dict(registry.model_class(name).dims), batch=1)
            for name in figure.calls
        ]
        (found,) = composed([summed(one) for one in workloads])
        assert found.name == figure.name
        assert [row.case for row in found.rows] == ["fast", "eager", "slow"]


def point(batch: int, speeds: dict[str, float] = SPEEDS, **changes: Any) -> Workload:
    made = msgspec.structs.replace(measured(speeds), key=f"tiny batch={batch}", dims={"batch": batch}, batch=batch)
    return msgspec.structs.replace(made, **changes)


class TestSweeps:
    def test_throughput_by_size(self) -> None:
        (found,) = sweeps([summed(point(batch)) for batch in (32, 1, 4)])
        assert (found.model, found.dim, found.fixed, found.sizes) == ("tiny", "batch", {}, [1, 4, 32])
        assert found.workloads == ["tiny batch=1", "tiny batch=4", "tiny batch=32"]
        eager = next(one for one in found.series if one.case == "eager")
        values = [one.throughput.value for one in eager.points if one and one.throughput]
        assert values == pytest.approx([100, 400, 3200], rel=0.05)  # 10 ms an iteration, whatever the batch

    def test_low_throughput_is_high_latency(self) -> None:
        summary = summed(point(4))
        (found,) = sweeps([summary, summed(point(8))])
        row = summary.rows[0]
        first = next(one for one in found.series if one.case == row.case.id).points[0]
        assert first is not None
        assert first.throughput is not None
        assert row.compute is not None
        assert first.throughput.low == pytest.approx(4e9 / row.compute.p50.high)
        assert first.throughput.low < first.throughput.value < first.throughput.high

    def test_two_dimensions_are_a_sweep_each_for_every_size_of_the_other(self) -> None:
        grid = [
            point(batch, dims={"batch": batch, "sequence": sequence}) for batch in (1, 4) for sequence in (128, 512)
        ]
        found = [(one.dim, one.fixed, one.sizes) for one in sweeps([summed(one) for one in grid])]
        assert sorted(found, key=str) == [
            ("batch", {"sequence": 128}, [1, 4]),
            ("batch", {"sequence": 512}, [1, 4]),
            ("sequence", {"batch": 1}, [128, 512]),
            ("sequence", {"batch": 4}, [128, 512]),
        ]

    def test_another_model_option_or_device_is_another_sweep(self) -> None:
        others = [
            point(4, model=ModelSpec(name="other")),
            point(4, model=ModelSpec(name="tiny", options={"size": "odd"})),
            point(4, model=ModelSpec(kind="onnx", name="tiny")),
            point(4, device="cuda:0"),
        ]
        assert sweeps([summed(one) for one in (point(1), *others)]) == []

    def test_a_case_that_is_missing_or_failed_at_a_size(self) -> None:
        broken = point(4)
        broken = msgspec.structs.replace(broken, cases=[case("eager"), case("fast", "timeout")], launches=[])
        (found,) = sweeps([summed(point(1)), summed(broken)])
        by_case = {one.case: one.points for one in found.series}
        failed = by_case["fast"][1]
        assert failed is not None
        assert (failed.status, failed.throughput) == ("timeout", None)
        assert by_case["slow"][1] is None

    def test_workloads_that_differ_in_nothing_are_no_sweep(self) -> None:
        assert sweeps([summed(point(1)), summed(point(1))]) == []


def siblings(ratio: float, static: str = "ort", **options: Any) -> Workload:
    """Return a workload in which the dynamic sibling of `static` takes `ratio` times its time."""
    speeds = {"eager": 1.0, "ort": 0.5} | {f"{static}:dynamic=true": (1.0 if static == "eager" else 0.5) * ratio}
    made = measured(speeds, **options)
    cases = [
        msgspec.structs.replace(
            one, backend=one.id.partition(":")[0], options={"dynamic": True} if ":" in one.id else {}
        )
        for one in made.cases
    ]
    return msgspec.structs.replace(made, cases=cases)


class TestPrices:
    @pytest.mark.parametrize("static", ["ort", "eager"])
    @pytest.mark.parametrize(("ratio", "verdict"), [(1.2, "SLOWER"), (0.8, "FASTER"), (1.0, "SAME")])
    def test_is_the_ratio_to_the_static_sibling(self, ratio: float, verdict: str, static: str) -> None:
        (found,) = prices([siblings(ratio, static)])
        assert (found.static, found.dynamic) == (static, f"{static}:dynamic=true")
        assert found.comparison is not None
        assert found.comparison.verdict == verdict
        assert found.comparison.ratio.low < ratio < found.comparison.ratio.high
        assert found.statuses == ("ok", "ok")

    def test_is_narrower_than_both_intervals_to_the_baseline(self) -> None:
        workload = siblings(1.2)
        (found,) = prices([workload])
        assert found.comparison is not None
        to_baseline = {row.case.id: row.comparison for row in summed(workload).rows if row.comparison}
        low = to_baseline["ort:dynamic=true"].ratio.low / to_baseline["ort"].ratio.high
        high = to_baseline["ort:dynamic=true"].ratio.high / to_baseline["ort"].ratio.low
        assert low < found.comparison.ratio.low
        assert found.comparison.ratio.high < high

    def test_siblings_share_all_other_options(self) -> None:
        cases = [
            msgspec.structs.replace(case("a"), backend="tvm", options={"trials": 64}),
            msgspec.structs.replace(case("b"), backend="tvm", options={"trials": 64, "dynamic": True}),
            msgspec.structs.replace(case("c"), backend="tvm", options={"dynamic": True}),
            msgspec.structs.replace(case("d"), backend="ort", options={"trials": 64}),
            msgspec.structs.replace(case("e"), backend="ort", options={"trials": 64, "dynamic": False}),
        ]
        assert [(one.static, one.dynamic) for one in prices([workload_of(cases, [])])] == [("a", "b")]

    def test_nothing_to_compare_with(self) -> None:
        one = siblings(1.2)
        (found,) = prices([msgspec.structs.replace(one, launches=[])])
        assert found.comparison is None
        gone = [
            msgspec.structs.replace(launch_, sittings=[each for each in launch_.sittings if each.case != "ort"])
            for launch_ in one.launches
        ]
        (found,) = prices([msgspec.structs.replace(one, launches=gone)])
        assert found.comparison is None

    def test_one_launch_gives_no_verdict(self) -> None:
        (found,) = prices([siblings(1.2, launches=1)])
        assert found.comparison is not None
        assert (found.comparison.verdict, found.comparison.rounds_only) == ("UNDECIDED", True)


class TestAgainst:
    def test_cases_that_never_met_are_left_out(self) -> None:
        rng = np.random.default_rng(0)
        launches = [launch(index, {"eager": 1.0, "one": 0.5}, rng) for index in range(5)]
        launches += [launch(index, {"eager": 1.0, "two": 0.25}, rng, group=1) for index in range(5)]
        workload = workload_of([case("eager"), case("one"), case("two")], launches)
        found = against(workload, "one")
        assert set(found) == {"eager"}
        assert found["eager"].ratio.value == pytest.approx(2.0, rel=0.01)

    def test_against_the_baseline_is_the_table(self) -> None:
        found = against(measured(SPEEDS), "eager")
        assert found.pop(f"eager{CONTROL}").verdict == "SAME"
        assert found == {row.case.id: row.comparison for row in summed(measured(SPEEDS)).rows if row.comparison}


def closing(*workloads: Workload, state: str = "finished", asked: str = "all") -> str:
    return summarize(run_of(*workloads, state=state, settings=settings_of(*ASKED, asked=asked))).closing


class TestClosing:
    def test_a_winner_over_all(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS, seed=1))
        assert text.startswith("Over all 2 workloads, fast ran 2.0")
        assert "x faster than eager (99 % interval " in text
        assert " on geometric mean, and was the fastest for sure in 2. slow ran " in text
        assert text.endswith(
            "All outputs agree with the reference. For all 2 workloads together, deploy fast: on geometric mean the "
            "fastest of the 3 that are ok in all of them."
        )

    def test_a_tie(self) -> None:
        speeds = {"eager": 1.0, "one": 0.5, "two": 0.5}
        text = closing(workload("a", speeds), workload("b", speeds, seed=1))
        assert "on geometric mean, in a tie within noise with " in text
        assert "for sure" not in text
        assert text.endswith(
            (
                "deploy one: on geometric mean it ties within noise with two, and it compiles fastest.",
                "deploy two: on geometric mean it ties within noise with one, and it compiles fastest.",
            ),
        )

    def test_the_fastest_of_one_workload_is_not_deployed_where_it_fails_another(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS | {"fast": 0.1}, {"fast": "drifted"}))
        assert text.endswith(
            "For all 2 workloads together, deploy eager: on geometric mean the fastest of the 2 that are ok in all of "
            "them."
        )

    def test_only_one_is_ok_everywhere(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS, {"fast": "drifted", "slow": "crashed"}))
        assert "For all 2 workloads together, deploy eager: no other is ok in all of them." in text

    def test_none_is_ok_everywhere(self) -> None:
        both = [
            workload("a", SPEEDS, {"eager": "drifted"}),
            workload("b", SPEEDS, {"fast": "drifted", "slow": "drifted"}),
        ]
        assert "No backend is ok in all 2 workloads, so there is none to deploy for all of them." in closing(*both)

    def test_nothing_faster(self) -> None:
        speeds = {"eager": 1.0, "slow": 2.0}
        text = closing(workload("a", speeds), workload("b", speeds))
        assert text.startswith(
            "Over all 2 workloads, nothing was found to be faster than eager on geometric mean. slow"
        )

    def test_cases_that_are_not_ok_everywhere_are_not_compared(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS, {"fast": "drifted"}))
        assert text.startswith("Over all 2 workloads, nothing was found to be faster than eager")
        assert "fast ran" not in text
        assert "Not ok in all of them: fast (1 of 2); their means are over fewer workloads." in text
        assert "Outputs do not agree with the reference: fast (b)." in text

    def test_workloads_without_a_result_are_named(self) -> None:
        failed = case("eager", "export_failed")
        broken = workload_of([failed], [], key="c", failure=Failure(stage="export", message="no"))
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS), broken)
        assert text.startswith("Over the 2 workloads that can be compared, fast ran ")
        assert "For the 2 workloads that were measured together, deploy fast: " in text
        assert "Without a result: c (export failed)." in text

    def test_only_one_was_measured(self) -> None:
        empty = workload_of([case("eager", "timeout")], [], key="c")
        text = closing(workload("a", SPEEDS), empty)
        assert text.startswith("Only a of 2 workloads was measured. fast ran ")
        assert text.endswith("Without a result: c (no case was measured).")

    def test_nothing_was_measured(self) -> None:
        empty = workload_of([case("eager", "timeout")], [], key="c")
        assert closing(empty, msgspec.structs.replace(empty, key="d")) == (
            "No case was measured. Without a result: c (no case was measured) and d (no case was measured)."
        )

    def test_one_launch_claims_nothing(self) -> None:
        text = closing(workload("a", SPEEDS, launches=1), workload("b", SPEEDS, launches=1))
        expected = (
            "One launch cannot show how processes differ, so there is no verdict. Over all 2 workloads, on geometric"
        )
        assert text.startswith(f"{expected} mean: fast ran ")
        assert "nothing was found" not in text
        assert "99 %" not in text
        assert "for sure" not in text
        assert "deploy" not in text

    def test_a_suspicious_workload_is_named(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS, control=1.1))
        assert "deploy fast: " in text
        assert text.endswith(
            " By estimates only, since some workloads are in doubt. Do not trust b: two identical workers of the "
            "baseline differ there."
        )

    def test_an_interruption_comes_first(self) -> None:
        text = closing(workload("a", SPEEDS), workload("b", SPEEDS), state="interrupted")
        assert text.startswith("The run was interrupted; this is what had been measured by then. Over all 2")
        assert "deploy" not in text

    def test_different_baselines(self) -> None:
        other = msgspec.structs.replace(measured({"fast": 1.0, "eager": 3.0}), key="b", baseline="fast")
        assert closing(workload("a", SPEEDS), other).startswith("The workloads have no baseline in common.")
