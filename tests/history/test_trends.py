"""harness trends: known regressions, replayed, are found and named; noise and single bad runs are not."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.trends import series
from harness.history import queries
from harness.history.deriving import points_of
from harness.history.location import Location
from harness.history.points import METRICS, Metric, Point
from harness.history.steps import HOLD, LEAST_RUNS, Shift, find_steps
from harness.history.store import History
from harness.history.trends import Step, Trends, find_trends
from reports.tracking import trends
from tests.example_history import BOTH, a_run, failed
from tests.history.conftest import Harness

LEAST = 0.02
UPGRADE = 9
"""The first day of the new version."""


def found(logs: Sequence[float], least: float = LEAST) -> list[Shift]:
    return find_steps(logs, least=least)


def levels(*parts: tuple[int, float], noise: float = 0.01, seed: int = 1) -> list[float]:
    """Return the logs of so many runs at each level."""
    values = np.concatenate([np.full(count, math.log(level)) for count, level in parts])
    return list(values + np.random.default_rng(seed).normal(0, noise, len(values)))


# ---- steps in numbers


def test_every_step_is_found_at_its_place_with_its_size() -> None:
    one, two = found(levels((10, 1.0), (8, 1.25), (7, 1.1)))
    assert (one.at, one.start, one.end, two.at, two.end) == (10, 0, 18, 18, 25)
    for shift, ratio in ((one, 1.25), (two, 1.1 / 1.25)):
        assert abs(shift.after - shift.before - math.log(ratio)) < shift.half_width < 0.03


def test_a_step_must_hold_for_three_runs() -> None:
    for after in range(1, 7):
        assert [shift.at for shift in found(levels((12, 1.0), (after, 1.25)))] == ([12] if after >= HOLD else [])
    assert found(levels((12, 1.0), (2, 1.5), (12, 1.0))) == []


def test_one_run_on_the_old_level_does_not_prove_a_step() -> None:
    logs = levels((12, 1.0), (4, 2.0))
    logs[13] = logs[14] = logs[0]
    assert found(logs) == [], "two runs of four stand out"


@pytest.mark.parametrize(("ratio", "count"), [(1.015, 0), (1.03, 1), (0.97, 1), (0.985, 0)])
def test_less_than_the_smallest_effect_is_no_step(ratio: float, count: int) -> None:
    assert len(found(levels((20, 1.0), (20, ratio), noise=0.001))) == count


def test_figures_without_noise() -> None:
    assert found([math.log(100e6)] * 20) == []
    (step,) = found([math.log(100e6)] * 3 + [math.log(110e6)] * 3)
    assert (step.at, round(math.exp(step.after - step.before), 6)) == (3, 1.1)


def test_few_runs_say_nothing() -> None:
    assert found([0.0] * 2 + [1.0] * 3) == []
    assert LEAST_RUNS == 6


# ---- replays


def measured(logs: Sequence[float], metric: Metric = "latency") -> list[Point]:
    """Return the points of a case whose figure is e to these logs."""
    (one,) = (point for point in points_of(a_run(launches=1, rounds=1)) if point.case == "onnxruntime")
    fields = {"latency": "latency_ns", "memory": "memory_bytes", "drift": "drift"}
    return [
        replace(one, run=f"run-{day:03}", created=f"2026-{day:03}", evidence=None, **{fields[metric]: math.exp(value)})
        for day, value in enumerate(logs)
    ]


def steps_of(found: Trends) -> list[Step]:
    return [step for trend in found.trends for step in trend.steps]


@pytest.mark.parametrize(("step", "times"), [(2.7, 20), (1.25, 20), (1.05, 40), (1 / 1.05, 40)])
def test_steps_in_two_percent_of_noise_with_spikes_alert(step: float, times: int) -> None:
    random = np.random.default_rng(3)
    for _ in range(times):
        logs = series(random, 60, step=step, at=30)
        (trend,) = find_trends([measured(logs)], ["latency"]).trends
        assert {one.direction for one in trend.steps} == {"worse" if step > 1 else "better"}
        assert trend.regressed == (step > 1)
        assert any(abs(one.ratio.value - step) < 0.02 * step for one in trend.steps)
        assert trend.noise == pytest.approx(0.02, abs=0.015)


def test_clean_series_with_spikes_alert_in_at_most_two_of_200() -> None:
    random = np.random.default_rng(17)
    cases = [measured(series(random, 40)) for _ in range(200)]
    assert sum(max(point.latency_ns or 0 for point in case) > 1.05 for case in cases) > 150, "they do hold spikes"
    assert sum(bool(trend.steps) for trend in find_trends(cases, ["latency"]).trends) <= 2


def test_drift_wants_more_and_rounding_is_none() -> None:
    def of(*values: float) -> list[Step]:
        logs = [math.log(value) for value in values for _ in range(6)]
        return steps_of(find_trends([measured(logs, "drift")], ["drift"]))

    assert of(1.2e-6, 1.3e-6) == of(1e-9, 8e-8) == []
    assert [step.direction for step in of(1.2e-6, 4e-4)] == ["worse"]


def test_newest_step_decides() -> None:
    def regressed(*parts: tuple[int, float]) -> bool:
        return find_trends([measured(levels(*parts))], ["latency"]).trends[0].regressed

    assert regressed((8, 1.0), (8, 1.3))
    assert regressed((8, 1.3), (8, 1.0), (8, 1.2))
    assert not regressed((8, 1.0), (8, 1.3), (8, 1.0))
    assert not regressed((20, 1.0))


def test_another_model_of_the_same_name_is_left_out() -> None:
    points = measured(levels((10, 1.0), (10, 2.0)))
    earlier = [replace(point, subject=replace(point.subject, parameters="7")) for point in points[:10]]
    told = find_trends([[*earlier, *points[10:]]], ["latency"])
    assert (steps_of(told), len(told.trends[0].values), told.other_models) == ([], 10, ["resnet50, onnxruntime"])


def test_series_of_one_name_are_told_apart() -> None:
    one = measured(levels((10, 1.0), (10, 2.0)))
    key = replace(one[0].key, threads="8")
    other = [replace(point, key=key, series=key.series) for point in one]
    assert [trend.title for trend in find_trends([one], ["latency"]).trends] == ["resnet50, onnxruntime"]
    page = trends(find_trends([one, other], ["latency"]), format_="terminal")
    assert "2 steps in 2 figures of 2 cases" in page
    assert "resnet50, onnxruntime (threads 2)" in page and "resnet50, onnxruntime (threads 8)" in page


def test_load_and_clock_of_the_machine_are_told_where_they_moved() -> None:
    points = measured(levels((8, 1.0), (8, 1.3)))
    loaded = [
        replace(point, others_cpu=0.31 if day >= 8 else 0.02, mhz=2100.0 if day >= 8 else 3000.0)
        for day, point in enumerate(points)
    ]
    (step,) = steps_of(find_trends([loaded], ["latency"]))
    assert step.changed == {"CPU taken by others": ("2%", "31%"), "CPU clock": ("3000 MHz", "2100 MHz")}
    steady = [replace(point, others_cpu=0.02, mhz=3000.0) for point in points]
    assert steps_of(find_trends([steady], ["latency"]))[0].changed == {}


# ---- the command


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history in which onnxruntime is upgraded: 2.7 times slower, 3.7 times the memory."""
    path = tmp_path_factory.mktemp("upgrade") / "history.sqlite"
    history = History(Location(path=path), create=True)
    for day in range(1, 17):
        put(history, day, later=day >= UPGRADE)
    return path


