"""What is recommended, held against brute force over random result sets, and how it is said."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.advice import METRICS, BreakEven, Candidate, Limit, Recommendation, Wish, metric
from harness.choosing import LIMITS, OBJECTIVES
from harness.choosing import recommend as command
from harness.errors import UsageError
from harness.quantities import Bytes, Drift, Duration, Quantity, Share
from harness.recommend import advise, missed, recommend
from harness.records import Case, Failure, Run, Workload
from harness.stats import EFFECT
from harness.store import RUN_FILE
from harness.summarize import summarize
from harness.summary import CaseSummary, Comparison, Estimate, Latency, WorkloadSummary
from harness.tradeoffs import break_even, inverse
from reports.recommendation import SUPERLATIVE, draw, headline, pays, render, why_not
from tests.example_accuracy import accuracy
from tests.example_runs import NASTY, case, drift, nasty, no_export, nothing, row, single, stages
from tests.example_suites import suite
from tests.unit.test_summarize import launch, measured, run_of, summed, with_samples, workload_of

MS = 1e6
STATUSES = ("ok", "ok", "ok", "ok", "drifted", "crashed", "unavailable")


class World:
    """A random result set: what is measured of each case, and how every two compare."""

    def __init__(self, cases: list[dict[str, Any]], shared: bool) -> None:
        self.cases = {f"c{index}": facts for index, facts in enumerate(cases)}
        self.shared = shared
        """Whether all cases were measured side by side."""

    def ratio(self, one: str, other: str) -> Comparison:
        """Return one's time over the other's."""
        a, b = self.cases[one], self.cases[other]
        middle, half = math.log(a["ms"] / b["ms"]), math.hypot(a["noise"], b["noise"])
        return Comparison(
            ratio=Estimate(value=math.exp(middle), low=math.exp(middle - half), high=math.exp(middle + half)),
            verdict="UNDECIDED",
            noisy=False,
        )

    def measured(self) -> list[str]:
        return [key for key, facts in self.cases.items() if facts["status"] in ("ok", "drifted")]

    def direct(self, workload: Workload, reference: str) -> Mapping[str, Comparison]:
        if not self.shared and reference != "c0":
            return {}
        return {key: self.ratio(key, reference) for key in self.measured() if key != reference}

    def row(self, key: str) -> CaseSummary:
        facts = self.cases[key]
        is_measured = facts["status"] in ("ok", "drifted")
        of = case(
            key,
            status=facts["status"],
            stages={"compile": facts["compile"]} if facts["compile"] else {},
            drift=[drift(0, relative_l2=facts["drift"], passed=facts["status"] == "ok")],
            engine_bytes=None,
        )
        ns = facts["ms"] * MS
        p50 = Estimate(value=ns, low=ns * 0.99, high=ns * 1.01)
        p99 = Estimate(value=ns * facts["tail"], low=ns * facts["tail"] * 0.9, high=ns * facts["tail"] * 1.1)
        latency = Latency(samples=9, p50=p50, p90=None, p95=None, p99=p99 if facts["tail"] > 1 else None, cv=0.1)
        return CaseSummary(
            case=of,
            is_baseline=key == "c0",
            compute=latency if is_measured else None,
            host_to_host=None,
            comparison=self.ratio(key, "c0") if is_measured and key != "c0" and "c0" in self.measured() else None,
            throughput=1e9 / ns if is_measured else None,
            gflop_per_s=None,
            peak_bytes=facts["bytes"] if is_measured else None,
            launches=5,
            worst_drift=0,
            marked_windows=0,
            windows=0,
        )

    def summary(self) -> WorkloadSummary:
        rows = [self.row(key) for key in self.cases]
        baseline = "c0" if "c0" in self.measured() else None
        return WorkloadSummary(
            workload=workload_of([one.case for one in rows], []),
            seeded=True,
            rows=rows,
            baseline=baseline,
            control=None,
            suspicious=False,
            noise_floor=None,
            closing="",
        )


worlds = st.builds(
    World,
    st.lists(
        st.fixed_dictionaries(
            {
                "status": st.sampled_from(STATUSES),
                "ms": st.sampled_from([1.0, 1.005, 1.02, 1.1, 2.0, 2.01, 5.0]),
                "noise": st.sampled_from([0.0001, 0.004, 0.03]),
                "tail": st.sampled_from([1.0, 1.2, 3.0]),  # 1: too few samples for a tail
                "compile": st.sampled_from([0.0, 1.0, 2.0, 60.0]),  # 0: not known
                "bytes": st.sampled_from([10**8, 10**9]),
                "drift": st.sampled_from([0.0, 1e-7, 1e-3]),
            }
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
wishes = st.builds(
    Wish,
    objective=st.sampled_from(["latency", "latency-p99", "throughput", "compile", "memory", "drift", "cost"]),
    limits=st.lists(
        st.one_of(
            st.builds(Limit, metric=st.just("latency"), value=st.sampled_from([0.001, 0.0015, 0.01])),
            st.builds(Limit, metric=st.just("latency-p99"), value=st.sampled_from([0.0012, 0.004])),
            st.builds(Limit, metric=st.just("throughput"), value=st.sampled_from([100.0, 800.0])),
            st.builds(Limit, metric=st.just("compile"), value=st.sampled_from([1.0, 30.0])),
            st.builds(Limit, metric=st.just("memory"), value=st.just(5e8)),
        ),
        max_size=2,
        unique_by=lambda limit: limit.metric,
    ),
    max_drift=st.sampled_from(["pass", "any", 1e-5]),
    price_per_hour=st.just(0.6),
)


def figure(world: World, key: str, name: str) -> float | None:
    """Return a figure of a case, worked out from the world and not by the code under test."""
    facts = world.cases[key]
    seconds = facts["ms"] / 1000
    figures: dict[str, float | None] = {
        "latency": seconds,
        "latency-p99": seconds * facts["tail"] if facts["tail"] > 1 else None,
        "throughput": 1 / seconds,
        "compile": facts["compile"] or None,
        "memory": float(facts["bytes"]),
        "drift": facts["drift"],
        "cost": 0.6 / 3600 * 1e6 * seconds,
    }
    return figures[name]


def keeps(value: float | None, limit: Limit) -> bool:
    if value is None:
        return False
    return value >= limit.value * (1 - 1e-12) if limit.metric == "throughput" else value <= limit.value * (1 + 1e-12)


def meets(world: World, key: str, wish: Wish) -> bool:
    facts = world.cases[key]
    if facts["status"] not in ("ok", "drifted") or figure(world, key, wish.objective) is None:
        return False
    if isinstance(wish.max_drift, float):
        sound = facts["drift"] <= wish.max_drift
    else:
        sound = wish.max_drift == "any" or facts["status"] == "ok"
    return bool(sound) and all(keeps(figure(world, key, limit.metric), limit) for limit in wish.limits)


def is_worse(world: World, key: str, than: str, wish: Wish) -> bool:
    """Say whether a case is surely worse than another by the objective."""
    if wish.objective in ("latency", "throughput", "cost"):
        together = world.shared or than == "c0"
        baseline = "c0" in world.measured()
        if together:
            ratio = world.ratio(key, than).ratio
            return ratio.low > 1 and ratio.value >= 1 + EFFECT
        if baseline:
            one = world.ratio(key, "c0").ratio if key != "c0" else Estimate(value=1, low=1, high=1)
            best = world.ratio(than, "c0").ratio
            return one.low > best.high and one.value >= (1 + EFFECT) * best.value
        a, b = world.cases[key]["ms"], world.cases[than]["ms"]
        return bool(a * 0.99 > b * 1.01 and a >= (1 + EFFECT) * b)
    spread = 0.1 if wish.objective == "latency-p99" else 0.0
    own, best_ = figure(world, key, wish.objective), figure(world, than, wish.objective)
    assert own is not None
    assert best_ is not None
    return own * (1 - spread) > best_ * (1 + spread) and own >= (1 + EFFECT) * best_


class TestBruteForce:
    @given(worlds, wishes)
    @settings(max_examples=400, deadline=None)
    def test_the_recommended_case(self, world: World, wish: Wish) -> None:
        found = recommend(world.summary(), wish, direct=world.direct)
        fit = [key for key in world.cases if meets(world, key, wish)]
        if not fit:
            assert found.case is None
            assert found.tied == []
            return
        name = "latency" if wish.objective in ("throughput", "cost") else wish.objective
        leader = min(fit, key=lambda key: figure(world, key, name) or 0.0)
        level = [key for key in fit if key == leader or not is_worse(world, key, leader, wish)]
        expected = min(level, key=lambda key: world.cases[key]["compile"] or math.inf)
        assert found.case == expected
        assert set(found.tied) == set(level) - {expected}

    @given(worlds, wishes)
    @settings(max_examples=200, deadline=None)
    def test_every_case_has_one_fate_and_it_is_the_right_one(self, world: World, wish: Wish) -> None:
        found = recommend(world.summary(), wish, direct=world.direct)
        assert [one.case for one in found.candidates] == list(world.cases)
        for one in found.candidates:
            if one.case not in world.measured():
                assert one.fate == "no result"
            elif not meets(world, one.case, wish):
                assert one.fate == "misses"
                assert one.misses
            else:
                expected = "recommended" if one.case == found.case else "tied" if one.case in found.tied else "worse"
                assert one.fate == expected
                assert not one.misses

    @given(worlds, wishes)
    @settings(max_examples=200, deadline=None)
    def test_the_nearest_misses_by_least(self, world: World, wish: Wish) -> None:
        found = recommend(world.summary(), wish, direct=world.direct)
        tried = [one for one in found.candidates if one.fate == "misses"]
        if found.case is not None or not tried:
            assert found.nearest is None
            return

        def hopeless(one: Candidate) -> int:
            return sum(miss.over is None for miss in one.misses)

        def worst(one: Candidate) -> float:
            return max((miss.over for miss in one.misses if miss.over is not None), default=0.0)

        nearest = next(one for one in tried if one.case == found.nearest)
        assert all((hopeless(nearest), worst(nearest)) <= (hopeless(one), worst(one) * (1 + 1e-9)) for one in tried)

    @given(worlds, wishes)
    @settings(max_examples=200, deadline=None)
    def test_the_frontier(self, world: World, wish: Wish) -> None:
        found = recommend(world.summary(), wish, direct=world.direct)
        sound = [key for key in world.measured() if world.cases[key]["status"] == "ok" or wish.max_drift != "pass"]

        def point(key: str) -> list[float]:
            facts = world.cases[key]
            return [facts["ms"], facts["drift"], facts["compile"] or math.inf, facts["bytes"]]

        def dominates(one: str, other: str) -> bool:
            pairs = list(zip(point(one), point(other), strict=True))
            return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

        for one in found.candidates:
            expected = one.case in sound and not any(dominates(other, one.case) for other in sound)
            assert one.frontier == expected
            if one.case in sound:
                assert set(one.dominated_by) == {key for key in sound if dominates(key, one.case)}

    @given(
        st.floats(0.0, 1000.0),
        st.floats(0.0, 1000.0),
        st.floats(0.01, 100.0),
        st.floats(0.2, 5.0),
        st.floats(0.0, 0.2),
    )
    @settings(max_examples=300, deadline=None)
    def test_break_even_is_where_total_times_cross(
        self, compile_s: float, other_s: float, ms: float, ratio: float, half: float
    ) -> None:
        chosen = row(case("chosen", stages={"compile": compile_s}), p50=ms)
        other = row(case("other", stages={"compile": other_s}), p50=ms * ratio)
        estimate = Estimate(value=ratio, low=ratio * math.exp(-half), high=ratio * math.exp(half))
        found = break_even(chosen, other, Comparison(ratio=estimate, verdict="UNDECIDED", noisy=False))
        assert found is not None

        def ahead(count: float) -> float:
            """Return the seconds by which the recommended one is ahead after so many inferences."""
            return other_s - compile_s + count * ms / 1000 * (ratio - 1)

        tiny = 1e-6 * (1 + compile_s + other_s)
        if found.kind == "at once":
            assert ahead(0) >= 0
            assert ahead(1e6) >= 0
        elif found.kind == "never":
            assert ahead(0) <= 0
            assert ahead(1e6) <= 0
        else:
            assert found.inferences is not None
            assert found.low is not None
            sign = 1 if found.kind == "after" else -1
            assert sign * ahead(found.inferences) >= -tiny
            assert sign * ahead(found.inferences - 1) <= tiny
            assert found.low <= found.inferences
            assert found.high is None or found.high >= found.inferences
            nearer = estimate.low if found.kind == "after" else estimate.high
            assert (found.high is None) == (sign * (nearer - 1) <= 0)
            assert found.seconds == pytest.approx(found.inferences * ms / 1000, abs=ms / 1000 + tiny)


def limited(*limits: tuple[str, float], **fields: Any) -> Wish:
    return Wish(limits=[Limit(metric=name, value=value) for name, value in limits], **fields)


def compiled(workload: Workload, seconds: Mapping[str, float]) -> Workload:
    cases = [
        msgspec.structs.replace(one, stages={"compile": seconds[one.id]}) if one.id in seconds else one
        for one in workload.cases
    ]
    return msgspec.structs.replace(workload, cases=cases)


class TestFromSamples:
    """The comparison statistics themselves: raw samples in, a recommendation out."""

    def test_the_fastest_is_surely_so(self) -> None:
        found = recommend(summed(measured({"eager": 1.0, "fast": 0.5, "slow": 2.0})), Wish())
        assert (found.case, found.tied, found.sure) == ("fast", [], True)

    def test_of_two_that_tie_the_one_that_compiles_faster(self) -> None:
        workload = measured({"eager": 1.0, "one": 0.5, "two": 0.5})
        for quick, long in (("one", "two"), ("two", "one")):
            found = recommend(summed(compiled(workload, {quick: 1.0, long: 100.0, "eager": 0.1})), Wish())
            assert (found.case, found.tied) == (quick, [long])

    def test_ties_are_decided_directly_and_not_through_the_noise_of_the_baseline(self) -> None:
        import numpy as np

        rng = np.random.default_rng(3)
        launches = [launch(index, {"eager": 1.0, "a": 0.5, "b": 0.53}, rng, noise=0.002) for index in range(5)]
        # A baseline that wanders from launch to launch widens every interval that goes through it.
        shaken = []
        for index, one in enumerate(launches):
            sittings = [
                msgspec.structs.replace(
                    sitting,
                    windows=[
                        msgspec.structs.replace(
                            window, samples_ns=[int(ns * (1 + 0.03 * index)) for ns in window.samples_ns]
                        )
                        for window in sitting.windows
                    ],
                )
                if sitting.case.startswith("eager")
                else sitting
                for sitting in one.sittings
            ]
            shaken.append(msgspec.structs.replace(one, sittings=sittings))
        summary = summed(workload_of(measured({"eager": 1.0, "a": 0.5, "b": 0.53}).cases, shaken))
        through = {one.case.id: one.comparison.ratio for one in summary.rows if one.comparison}
        assert through["b"].low < through["a"].high
        found = recommend(summary, Wish())
        assert (found.case, found.tied) == ("a", [])

    def test_one_launch_is_a_first_look(self) -> None:
        summary = summed(measured({"eager": 1.0, "fast": 0.5}, launches=1))
        found = recommend(summary, Wish())
        assert found.case == "fast"
        assert found.doubts == ["one launch"]
        assert headline(found, summary, Wish()).startswith("A first look, no verdict: fast (p50 latency ")

    def test_a_p50_that_most_windows_did_not_see_is_a_doubt(self) -> None:
        """A window is as long as any other, so a lucky one holds as many samples as all slow ones together."""
        workload = measured({"eager": 1.0, "fast": 0.5})
        lucky = with_samples(
            workload, lambda of, window: [10**4] * 900 if of.case == "fast" and window.round == 0 else None
        )
        summary = summed(lucky)
        assert recommend(summary, Wish()).doubts == ["unsteady"]
        assert "Deploy" not in summary.closing
        fast = next(row for row in summary.rows if row.case.id == "fast")
        assert fast.cautions[0].startswith(
            "unsteady: p50 is 0.01 ms over all samples, of which quick windows hold more"
        )
        assert "Deploy" in summed(workload).closing

    def test_drifted_outputs_are_never_recommended_unless_they_are_wished_for(self) -> None:
        summary = summed(measured({"eager": 1.0, "wrong": 0.2}, {"wrong": "drifted"}))
        assert recommend(summary, Wish()).case == "eager"
        assert recommend(summary, Wish(max_drift="any")).case == "wrong"
        assert recommend(summary, Wish(max_drift=0.2)).case == "wrong"  # its distance is 0.1
        assert recommend(summary, Wish(max_drift=0.01)).case is None

    def test_accuracy_on_the_data_set_is_a_limit_and_an_objective(self) -> None:
        summary = accuracy()
        (workload,) = summary.workloads
        rows = {row.case.id: row for row in workload.rows}
        wish = limited(("accuracy", 0.81))
        assert missed(rows["eager"], wish) == []
        (miss,) = missed(rows["onnxruntime int8"], wish)
        assert (miss.metric, miss.value) == ("accuracy", 0.8011)
        (none,) = missed(rows["torch-compile"], wish)  # its accuracy could not be had
        assert (none.metric, none.value) == ("accuracy", None)
        assert recommend(workload, wish).case == "onnxruntime fp16"
        assert recommend(workload, Wish(objective="accuracy", max_drift="any")).case in ("eager", "onnxruntime fp16")

    def test_over_several_workloads(self) -> None:
        a = measured({"eager": 1.0, "x": 0.5, "y": 0.6})
        b = measured({"eager": 1.0, "x": 0.9, "y": 0.6}, seed=1)
        summary = summarize(run_of(a, msgspec.structs.replace(b, key="other")))
        overall = advise(summary, Wish()).overall
        assert overall is not None
        assert (overall.case, overall.tied, overall.workloads) == ("y", [], 2)
        assert overall.ratio is not None
        assert overall.ratio.value == pytest.approx(0.6, rel=0.01)
        assert overall.doubts == []
        assert summary.overall == overall
        assert "One backend for all 2 workloads: y, 0.6" in render(advise(summary, Wish()), summary)

    def test_over_several_workloads_of_which_some_are_in_doubt(self) -> None:
        a, b = measured({"eager": 1.0, "x": 2.0}, launches=1), measured({"eager": 1.0, "x": 2.0}, control=1.1, seed=1)
        summary = summarize(run_of(a, msgspec.structs.replace(b, key="other"), state="interrupted"))
        assert summary.overall is not None
        assert summary.overall.doubts == ["one launch", "suspicious", "interrupted"]
        said = "One backend for all 2 workloads, by estimates only: eager, the baseline."
        assert said in render(advise(summary, Wish()), summary)

    def test_over_several_workloads_of_which_one_lacks_it(self) -> None:
        a = measured({"eager": 1.0, "x": 0.5})
        b = measured({"eager": 1.0, "x": 0.5}, {"x": "drifted"}, seed=1)
        summary = summarize(run_of(a, msgspec.structs.replace(b, key="other")))
        overall = advise(summary, Wish()).overall
        assert overall is not None
        assert (overall.case, overall.meets) == ("eager", {"x": 1, "eager": 2})
        none = advise(summary, limited(("latency", 1e-9))).overall
        assert none is not None
        assert none.case is None

    def test_the_closing_of_a_comparison_says_when_compiling_pays(self) -> None:
        workload = compiled(measured({"eager": 1.0, "fast": 0.5}), {"eager": 0.0, "fast": 50.0})
        text = summed(workload).closing
        # 50 s over 5 ms
        assert "What fast takes longer to compile than eager pays for itself after 9,998 inferences" in text
        assert "(9,950 to 10,046)." in text
        assert "pays for itself" not in summed(measured({"eager": 1.0, "fast": 0.5})).closing
        short = compiled(measured({"eager": 1.0, "fast": 0.5}), {"eager": 2.0, "fast": 1.0})
        assert "pays for itself" not in summed(short).closing

    @pytest.mark.parametrize(
        ("speeds", "seconds", "says"),
        [
            ({"eager": 1.0, "fast": 0.5}, {}, "Deploy fast."),
            ({"eager": 1.0, "slow": 2.0}, {}, "Deploy eager."),
            ({"eager": 1.0, "wrong": 0.5, "fast": 0.8}, {}, "Deploy fast."),
            (
                {"eager": 1.0, "one": 0.5, "two": 0.5},
                {"one": 90.0, "two": 3.0, "eager": 0.1},
                "Deploy two, of those that tie the one that compiles fastest.",
            ),
        ],
    )
    def test_the_closing_of_a_comparison_recommends_as_the_command_does(
        self, speeds: dict[str, float], seconds: dict[str, float], says: str
    ) -> None:
        summary = summed(compiled(measured(speeds, {"wrong": "drifted"} if "wrong" in speeds else {}), seconds))
        assert says in summary.closing
        assert f"Deploy {recommend(summary, Wish()).case}" in summary.closing

    def test_the_closing_recommends_nothing_that_the_run_is_not_sure_of(self) -> None:
        assert "Deploy" not in summed(measured({"eager": 1.0, "fast": 0.5}, launches=1)).closing
        assert "Deploy" not in summed(measured({"eager": 1.0, "fast": 0.5}, control=1.1)).closing
        assert "Deploy" not in summed(measured({"eager": 1.0})).closing
        drifted = measured({"eager": 1.0, "wrong": 0.5}, {"eager": "drifted", "wrong": "drifted"})
        assert "Deploy" not in summed(drifted).closing

    def test_break_even_by_hand(self) -> None:
        chosen = row(case("chosen", stages={"compile": 30.0}), p50=8.0)
        other = row(case("other", stages={"compile": 6.0}), p50=12.0)
        slower = Comparison(ratio=Estimate(value=1.5, low=1.25, high=2.0), verdict="SLOWER", noisy=True)
        found = break_even(chosen, other, slower)
        # 24 s longer, and 4 ms saved each time: 6000 times, which take 48 s. At the ends 8 ms and 2 ms are saved.
        assert found is not None
        assert (found.kind, found.inferences, found.low, found.high) == ("after", 6000, 3000, 12000)
        assert found.seconds == pytest.approx(48.0)
        back = break_even(other, chosen, inverse(slower))
        # The other way round: 24 s shorter, 4 ms lost each time.
        assert back is not None
        assert (back.kind, back.inferences) == ("until", 6000)
        unsure = Comparison(ratio=Estimate(value=1.5, low=0.9, high=2.0), verdict="UNDECIDED", noisy=True)
        found = break_even(chosen, other, unsure)
        assert found is not None
        assert (found.inferences, found.low, found.high) == (6000, 3000, None)


class TestWords:
    def test_every_objective_and_metric_has_words(self) -> None:
        assert set(SUPERLATIVE) == set(OBJECTIVES)
        priced = Wish(price_per_hour=1.0)
        for key in {*OBJECTIVES, *(name for _, name, _, _ in LIMITS)}:
            assert metric(key, priced).title
        assert {name for _, name, _, _ in LIMITS} >= {*METRICS} - {"drift"}

    def test_why_the_others_lost(self) -> None:
        rows = [
            row(case("fast", stages=stages(900, 1, 1)), p50=5.0, compared=(0.5, 0.49, 0.51, "FASTER")),
            row(case("eager", stages=stages(1, 1, 1)), p50=10.0),
            row(case("wrong", status="drifted", stages=stages(1, 1, 1)), p50=4.0, compared=(0.4, 0.39, 0.41, "FASTER")),
            row(case("gone", status="crashed", failure=Failure(stage="compile", message="ended by SIGSEGV"))),
            row(case("elsewhere", status="compiled")),
        ]
        summary = single(rows).workloads[0]
        wish = limited(("compile", 600.0))
        found = recommend(summary, wish, direct=lambda _, reference: {} if reference != "eager" else compared(rows))
        assert found.case == "eager"
        said = {one.case: why_not(one, wish) for one in found.candidates}
        assert said["eager"] == "recommended"
        assert said["fast"] == "compile time 900 s, at most 600 s wished, 50 % too much; otherwise 2.00x better"
        assert said["wrong"] == "its outputs do not agree with the reference; otherwise 2.50x better"
        assert said["gone"] == "crashed: ended by SIGSEGV"
        assert said["elsewhere"] == "only compiled, for a device that is not here"
        assert headline(found, summary, wish) == "Deploy eager (p50 latency 10.0 ms): nothing else meets the wish."

    def test_nothing_meets_the_wish(self) -> None:
        rows = [row(case("eager"), p50=10.0), row(case("ort"), p50=8.0, compared=(0.8, 0.79, 0.81, "FASTER"))]
        summary = single(rows).workloads[0]
        wish = limited(("latency", 0.004))
        found = recommend(summary, wish, direct=lambda *_: {})
        assert found.nearest == "ort"
        assert headline(found, summary, wish) == (
            "Nothing that was measured meets the wish. The nearest is ort: p50 latency 8.00 ms, at most 4.00 ms "
            "wished, 2.00 times too much."
        )

    def test_a_figure_that_no_case_has(self) -> None:
        rows = [row(case("eager"), p50=10.0, tails=False), row(case("ort"), p50=8.0, tails=False)]
        summary = single(rows).workloads[0]
        for wish in (limited(("latency-p99", 1.0)), Wish(objective="latency-p99")):
            text = headline(recommend(summary, wish, direct=lambda *_: {}), summary, wish)
            assert text.startswith("Nothing can be recommended: this run has no p99 latency of any case. More launches")

    @pytest.mark.parametrize(("made", "says"), [(nothing, "none of 3 cases has a result"), (no_export, "cannot trace")])
    def test_no_result_at_all(self, made: Any, says: str) -> None:
        summary = made()
        advice = advise(summary, Wish())
        assert says in render(advice, summary)
        assert advice.recommendations[0].case is None

    @pytest.mark.parametrize("width", [None, 80])
    def test_a_single_case(self, width: int | None) -> None:
        summary = single([row(case("only"), p50=10.0)])
        text = render(advise(summary, Wish()), summary, width=width)
        assert "Deploy only (p50 latency 10.0 ms): nothing else meets the wish." in text
        assert "\nwhy" not in text

    def test_break_even_in_a_cell(self) -> None:
        assert pays(None) == "-"
        assert pays(BreakEven(kind="at once", inferences=0)) == "at once"
        assert pays(BreakEven(kind="never")) == "never"
        assert pays(BreakEven(kind="after", inferences=1234, low=1000, high=None)) == "1,234 [1,000, never]"
        assert pays(BreakEven(kind="until", inferences=5, low=4, high=6)) == "until 5 [4, 6]"

    def test_foreign_text_cannot_break_the_terminal(self) -> None:
        summary = nasty()
        text = render(advise(summary, Wish(max_drift="any")), summary)
        assert "\x1b" not in text
        assert "\u202e" not in text

    @pytest.mark.parametrize("width", [None, 80])
    def test_several_workloads_have_a_heading_each(self, width: int | None) -> None:
        summary = suite()
        text = render(advise(summary, Wish()), summary, width=width)
        assert text.count("Deploy ") + text.count("Nothing can be") == len(summary.workloads)
        assert draw(advise(summary, Wish()), summary).title.startswith("What to deploy: suite vision")


def compared(rows: Sequence[CaseSummary]) -> dict[str, Comparison]:
    return {one.case.id: one.comparison for one in rows if one.comparison}


class TestQuantities:
    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            (Duration(), "20ms", 0.02),
            (Duration(), "1.5 s", 1.5),
            (Duration(), "10m", 600.0),
            (Duration(), "2h", 7200.0),
            (Duration(), "350µs", 350e-6),
            (Duration(), "1e3ms", 1.0),
            (Bytes(), "8GB", 8e9),
            (Bytes(), "512MiB", 2.0**29),
            (Bytes(), "100 mb", 1e8),
            (Share(), "99%", 0.99),
            (Share(), "0.5", 0.5),
        ],
    )
    def test_are_read(self, kind: Quantity, text: str, value: float) -> None:
        assert kind.convert(text, None, None) == pytest.approx(value)

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            *((Duration(), text) for text in ("20", "ms", "-1s", "0ms", "1e400s", "20 parsecs", "nan", "")),
            *((Bytes(), text) for text in ("8", "8 GBit", "GB")),
            *((Share(), text) for text in ("101%", "2", "0%", "x")),
        ],
    )
    def test_nonsense_is_refused(self, kind: Quantity, text: str) -> None:
        with pytest.raises(click.BadParameter, match="is "):
            kind.convert(text, None, None)

    @pytest.mark.parametrize("text", ["fail", "0", "-1", "inf", "nan"])
    def test_drift_is_refused(self, text: str) -> None:
        with pytest.raises(click.BadParameter, match="neither pass, any, nor"):
            Drift().convert(text, None, None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs with one run in it."""
    folder = tmp_path_factory.mktemp("results")
    workload = compiled(measured({"eager": 1.0, "fast": 0.5, "slow": 2.0}), {"eager": 0.1, "fast": 50.0, "slow": 1.0})
    save(run_of(workload), folder / "some-run")
    save(run_of(msgspec.structs.replace(workload, launches=[], cases=[crashed("eager")])), folder / "zero-results")
    save(run_of(), folder / "zero-workloads")
    return folder


