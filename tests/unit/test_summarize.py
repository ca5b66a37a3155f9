"""From records to rows, verdicts and the sentence that a person would say."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from harness.measure import Boundary
from harness.modelspec import ModelSpec
from harness.records import (
    CONTROL,
    Case,
    Environment,
    Failure,
    Launch,
    ModelInfo,
    OutputDrift,
    Run,
    Settings,
    Sitting,
    Status,
    Window,
    Workload,
)
from harness.summarize import of_workload, precise, summarize
from harness.summary import CaseSummary, RunSummary, WorkloadSummary

MS = 1_000_000
SPEEDS = {"eager": 1.0, "fast": 0.5, "slow": 2.0}


def windows(milliseconds: float, rng: np.random.Generator, rounds: int, noise: float) -> list[Window]:
    return [
        Window(
            round=number,
            position=0,
            start_ns=0,
            samples_ns=[int(milliseconds * MS * math.exp(rng.normal(0, noise))) for _ in range(9)],
        )
        for number in range(rounds)
    ]


def launch(
    index: int,
    speeds: dict[str, float],
    rng: np.random.Generator,
    *,
    rounds: int = 10,
    noise: float = 0.002,
    group: int = 0,
    control: float = 1.0,
) -> Launch:
    workers = dict(speeds)
    if "eager" in speeds:
        workers["eager" + CONTROL] = speeds["eager"] * control
    sittings = [
        Sitting(
            case=case,
            import_s=0.1,
            load_s=0.1,
            first_run_s=0.1,
            warm_up_ns=[],
            windows=windows(10 * speed * math.exp(rng.normal(0, noise)), rng, rounds, noise),
            peak_bytes=1000 + index,
        )
        for case, speed in workers.items()
    ]
    return Launch(index=index, group=group, wall_s=1.0, sittings=sittings)


def case(id_: str, status: Status = "ok", *, judged: bool = True) -> Case:
    row = OutputDrift(output="y", input_set=0, elements=1, relative_l2=0.1, passed=status != "drifted")
    return Case(
        id=id_,
        backend=id_,
        options={},
        device="cpu",
        precision="fp32",
        batch=4,
        threads=1,
        status=status,
        drift=[row] if judged and status in ("ok", "drifted") else [],
    )


def workload_of(cases: list[Case], launches: list[Launch], **changes: object) -> Workload:
    workload = Workload(
        key="tiny",
        model=ModelSpec(name="tiny"),
        dims={"batch": 4},
        batch=4,
        baseline="eager",
        cases=cases,
        launches=launches,
    )
    return msgspec.structs.replace(workload, **changes)


def settings_of(*cases: str, asked: str = "all") -> Settings:
    return Settings(
        models=["tiny"],
        cases=list(cases),
        seed=0,
        threads=1,
        launches=5,
        rounds=10,
        slice_s=0.1,
        budget_s=60,
        timeout_s=60,
        memory_limit_bytes=0,
        quick=False,
        asked=asked.split(" "),
    )


def run_of(*workloads: Workload, **changes: object) -> Run:
    environment = Environment(
        cpu="",
        cores=1,
        logical_cores=1,
        memory_bytes=1,
        kernel="",
        os="",
        python="",
        governor=None,
        load_average=0,
        gpus=[],
        libraries={},
        git_commit=None,
        hostname="",
        container=None,
        advice=[],
    )
    run = Run(
        id="run",
        created="",
        harness="0",
        state="finished",
        command="",
        settings=settings_of(*(case.id for workload in workloads for case in workload.cases)),
        environment=environment,
        workloads=list(workloads),
    )
    return msgspec.structs.replace(run, **changes)


def measured(
    speeds: dict[str, float], statuses: dict[str, Status] | None = None, *, seed: int = 0, **options: float
) -> Workload:
    """Return five launches in which all cases of `speeds` (times the baseline's time) were measured."""
    rng = np.random.default_rng(seed)
    count = int(options.pop("launches", 5))
    launches = [launch(index, speeds, rng, **options) for index in range(count)]  # type: ignore[arg-type]
    return workload_of([case(id_, (statuses or {}).get(id_, "ok")) for id_ in speeds], launches)


def with_samples(workload: Workload, change: Callable[[Sitting, Window], list[int] | None]) -> Workload:
    """Return the workload with other samples in the windows for which `change` gives some."""

    def changed(sitting: Sitting) -> Sitting:
        windows = [
            msgspec.structs.replace(window, samples_ns=change(sitting, window) or window.samples_ns)
            for window in sitting.windows
        ]
        return msgspec.structs.replace(sitting, windows=windows)

    launches = [
        msgspec.structs.replace(one, sittings=[changed(sitting) for sitting in one.sittings])
        for one in workload.launches
    ]
    return msgspec.structs.replace(workload, launches=launches)


def info_of(weights: str, gflop: float | None = None) -> ModelInfo:
    return ModelInfo(
        weights=weights,
        parameters=1,
        gflop=gflop,
        task="tensor",
        artifact="",
        opset=18,
        inputs=[],
        input_sets=1,
        deterministic=True,
        golden=True,
        export_s=1.0,
        export_cached=False,
    )


def summed(workload: Workload) -> WorkloadSummary:
    return of_workload(workload, settings_of(*(case.id for case in workload.cases)))


def row(summary: WorkloadSummary, id_: str) -> CaseSummary:
    return next(one for one in summary.rows if one.case.id == id_)


class TestRows:
    def test_measured_cases_come_from_fastest_to_slowest_then_the_rest_as_asked(self) -> None:
        run = measured(SPEEDS)
        run = msgspec.structs.replace(run, cases=[case("z", "crashed"), case("a", "timeout"), *run.cases])
        summary = of_workload(run, settings_of("z", "slow", "a", "eager", "fast"))
        assert [one.case.id for one in summary.rows] == ["fast", "eager", "slow", "z", "a"]

    def test_verdicts_and_ratios(self) -> None:
        summary = summed(measured(SPEEDS | {"same": 1.0}))
        found = {one.case.id: one.comparison for one in summary.rows}
        assert found["eager"] is None
        verdicts = {id_: one.verdict for id_, one in found.items() if one}
        assert verdicts == {"fast": "FASTER", "same": "SAME", "slow": "SLOWER"}
        fast = found["fast"]
        assert fast is not None
        assert fast.ratio.low < 0.5 < fast.ratio.high
        assert not fast.noisy
        assert not fast.rounds_only
        assert summary.noise_floor == 0.01
        assert summary.control is not None
        assert summary.control.verdict == "SAME"
        assert not summary.suspicious

    def test_latency_pools_all_launches(self) -> None:
        run = measured(SPEEDS)
        latency = row(summed(run), "fast").compute
        samples = sorted(
            ns
            for one in run.launches
            for sitting in one.sittings
            if sitting.case == "fast"
            for window in sitting.windows
            for ns in window.samples_ns
        )
        assert latency is not None
        assert latency.samples == len(samples) == 5 * 10 * 9
        assert latency.p50.value == np.median(samples)
        assert latency.p99 is not None
        assert row(summed(run), "fast").throughput == pytest.approx(4e9 / np.median(samples))
        assert row(summed(run), "fast").peak_bytes == 1004
        assert row(summed(run), "fast").launches == 5

    def test_a_few_samples_have_a_range_and_no_tail(self) -> None:
        run = measured({"eager": 1.0}, launches=1, rounds=1)
        sitting = run.launches[0].sittings[0]
        few = Window(round=0, position=0, start_ns=0, samples_ns=[30, 10, 20])
        run = msgspec.structs.replace(
            run, launches=[Launch(index=0, wall_s=1, sittings=[msgspec.structs.replace(sitting, windows=[few])])]
        )
        latency = row(summed(run), "eager").compute
        assert latency is not None
        assert (latency.p50.value, latency.p50.low, latency.p50.high) == (20, 10, 30)
        assert (latency.p90, latency.p99) == (None, None)

    @pytest.mark.parametrize(
        ("device", "windows", "expected"),
        [
            # 30 J over 4 iterations and 10 J over 6: the windows weigh as many iterations as they hold.
            ("cpu", [(30.0, 4, "compute"), (10.0, 6, "compute")], 4.0),
            ("cpu", [(30.0, 4, "compute"), (None, 6, "compute")], 7.5),
            ("cpu", [(30.0, 4, "compute"), (99.0, 1, "host-to-host")], 7.5),
            ("cpu", [(None, 4, "compute")], None),
            ("cuda:0", [(30.0, 4, "compute")], None),
        ],
    )
    def test_package_energy_per_inference(
        self, device: str, windows: list[tuple[float | None, int, Boundary]], expected: float | None
    ) -> None:
        run = measured({"eager": 1.0}, launches=1, rounds=1)
        sitting = run.launches[0].sittings[0]
        made = [
            Window(round=0, position=0, start_ns=0, samples_ns=[MS] * count, boundary=boundary, package_energy_j=joules)
            for joules, count, boundary in windows
        ]
        launches = [Launch(index=0, wall_s=1, sittings=[msgspec.structs.replace(sitting, windows=made)])]
        cases = [msgspec.structs.replace(case, device=device) for case in run.cases]
        summary = summed(msgspec.structs.replace(run, launches=launches, cases=cases))
        assert row(summary, "eager").package_energy_per_inference_j == expected

    def test_host_to_host_is_kept_apart(self) -> None:
        run = measured(SPEEDS)
        first = run.launches[0].sittings[0]
        outside = Window(round=0, position=0, start_ns=0, samples_ns=[99 * MS] * 7, boundary="host-to-host")
        changed = msgspec.structs.replace(first, windows=[*first.windows, outside])
        before = row(summed(run), "eager")
        first_launch = msgspec.structs.replace(run.launches[0], sittings=[changed, *run.launches[0].sittings[1:]])
        after = row(summed(msgspec.structs.replace(run, launches=[first_launch, *run.launches[1:]])), "eager")
        assert after.compute == before.compute
        assert after.host_to_host is not None
        assert after.host_to_host.p50.value == 99 * MS
        assert before.host_to_host is None

    @pytest.mark.parametrize("marked", [0, 4, 10])
    def test_disturbed_windows_are_counted_and_kept(self, marked: int) -> None:
        run = measured(SPEEDS)
        launches = []
        for one in run.launches:
            sittings = []
            for sitting in one.sittings:
                disturb = sitting.case == "fast"
                changed = [
                    msgspec.structs.replace(window, marks=["busy machine"])
                    if disturb and window.round < marked
                    else window
                    for window in sitting.windows
                ]
                sittings.append(msgspec.structs.replace(sitting, windows=changed))
            launches.append(msgspec.structs.replace(one, sittings=sittings))
        found = row(summed(msgspec.structs.replace(run, launches=launches)), "fast")
        untouched = row(summed(run), "fast")
        assert (found.marked_windows, found.windows) == (5 * marked, 50)
        assert (found.compute, found.comparison) == (untouched.compute, untouched.comparison)

    def test_groups_are_compared_with_their_own_baseline(self) -> None:
        # The machine is twice as fast while the second group is measured, so medians mislead: the slow case takes
        # 15 ms there, the other 20 ms in the first group, where it is as fast as the baseline.
        rng = np.random.default_rng(0)
        launches = [launch(index, {"eager": 2.0, "other": 2.0}, rng) for index in range(5)]
        launches += [launch(index, {"eager": 1.0, "slow": 1.5, "fast": 0.5}, rng, group=1) for index in range(5)]
        summary = summed(workload_of([case("eager"), case("slow"), case("fast"), case("other")], launches))
        found = {one.case.id: one.comparison for one in summary.rows if one.comparison}
        assert [one.case.id for one in summary.rows if one.case.id != "eager"] == ["fast", "other", "slow"]
        assert found["other"].verdict == "SAME"
        assert found["fast"].ratio.value == pytest.approx(0.5, rel=0.01)
        assert found["slow"].ratio.value == pytest.approx(1.5, rel=0.01)
        assert not summary.suspicious

    def test_achieved_work_follows_from_the_models_operations(self) -> None:
        run = msgspec.structs.replace(measured(SPEEDS), info=info_of("seeded", gflop=8.0))
        eager = row(summed(run), "eager")
        assert eager.compute is not None
        assert eager.gflop_per_s == pytest.approx(8e9 / eager.compute.p50.value)
        assert row(summed(measured(SPEEDS)), "eager").gflop_per_s is None

    def test_worst_drift_points_at_the_failed_output(self) -> None:
        rows = [
            OutputDrift(output="a", input_set=0, elements=1, relative_l2=0.5, passed=True),
            OutputDrift(output="b", input_set=0, elements=1, relative_l2=0.1, passed=False),
        ]
        run = measured(SPEEDS)
        cases = [msgspec.structs.replace(one, drift=rows) for one in run.cases]
        assert row(summed(msgspec.structs.replace(run, cases=cases)), "fast").worst_drift == 1

    def test_a_worker_that_died_in_mid_run_keeps_its_numbers(self) -> None:
        run = measured(SPEEDS, {"fast": "crashed"})
        kept = []
        for one in run.launches:
            sittings = [
                msgspec.structs.replace(sitting, windows=sitting.windows[:3] if one.index == 0 else [])
                if sitting.case == "fast"
                else sitting
                for sitting in one.sittings
            ]
            kept.append(msgspec.structs.replace(one, sittings=sittings))
        summary = summed(msgspec.structs.replace(run, launches=kept))
        fast = row(summary, "fast")
        assert fast.comparison is not None
        assert fast.comparison.verdict == "UNDECIDED"
        assert fast.launches == 1
        assert "fast ran " in summary.closing
        assert "but it ended as crashed: do not deploy it." in summary.closing


class TestPrecise:
    def test_follows_the_width_of_intervals(self) -> None:
        assert precise(measured(SPEEDS))
        assert not precise(measured(SPEEDS, noise=0.1))
        assert precise(measured(SPEEDS, noise=0.1), 1.0)
        assert not precise(measured(SPEEDS, launches=1))
        assert not precise(workload_of([case("eager")], []))

    def test_a_case_that_failed_is_not_waited_for(self) -> None:
        rng = np.random.default_rng(0)
        launches = []
        for index in range(5):
            steady = launch(index, SPEEDS, rng)
            wild = launch(index, {"wild": 1.0}, rng, noise=0.3)
            launches.append(msgspec.structs.replace(steady, sittings=[*steady.sittings, *wild.sittings]))
        crash = Failure(stage="measure", message="ended by SIGSEGV")
        cases = [case(id_) for id_ in SPEEDS]
        assert not precise(workload_of([*cases, case("wild")], launches))
        gone = msgspec.structs.replace(case("wild", "crashed"), failure=crash)
        assert precise(workload_of([*cases, gone], launches))
        drifted = msgspec.structs.replace(case("wild", "drifted"), failure=crash)
        assert not precise(workload_of([*cases, drifted], launches))


class TestClosing:
    def test_a_winner(self) -> None:
        closing = summed(measured(SPEEDS)).closing
        assert closing.startswith("fast ran 2.0")
        assert "x faster than eager (99 % interval " in closing
        assert "slow ran 2.00x slower than eager (99 % interval " in closing or "slow ran 1.99x slower" in closing
        assert closing.endswith("All outputs agree with the reference.")
        assert "tie" not in closing

    def test_ties_are_named_as_ties(self) -> None:
        closing = summed(measured({"eager": 1.0, "one": 0.5, "two": 0.5, "three": 0.7})).closing
        first, second = ("one", "two") if closing.startswith("one") else ("two", "one")
        assert closing.startswith(f"{first} ran ")
        assert f"), in a tie within noise with {second}. three ran 1.4" in closing

    def test_a_winner_that_drifted_is_not_recommended(self) -> None:
        closing = summed(measured(SPEEDS | {"wrong": 0.25}, {"wrong": "drifted"})).closing
        assert closing.startswith("fast ran ")
        assert "wrong ran " in closing.partition(". ")[2]
        assert "but its outputs drifted: do not deploy it." in closing
        assert "The outputs of wrong do not agree with the reference." in closing
        assert "All outputs agree" not in closing

    def test_a_baseline_that_wins_but_drifted(self) -> None:
        closing = summed(measured({"eager": 1.0, "slow": 2.0, "slower": 3.0}, {"eager": "drifted"})).closing
        expected = "The baseline, eager, was the fastest, but it did not pass; the fastest that passed was slow."
        assert closing.startswith(expected)

    def test_too_little_for_an_interval(self) -> None:
        summary = summed(measured(SPEEDS, launches=1, rounds=1))
        assert row(summary, "fast").compute is not None
        assert row(summary, "fast").comparison is None
        assert summary.closing.startswith("Too little was measured to compare anything with the baseline, eager.")

    def test_only_drifted_candidates(self) -> None:
        closing = summed(measured({"eager": 1.0, "wrong": 0.5}, {"wrong": "drifted"})).closing
        assert closing.startswith("Nothing that was measured beside the baseline, eager, passed.")

    def test_a_baseline_that_wins(self) -> None:
        closing = summed(measured({"eager": 1.0, "slow": 2.0})).closing
        assert closing.startswith("The baseline, eager, was the fastest. slow ran ")

    def test_no_difference(self) -> None:
        closing = summed(measured({"eager": 1.0, "same": 1.0})).closing
        assert closing.startswith(
            "No backend was found to be faster than eager. same ran as fast as eager to within 1 %."
        )

    def test_undecided(self) -> None:
        summary = summed(measured({"eager": 1.0, "wild": 0.99}, noise=0.1))
        assert summary.noise_floor is not None
        assert summary.noise_floor > 0.02
        assert summary.closing.startswith("No backend was found to be faster than eager. wild ran ")
        assert ", undecided)." in summary.closing

    def test_a_quick_run_claims_nothing(self) -> None:
        summary = summed(measured(SPEEDS, launches=1))
        fast = row(summary, "fast").comparison
        assert fast is not None
        assert (fast.verdict, fast.rounds_only) == ("UNDECIDED", True)
        assert summary.noise_floor is None
        assert summary.closing.startswith(
            "One launch cannot show how processes differ, so there is no verdict. fast ran "
        )
        assert "99 %" not in summary.closing

    def test_a_suspicious_control(self) -> None:
        summary = summed(measured(SPEEDS, control=1.1))
        assert summary.suspicious
        assert (
            "Do not trust this run: two identical workers of eager differ, ratio 1.099 (99 % interval"
            in summary.closing
        )

    def test_only_the_baseline(self) -> None:
        run = measured({"eager": 1.0})
        run = msgspec.structs.replace(run, cases=[*run.cases, case("x", "crashed"), case("y", "unavailable")])
        closing = summed(run).closing
        assert closing.startswith("Only the baseline, eager, was measured; there is nothing to compare it with.")
        assert closing.endswith("Without a result: x (crashed).")

    def test_the_only_workload_speaks_for_the_run(self) -> None:
        assert summarize(run_of(measured(SPEEDS))).closing == summed(measured(SPEEDS)).closing

    def test_random_weights_disagree_and_trained_ones_drift(self) -> None:
        wrong = measured({"eager": 1.0, "wrong": 0.5}, {"wrong": "drifted"})
        assert "The outputs of wrong do not agree with the reference." in summed(wrong).closing
        trained = msgspec.structs.replace(wrong, info=info_of("ORG/NAME model.safetensors"))
        assert "The outputs of wrong drifted from the reference." in summed(trained).closing
        own = msgspec.structs.replace(wrong, model=ModelSpec(kind="onnx", name="/m.onnx"))
        assert "drifted from" in summed(own).closing

    def test_what_was_asked_for_by_name_is_missed(self) -> None:
        run = measured(SPEEDS)
        run = msgspec.structs.replace(run, cases=[*run.cases, case("y", "unavailable")])
        summary = of_workload(run, settings_of("eager", "fast", "y", asked="eager,fast y"))
        assert summary.closing.endswith("Without a result: y (unavailable).")

    def test_a_baseline_without_samples(self) -> None:
        run = measured({"fast": 0.5, "slow": 2.0})
        run = msgspec.structs.replace(run, cases=[*run.cases, case("eager", "crashed")])
        summary = summed(run)
        assert summary.baseline is None
        assert all(one.comparison is None for one in summary.rows)
        assert [one.case.id for one in summary.rows] == ["fast", "slow", "eager"]
        assert summary.closing.startswith("The baseline eager has no samples, so nothing is compared.")

    def test_nothing_at_all(self) -> None:
        assert summarize(run_of()).closing == "No case was measured."
        assert summarize(run_of(workload_of([], []))).closing == "No case was measured."
        two = workload_of([case("a", "unavailable"), case("b", "compile_failed")], [])
        assert summed(two).closing == "No case was measured: a (unavailable) and b (compile failed)."

    def test_a_run_that_failed(self) -> None:
        run = workload_of([], [], failure=Failure(stage="export", message="the model cannot be exported."))
        assert summed(run).closing == "Nothing can be compared: the model cannot be exported."

    def test_an_interrupted_run(self) -> None:
        run = run_of(measured(SPEEDS), state="interrupted")
        assert summarize(run).closing.startswith(
            "The run was interrupted; this is what had been measured by then. fast ran"
        )

    def test_agreement_is_claimed_only_of_what_was_judged(self) -> None:
        run = measured(SPEEDS)
        run = msgspec.structs.replace(run, cases=[case(one.id, judged=False) for one in run.cases])
        assert "agree" not in summed(run).closing

    def test_every_summary_survives_json(self) -> None:
        for run in (
            run_of(measured(SPEEDS)),
            run_of(measured(SPEEDS, launches=1, rounds=1)),
            run_of(workload_of([], [])),
            run_of(
                measured(SPEEDS), msgspec.structs.replace(measured(SPEEDS), key="other", dims={"batch": 8}, batch=8)
            ),
            run_of(),
        ):
            summary = summarize(run)
            assert msgspec.json.decode(msgspec.json.encode(summary), type=RunSummary) == summary