def put(history: History, day: int, *, later: bool, **fields: Any) -> None:
    libraries = {"torch": "2.13.0", "onnxruntime": "1.32.0" if later else "1.31.0"}
    random = np.random.default_rng(day)
    ordinary: dict[str, Any] = {
        "cases": BOTH | {"onnxruntime": 13.5 if later else 5.0},
        "versions": libraries,
        "environment": {"libraries": libraries},
        "peak_bytes": int(600_000_000 * (3.7 if later else 1.0) * (1 + random.normal(0, 0.01))),
        "machine": math.exp(random.normal(0, 0.02)) * (1.5 if day == 5 else 1.0),
        "seed": day,
        "launches": 2,
        "rounds": 2,
    }
    run = a_run(f"2026-03-{day:02}T00-00-00-resnet50", created=f"2026-03-{day:02}T00:00:00Z", **(ordinary | fields))
    history.add(run)


@pytest.fixture
def upgraded(harness: Harness, upgrade: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Return the command on that history."""
    monkeypatch.setenv("HARNESS_STORE", str(upgrade))
    return harness


def test_upgrade_is_named_with_its_steps(upgraded: Harness) -> None:
    done = upgraded("trends", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trends: 2 steps in 6 figures of 1 case\n")
    assert re.search(r"resnet50, onnxruntime: latency 2\.[67]\dx slower since 2026-03-09\.", done.stdout)
    assert re.search(r"resnet50, onnxruntime: peak memory 3\.[67]\dx more since 2026-03-09\.", done.stdout)
    told = done.stdout.partition("what changed\n")[2]
    assert "2026-03-09  onnxruntime 1.31.0 > 1.32.0 (" in told
    assert "harness diff 2026-03-08T00-00-00-resnet50 2026-03-09T00-00-00-resnet50" in told
    assert done.stdout.count("o resnet50, onnxruntime") == 2, "a plot each"


def test_json_holds_the_same(upgraded: Harness) -> None:
    done = upgraded("trends", "--backend", "onnxruntime", "--metric", "latency", "--format", "json")
    (trend,) = json.loads(done.stdout)["trends"]
    (step,) = trend["steps"]
    assert (trend["metric"], len(trend["values"]), step["runs"]) == ("latency", 16, [8, 8])
    assert step["ratio"]["low"] < 2.7 < step["ratio"]["high"]
    assert (step["direction"], step["through"]["other"]) == ("worse", "eager")
    assert step["changed"] == {name: ["1.31.0", "1.32.0"] for name in ("version", "onnxruntime")}


def test_the_machine_is_told_from_the_case(upgraded: Harness, tmp_path: Path) -> None:
    history = History(Location(path=tmp_path / "moody.sqlite"), create=True)
    for day in range(1, 13):
        put(history, day, later=True, machine=1.4 if day > 6 else 1.0)
    done = upgraded("trends", "--metric", "latency", "--store", str(tmp_path / "moody.sqlite"), "--fail-on-regression")
    assert done.returncode == 0, done.stdout
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("The machine moved, not the case: "))
    assert "resnet50, eager" in said and "resnet50, onnxruntime" in said
    assert "nothing that runs record" in done.stdout


def test_exit_code_where_that_is_asked_for(upgraded: Harness) -> None:
    assert upgraded("trends", "--fail-on-regression").returncode == 1
    assert upgraded("trends", "--fail-on-regression", "--since", "2026-03-09").returncode == 1
    calm = upgraded("trends", "--fail-on-regression", "--since", "2026-03-10")
    assert (calm.returncode, calm.stdout.count("No figure moved.")) == (0, 1)
    assert upgraded("trends", "--fail-on-regression", "--metric", "engine").returncode == 0
    assert upgraded("trends", "--fail-on-regression", "--last", "8").returncode == 0, "all of the new version"


def test_too_little_history_is_said(upgraded: Harness) -> None:
    done = upgraded("trends", "--last", "5", "--format", "markdown", "--fail-on-regression")
    assert done.returncode == 0, done.stderr
    assert "TOO LITTLE HISTORY" in done.stdout and "no figure has 6 runs yet" in done.stdout
    assert "latency 5, compile 5, memory 5" in done.stdout


def test_cases_are_found_in_every_kind_of_database(location: Location) -> None:
    history = History(location, create=True)
    for day in (1, 2, 3):
        put(history, day, later=False)
    put(history, 4, later=False, command=f"{queries.AGAIN}some-run")
    put(history, 5, later=False, fields={"onnxruntime": {"status": "crashed", "failure": failed()}})
    with history.database.read() as connection:
        every = queries.series(connection, queries.Filter())
        (one,) = queries.series(connection, queries.Filter(model="res*", backend="onnxruntime", device="cpu"))
        days = [int(point.created[8:10]) for point in queries.newest_of_series(connection, one, 3)]
        assert queries.series(connection, queries.Filter(backend="tvm")) == []
    assert len(every) == 2 and one in every
    assert days == [2, 3, 5], "what was measured again for a gate was chosen by its result"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--model resnet", "unknown model in the history 'resnet'; did you mean 'resnet50'?"),
        ("--backend tvm", "unknown backend in the history 'tvm'"),
        ("--metric speed", "'speed' is not one of"),
        ("--since monday", "'monday' is neither a day"),
        ("--last 0", "'--last'"),
        ("--min-effect 200%", "is more than all"),
        ("--store none", "switched off with 'none'"),
        ("--store nowhere.sqlite", "there is no history in"),
    ],
)
def test_wrong_usage(words: str, part: str, upgraded: Harness) -> None:
    done = upgraded("trends", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr and done.stderr.count("error: ") == 1
    assert not os.path.exists("nowhere.sqlite")


def test_every_figure_has_its_words() -> None:
    from reports.steps import WORDS

    assert tuple(WORDS) == METRICS