def crashed(name: str) -> Case:
    return case(name, status="crashed", failure=Failure(stage="compile", message="it crashed"), drift=[])


def save(run: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / RUN_FILE).write_bytes(msgspec.json.encode(run))


class TestCommand:
    def run(self, saved: Path, text: str) -> tuple[int, str]:
        done = CliRunner().invoke(command, [*shlex.split(text), "--out", str(saved)], standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.return_value, done.output

    def test_answers(self, saved: Path) -> None:
        code, text = self.run(saved, "some-run --max-latency 100ms --price 0.5")
        assert code == 0
        assert "Deploy fast (p50 latency " in text
        assert "surely the lowest p50 latency of the 3 that meet the wish" in text
        assert "limit met" in text
        assert "unknown backend 'fast'" in text  # there is no code here that could load its engine

    def test_json_holds_all_of_it(self, saved: Path) -> None:
        code, text = self.run(saved, "some-run --objective cost --price 0.5 --json")
        found = msgspec.convert(json.loads(text), type=dict[str, Any])
        (only,) = found["recommendations"]
        assert code == 0
        assert only["case"] == "fast"
        by_case = {one["case"]: one for one in only["candidates"]}
        assert by_case["eager"]["break_even"]["kind"] == "after"
        assert by_case["eager"]["break_even"]["inferences"] == pytest.approx(49.9 / 0.005, rel=0.02)
        assert by_case["fast"]["figures"]["cost"] == pytest.approx(0.5 / 3600 * 1e6 * 0.005 / 4, rel=0.02)
        assert msgspec.convert(only, type=Recommendation).case == "fast"

    @pytest.mark.parametrize(
        ("text", "code", "says"),
        [
            ("some-run --max-latency 1us", 1, "Nothing that was measured meets the wish. The nearest is fast"),
            ("some-run --min-accuracy 0.9", 1, "this run has no accuracy on the data set of any case"),
            ("some-run --min-agreement 50%", 1, "this run has no top-1 agreement of any case"),
            ("zero-results", 3, "none of 1 case has a result"),
            ("zero-workloads", 3, "The run holds no workload"),
        ],
    )
    def test_when_there_is_no_answer(self, saved: Path, text: str, code: int, says: str) -> None:
        found, output = self.run(saved, text)
        assert says in output
        assert found == code

    def test_cost_needs_a_price(self, saved: Path) -> None:
        for text in ("some-run --objective cost", "some-run --max-cost 2"):
            with pytest.raises(UsageError, match="a cost needs the price"):
                self.run(saved, text)

    def test_a_bare_number_is_not_a_duration(self, saved: Path) -> None:
        with pytest.raises(click.BadParameter, match="'20' is not a duration; give a number with one of ns"):
            self.run(saved, "some-run --max-latency 20")

    def test_nasty_run(self, tmp_path: Path) -> None:
        save(nasty().run, tmp_path / "nasty")
        code, text = self.run(tmp_path, "nasty")
        assert code == 3
        assert NASTY not in text


class TestOnAGpu:
    def test_energy_and_device_memory_count_where_they_were_measured(self) -> None:
        from tests.example_gpu import gpu

        summary = gpu().workloads[0]
        by_energy = {row.case.id: row.energy.mj for row in summary.rows if row.energy and row.case.status == "ok"}
        assert by_energy
        found = recommend(summary, Wish(objective="energy"), direct=lambda *_: {})
        assert found.case is not None
        assert by_energy[found.case] <= min(by_energy.values()) * (1 + EFFECT)
        none = recommend(summary, limited(("device-memory", 1.0)), direct=lambda *_: {})
        assert none.case is None
        assert any(miss.metric == "device-memory" and miss.over for one in none.candidates for miss in one.misses)

    def test_a_cpu_has_no_energy(self) -> None:
        summary = single([row(case("eager"), p50=10.0)]).workloads[0]
        text = headline(
            recommend(summary, Wish(objective="energy"), direct=lambda *_: {}), summary, Wish(objective="energy")
        )
        assert text == "Nothing can be recommended: this run has no energy of an inference of any case."
