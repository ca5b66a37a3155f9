"""harness check on stored runs: what fails, what does not, what cannot be compared, and how often it is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from msgspec.structs import replace

from harness import rounds
from harness.history import github
from harness.history.changes import MANY
from harness.history.deriving import points_of
from harness.history.diff import Side
from harness.history.gate import BUSY_SHARE, Again, Check, judge, settle
from harness.history.limits import Limits
from harness.history.location import Location
from harness.history.points import Point
from harness.history.spread import figure_change, spread
from harness.history.store import History
from tests.example_history import BOTH, a_run, failed
from tests.history.conftest import Harness, put_run

ORT = "onnxruntime"


def put(day: int, *, asked: list[str] | None = None, **fields: Any) -> str:
    """Store a run of one day, asked for the cases that it has or for others; return its id."""
    name = f"2026-03-{day:02}T00-00-00-resnet50"
    history = History(Location(path=Path(os.environ["HARNESS_STORE"])), create=True)
    ordinary: dict[str, Any] = {"created": f"2026-03-{day:02}T00:00:00Z", "seed": day}
    run = a_run(name, **(ordinary | fields))
    if asked is not None:
        cases = [name for name in asked if name != "all"] or run.settings.cases
        run = replace(run, settings=replace(run.settings, asked=asked, cases=cases))
    history.add(run)
    return name


def of_ort(**fields: Any) -> dict[str, Any]:
    return {"fields": {ORT: fields}}


def outcomes(done: Any, case: str = ORT) -> dict[str, str]:
    check = json.loads(done.stdout)
    (one,) = (one for one in check["judged"] if one["row"]["case"] == case)
    found = {"status": one["status"], **{figure["metric"]: figure["outcome"] for figure in one["figures"]}}
    return {name: outcome for name, outcome in found.items() if outcome != "pass"}


@pytest.fixture
def held(harness: Harness) -> Harness:
    """Return the command on a history of one run, which is the baseline."""
    put(1)
    assert harness("baseline", "set", "last").returncode == 0
    return harness


# ---- what fails


@pytest.mark.parametrize(
    ("worse", "expected"),
    [
        ({"cases": BOTH | {ORT: 5.5}}, {"latency": "regression"}),
        ({"cases": BOTH | {ORT: 5.1}}, {}),
        (of_ort(compile_s=4.0), {"compile": "regression"}),
        (of_ort(compile_s=2.3), {}),
        (of_ort(engine_bytes=200_000_000), {"engine": "regression"}),
        (of_ort(peak_compile_bytes=1_400_000_000), {"compile-memory": "regression"}),
        (of_ort(relative_l2=1e-3), {"drift": "regression"}),
        (of_ort(relative_l2=5e-6), {}),
        (of_ort(status="drifted"), {"status": "regression"}),
        (of_ort(status="crashed", failure=failed("run", "killed")), {"status": "regression"}),
        (of_ort(status="unavailable", failure=failed("probe", "not installed")), {"status": "regression"}),
        ({"cases": BOTH | {ORT: 4.0}}, {"latency": "improvement"}),
        (of_ort(compile_s=1.0, engine_bytes=50_000_000), {"compile": "improvement", "engine": "improvement"}),
    ],
)
def test_what_is_a_regression(worse: dict[str, Any], expected: dict[str, str], held: Harness) -> None:
    put(2, versions={ORT: "1.32.0"}, **worse)
    done = held("check", "--no-remeasure", "--json")
    assert outcomes(done) == expected
    assert outcomes(done, "eager") == {}
    assert done.returncode == (1 if "regression" in expected.values() else 0)


def test_memory_of_all_cases(held: Harness) -> None:
    put(2, peak_bytes=800_000_000)
    done = held("check", "--no-remeasure")
    assert done.returncode == 1
    assert "resnet50, onnxruntime  peak memory 1.33x (600 MB > 800 MB, limit 1.10x)" in done.stdout
    assert "by the limit alone: 1 earlier run cannot show how it varies" in done.stdout
    assert held("check", "--no-remeasure", "--max-memory", "50%").returncode == 0


def test_limits_can_be_wider_or_none(held: Harness) -> None:
    put(2, cases=BOTH | {ORT: 5.5}, fields={ORT: {"compile_s": 4.0, "relative_l2": 1e-3}})
    assert held("check", "--no-remeasure", "--json").returncode == 1
    wide = ["--max-slowdown", "15%", "--max-compile", "any", "--max-drift", "2e-3"]
    assert held("check", "--no-remeasure", *wide).returncode == 0
    narrow = outcomes(held("check", "--no-remeasure", *wide[:4], "--max-drift", "5e-4", "--json"))
    assert narrow == {"drift": "regression"}


def test_drifted_is_no_failure_where_any_drift_will_do(held: Harness) -> None:
    put(2, **of_ort(status="drifted", relative_l2=0.5))
    assert held("check", "--no-remeasure", "--max-drift", "pass", "--json").returncode == 1
    assert held("check", "--no-remeasure", "--max-drift", "any").returncode == 0


def test_limits_come_from_the_file_and_the_command_line_comes_first(held: Harness) -> None:
    put(2, cases=BOTH | {ORT: 5.5}, versions={ORT: "1.32.0"})
    Path("harness.toml").write_text('[check]\nmax-slowdown = "20%"\nagainst = "last:5"\nremeasure = 0\n')
    done = held("check")
    assert done.returncode == 0, done.stderr
    assert "latency       at most 20 % more" in done.stdout and "against last:5 (1 run)" in done.stdout
    assert held("check", "--max-slowdown", "5%").returncode == 1
    for mistake, says in (
        ("max-slowdown = 5", "harness.toml: [check] max-slowdown: '5' is neither a growth in percent such as 5%"),
        ('max-speed = "5%"', "unknown key of [check] 'max-speed'; did you mean 'max-s"),
        ('format = "html"', "harness.toml: [check] format: unknown report format 'html'"),
    ):
        Path("harness.toml").write_text(f"[check]\n{mistake}\n")
        refused = held("check")
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr


def test_what_nothing_explains_is_said_and_does_not_fail(harness: Harness) -> None:
    alone: dict[str, Any] = {"cases": {ORT: 5.0}, "baseline": ORT}
    put(1, **alone)
    put(2, **(alone | {"machine": 1.3}))
    done = harness("check", "--against", "last:1", "--no-remeasure")
    assert done.returncode == 0
    assert "moved, though nothing changed that could be to blame" in done.stdout


# ---- one value a run, and its history


def test_spread_is_blind_neither_to_noise_nor_after_a_step() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(0, 0.1, (500, 20))
    assert np.median([spread(list(row)) for row in noise]) == pytest.approx(0.1, rel=0.1)
    stepped = noise + np.where(np.arange(20) < 10, 0.0, 3.0)
    assert np.median([spread(list(row)) for row in stepped]) == pytest.approx(0.1, rel=0.2)


def compiled(seconds: float) -> Point:
    return points_of(a_run(launches=1, rounds=1, fields={ORT: {"compile_s": seconds}}))[1]


def test_noisy_compile_time_does_not_cry_wolf_and_a_steady_one_is_held_to_its_limit() -> None:
    random = np.random.default_rng(5)
    noisy = [compiled(2 * math.exp(value)) for value in random.normal(0, 0.15, 12)]
    steady = [compiled(2 * math.exp(value)) for value in random.normal(0, 0.01, 12)]
    for earlier, seconds, verdict in (
        (noisy, 2.8, "UNDECIDED"),
        (noisy, 12.0, "SLOWER"),
        (steady, 2.8, "SLOWER"),
        (steady[: MANY - 1], 2.8, "UNDECIDED"),
    ):
        found = figure_change("compile", [compiled(2.0)], [compiled(seconds)], earlier)
        assert found is not None
        assert found.verdict == verdict
        assert found.basis == ("none" if len(earlier) < MANY else "earlier runs")


def test_more_than_the_limit_and_no_more_than_usual_is_said(harness: Harness) -> None:
    for day, seconds in enumerate((2.0, 2.9, 1.8, 3.1, 2.1, 2.6, 1.9, 3.0), 1):
        put(day, **of_ort(compile_s=seconds))
    put(9, **of_ort(compile_s=3.2))
    done = harness("check", "--against", "last:8", "--no-remeasure")
    assert done.returncode == 0, done.stdout
    assert "over the limit, and no more than usual\n  resnet50, onnxruntime  compile time 1.3" in done.stdout
    assert "8 earlier runs show how it varies" in done.stdout
    assert outcomes(harness("check", "--against", "2026-03-03", "--no-remeasure", "--json")) == {}


def test_compilations_that_differ_by_little_never_fail() -> None:
    found = figure_change("compile", [compiled(0.05)], [compiled(0.14)], [])
    assert found is not None and found.ratio.value == pytest.approx(2.8)
    checked = judge(side("a", [compiled(0.05)]), side("b", [compiled(0.14)]), {}, Limits())
    assert checked.outcome == "passed"


def test_compile_time_of_reused_engines_is_said_not_to_be_compared(held: Harness) -> None:
    put(2, **of_ort(compile_s=9.0, facts={"engine_compiled_at": "2026-03-01"}))
    done = held("check", "--no-remeasure")
    assert done.returncode == 0
    assert "compile time of 1 case is not compared: an engine was taken from an earlier run" in done.stdout


# ---- measured again


def side(name: str, points: list[Point]) -> Side:
    return Side(name=name, points=[replace(point, run=name) for point in points])


def checked(now: float, again: float | None, *, quick: bool = False) -> Check:
    """Return the check of a run in which one case takes so long, measured again where that is given."""
    fields: dict[str, Any] = {"launches": 1} if quick else {}
    before = side("then", points_of(a_run(seed=1, **fields)))
    upgraded: dict[str, Any] = {"versions": {ORT: "1.32.0"}}
    after = side("now", points_of(a_run(seed=2, cases=BOTH | {ORT: now}, **upgraded, **fields)))
    first = judge(before, after, {}, Limits())
    if again is None:
        return settle(first, Again(reasons={after.points[1].series: "its export is gone"}), {})
    more = points_of(a_run("again", seed=3, cases=BOTH | {ORT: again}, **upgraded))
    return settle(first, Again(now={more[1].series: [more[1]]}), {})


def latency_of(check: Check) -> str:
    (figure,) = (one for one in check.judged[1].figures if one.metric == "latency")
    return figure.outcome


def test_verdict_is_made_on_the_joint_data() -> None:
    assert latency_of(checked(5.5, 5.5)) == "regression"
    assert latency_of(checked(5.5, 5.0)) == "unconfirmed", "half of it is within the limit"
    assert latency_of(checked(5.5, None)) == "regression", "what cannot be measured again stands"
    assert checked(5.5, None).judged[1].not_again == "its export is gone"
    assert checked(5.5, 5.5).judged[1].again == ["again"]
    assert checked(5.5, 5.5).judged[0].again == [], "eager was not suspicious"


def test_one_launch_is_decided_by_measuring_again() -> None:
    assert latency_of(checked(7.5, None, quick=True)) == "undecided"
    assert latency_of(checked(7.5, 7.5, quick=True)) == "regression"


def test_what_stays_undecided_can_be_made_to_fail(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    put(1, launches=1)
    harness("baseline", "set", "last")
    put(2, cases={"eager": 10.0, ORT: 7.5}, versions={ORT: "1.32.0"}, launches=1)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    passed = harness("check", "--no-remeasure", "--junit", "passed.xml")
    assert passed.returncode == 0 and "Nothing is worse in 2 cases, 1 case undecided." in passed.stdout
    assert passed.stderr.startswith("::warning ")
    Path("harness.toml").write_text('[check]\nundecided = "fail"\n')
    failed = harness("check", "--no-remeasure", "--junit", "failed.xml")
    assert failed.returncode == 1 and "1 case undecided, which fails here: resnet50, onnxruntime." in failed.stdout
    assert failed.stderr.startswith("::error ")
    for name, failures in (("passed.xml", "0"), ("failed.xml", "1")):
        (suite,) = ElementTree.parse(name).getroot()
        assert suite.get("failures") == failures
    put(3, cases={"eager": 10.0, ORT: 5.0}, versions={ORT: "1.32.0"})
    assert harness("check", "--no-remeasure").returncode == 0


@pytest.mark.parametrize(
    ("now", "machine", "expected"),
    [
        (5.35, 1.0, "undecided"),  # its interval reaches below the limit
        (7.0, 1.0, "regression"),
        (7.0, 0.7, "undecided"),  # the other case became faster, and it did not become slower
    ],
)
def test_busy_machine_explains_more(now: float, machine: float, expected: str) -> None:
    def of(run: str, others: float, **fields: Any) -> Side:
        made = points_of(a_run(run, process_sd=0.02, **fields))
        return Side(name=run, points=[replace(point, others_cpu=others) for point in made])

    assert BUSY_SHARE == rounds.BUSY_SHARE
    after = {"seed": 2, "cases": BOTH | {ORT: now}, "machine": machine, "versions": {ORT: "1.32.0"}}
    for share, outcome in ((0.2, "regression"), (0.5, expected)):
        check = settle(judge(of("then", 0.1, seed=1), of("now", share, **after), {}, Limits()), Again(), {})
        assert latency_of(check) == outcome
        assert check.judged[1].figures[0].busy == (share > BUSY_SHARE)


def test_single_values_must_be_worse_each_time() -> None:
    before, slow, fine = side("then", [compiled(2.0)]), side("now", [compiled(3.0)]), compiled(2.1)
    first = judge(before, slow, {}, Limits())
    assert [one.row.case for one in first.suspects] == [ORT]
    assert settle(first, Again(now={fine.series: [fine]}), {}).outcome == "passed"
    assert settle(first, Again(now={fine.series: [compiled(2.9)]}), {}).outcome == "failed"


def test_runs_of_other_software_are_not_measured_again(held: Harness) -> None:
    put(2, cases=BOTH | {ORT: 5.5}, versions={ORT: "1.32.0"})
    done = held("check")
    assert done.returncode == 1
    assert "not measured again: it was measured with other software or hardware than is here now: cpu" in done.stdout


# ---- what cannot be compared


def test_missing_cases_fail_and_new_ones_are_said(held: Harness) -> None:
    put(2, cases={"eager": 10.0, "tvm": 7.0}, asked=["eager", ORT, "tvm"])
    done = held("check", "--no-remeasure")
    assert done.returncode == 1
    assert "resnet50, onnxruntime  missing: it was in 2026-03-01T00-00-00-resnet50" in done.stdout
    assert "resnet50, tvm  only in 2026-03-02T00-00-00-resnet50" in done.stdout
    assert held("check", "--against", "last:3", "--no-remeasure").returncode == 1
    assert held("check", "--against", "last~1", "--no-remeasure").returncode == 1


@pytest.mark.parametrize("against", ["baseline", "last:3", "last~1"])
def test_what_was_taken_out_on_purpose_is_said_and_does_not_fail(held: Harness, against: str) -> None:
    put(2, cases={"eager": 10.0})
    done = held("check", "--against", against, "--format", "terminal,junit=check.xml")
    assert done.returncode == 0
    assert f"resnet50, onnxruntime  only in {against}, and not asked for in this run" in done.stdout
    (skipped,) = ElementTree.parse("check.xml").getroot().findall(".//skipped")
    assert skipped.get("message") == f"not compared: only in {against}, and not asked for in this run"


def test_a_backend_that_is_gone_is_missing_where_all_were_asked_for(harness: Harness) -> None:
    put(1, cases=BOTH | {"mine": 7.0, "mine:fast=true": 6.0})
    harness("baseline", "set", "last")
    put(2, asked=["all"])
    done = harness("check")
    assert done.returncode == 1
    assert "resnet50, mine  missing" in done.stdout
    assert "resnet50, mine:fast=true  only in baseline, and not asked for in this run" in done.stdout


def test_a_workload_that_an_interrupted_run_did_not_get_to_is_missing(held: Harness) -> None:
    put(2, model="bert-base")
    held("baseline", "set", "last")
    run = a_run("3", created="2026-03-03T00:00:00Z")
    (of_bert,) = a_run(model="bert-base").workloads
    later = replace(of_bert, cases=[], launches=[])
    History(Location(path=Path(os.environ["HARNESS_STORE"]))).add(replace(run, workloads=[*run.workloads, later]))
    done = held("check", "--no-remeasure")
    assert done.returncode == 1
    assert "bert-base, onnxruntime  missing" in done.stdout and "2 regressions in 2 cases" in done.stdout


def test_a_baseline_with_other_threads_is_not_missed_once_there_is_a_newer_one(held: Harness) -> None:
    four = {"eager": {"threads": 4}, ORT: {"threads": 4}}
    put(2, fields=four)
    held("baseline", "set", "last")
    put(3, fields=four)
    done = held("check", "--no-remeasure")
    assert done.returncode == 0 and "missing" not in done.stdout


def test_other_models_of_the_baseline_are_not_missed(held: Harness) -> None:
    put(2, model="bert-base")
    held("baseline", "set", "last")
    put(3)
    assert held("check", "--no-remeasure").returncode == 0


def test_nothing_compared_is_never_green(held: Harness) -> None:
    four = {"threads": 4}
    put(2, fields={"eager": four, ORT: four})
    for against in ("baseline", "last:5", "last~1"):
        done = held("check", "--against", against, "--format", "terminal,junit=check.xml")
        assert done.returncode == 2
        assert "NOT COMPARABLE  Nothing could be compared" in done.stdout
        assert "; resnet50, eager: threads: 2 > 4.\n" in done.stdout
        assert "resnet50, onnxruntime  threads: 2 > 4" in done.stdout
        assert ElementTree.parse("check.xml").getroot().findall(".//error")


def test_some_that_cannot_be_compared_are_listed(held: Harness) -> None:
    put(2, **of_ort(threads=4))
    done = held("check", "--no-remeasure")
    assert done.returncode == 0
    assert "not compared\n  resnet50, onnxruntime  threads: 2 > 4" in done.stdout
    assert "in 1 case." in done.stdout


def test_run_files_need_no_history(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STORE", "none")
    one = put_run(a_run("one", seed=1))
    put_run(a_run("two", seed=2, cases=BOTH | {ORT: 5.5}, versions={ORT: "1.32.0"}))
    done = harness("check", "two", "--against", str(one), "--no-remeasure")
    assert done.returncode == 1, done.stderr
    assert "resnet50, onnxruntime  latency 1.1" in done.stdout
    assert harness("check", "two", "--no-remeasure").returncode == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("check", ["2026-03-01T00-00-00-resnet50 is the baseline itself"]),
        ("check --against last", ["is the run itself", "--against last~1"]),
        ("check --against last:0", ["a number from 1 to 30 is wanted"]),
        ("check --against last:3", ["there is no run before 2026-03-01T00-00-00-resnet50"]),
        ("check --against weekly", ["'weekly' is neither a run, nor a label, nor BACKEND@VERSION"]),
        ("check nightly", ["'nightly' is neither a run"]),
        ("check --max-slowdown 5", ["'5' is neither a growth in percent such as 5%, nor: any"]),
        ("check --max-drift 0.5x", ["'0.5x' is none of", "10x"]),
        ("check --remeasure 2 --no-remeasure", ["--remeasure and --no-remeasure contradict"]),
        ("check --format html", ["unknown report format 'html'", "junit"]),
        ("check --junit nowhere/check.xml", ["there is no folder"]),
        ("check --json --format junit", ["--json and --format contradict"]),
    ],
)
def test_wrong_usage(words: str, parts: list[str], held: Harness) -> None:
    done = held(*words.split())
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_without_a_baseline(harness: Harness) -> None:
    put(1)
    done = harness("check")
    assert done.returncode == 2
    assert "no case of resnet50 has a baseline" in done.stderr and "harness baseline set RUN" in done.stderr


# ---- reports


def test_junit_has_a_failing_test_a_regression(held: Harness) -> None:
    put(2, cases={"eager": 10.0, ORT: 5.5}, versions={ORT: "1.32.0"}, fields={ORT: {"compile_s": 4.0}})
    assert held("check", "--no-remeasure", "--junit", "check.xml", "--json").returncode == 1
    (suite,) = ElementTree.parse("check.xml").getroot()
    failing = {case.get("name"): case for case in suite if case.find("failure") is not None}
    assert suite.get("failures") == "2" and int(suite.get("tests", "0")) == len(suite) > 8
    assert set(failing) == {"latency", "compile time"}
    assert failing["latency"].get("classname") == "harness.resnet50.onnxruntime"
    assert "limit 1.05x" in str(failing["latency"].find("failure").get("message"))  # type: ignore[union-attr]


def test_workflow_is_told(held: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    put(2, cases={"eager": 10.0, ORT: 5.5}, versions={ORT: "1.32.0"})
    Path("summary.md").write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    assert "::" not in held("check", "--no-remeasure").stderr
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = held("check", "--no-remeasure", "--json")
    assert json.loads(done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith("::error title=harness%3A resnet50%2C onnxruntime::latency 1.1")
    summary = Path("summary.md").read_text()
    assert summary.startswith("earlier\n## check: 2026-03-02") and summary.count("## check") == 2
    assert "| **regression** |" in summary
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "no/such/folder")
    assert "warning: GITHUB_STEP_SUMMARY: no/such/folder cannot be written" in held("check", "--no-remeasure").stderr


def test_workflow_commands_are_escaped() -> None:
    assert github.command("warning", "a: b, c 5%", "1\r\n2: 3, 50%") == (
        "::warning title=a%3A b%2C c 5%25::1%0D%0A2: 3, 50%25"
    )


def test_summaries_are_cut_to_what_is_shown() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    assert github.fitting(text, 1 << 20) == text.encode()
    cut = github.fitting(text, 2000)
    assert len(cut) <= 2000
    assert cut.decode().endswith(github.CUT)
    assert cut.decode().removesuffix(github.CUT).endswith("\n")
    assert github.fitting(text, 3) == b""


# ---- how often it is wrong


def pair(random: np.random.Generator, slowed: float = 1.0) -> Check:
    """Return a check, settled by measuring again, of runs that differ in the machine's mood and in noise alone."""

    def run(name: str, factor: float, version: str) -> list[Point]:
        cases = {"eager": 10.0, ORT: 5.0 * factor, f"{ORT}:level=basic": 6.0}
        fields = {
            case: {
                "compile_s": 2 * math.exp(random.normal(0, 0.05)),
                "peak_compile_bytes": int(7e8 * math.exp(random.normal(0, 0.02))),
            }
            for case in cases
        }
        made = a_run(
            name,
            cases=cases,
            fields=fields,
            versions={ORT: version},
            machine=math.exp(random.normal(0, 0.1)),
            peak_bytes=int(6e8 * math.exp(random.normal(0, 0.02))),
            seed=int(random.integers(1 << 31)),
            process_sd=0.005,
            rounds=2,
        )
        return points_of(made)

    first = judge(side("then", run("then", 1.0, "1.31.0")), side("now", run("now", slowed, "1.32.0")), {}, Limits())
    if not first.suspects:
        return first
    suspected = {one.row.after.series for one in first.suspects}
    return settle(
        first, Again(now={one.series: [one] for one in run("again", slowed, "1.32.0") if one.series in suspected}), {}
    )


def test_clean_pairs_hardly_ever_fail_and_ten_percent_hardly_ever_passes() -> None:
    random = np.random.default_rng(17)
    assert sum(pair(random).outcome == "failed" for _ in range(200)) <= 2
    assert sum(pair(random, 1.10).outcome == "failed" for _ in range(30)) >= 27
