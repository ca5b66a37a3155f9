"""Measuring suspicious cases again: which, of which runs, how often, and why not. It is done for real elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from harness.history import again
from harness.history.again import Remeasuring
from harness.history.deriving import points_of
from harness.history.diff import Side
from harness.history.gate import Check, Judged, judge
from harness.history.limits import Limits
from harness.history.points import Point
from harness.progress import Narrator
from harness.records import Environment, Run, Workload
from tests.example_history import BOTH, a_run

ORT = "onnxruntime"
RUNS = {
    "then": a_run("then", seed=1),
    "now": a_run("now", seed=2, cases=BOTH | {ORT: 6.0}, versions={ORT: "1.32.0"}),
}


class Noting(Remeasuring):
    """Notes what it would measure, and answers with a run of that kind."""

    asked: list[tuple[str, str, list[str]]]

    def _measured(
        self, run: Run, workload: Workload, here: Environment, suspects: Sequence[Judged], points: Mapping[str, Point]
    ) -> list[Point]:
        self.asked.append((run.id, workload.key, [points[one.row.after.series].case for one in suspects]))
        return points_of(replace(run, id=f"again-{len(self.asked)}"))


@pytest.fixture
def remeasuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Noting:
    monkeypatch.setattr(again, "_impossible", lambda *_: "")
    made = Noting(RUNS.__getitem__, tmp_path, None, Narrator(quiet=True))
    made.asked = []
    return made


def checked(**then: Any) -> Check:
    before = [replace(point, **then) for point in points_of(RUNS["then"])]
    return judge(Side(name="then", points=before), Side(name="now", points=points_of(RUNS["now"])), {}, Limits())


def test_only_what_is_suspicious_is_measured_and_as_often_as_asked(remeasuring: Noting) -> None:
    check = checked()
    found = remeasuring.measure(check, [], 2)
    assert remeasuring.asked == [("now", "resnet50", [ORT])] * 2
    (series,) = (one.row.after.series for one in check.suspects)
    assert [point.run for point in found.now[series]] == ["again-1", "again-2"]
    assert not found.then and not found.reasons


def test_what_was_measured_before_counts(remeasuring: Noting) -> None:
    check = checked()
    found = remeasuring.measure(check, [check.suspects[0].row.after], 2)
    assert len(remeasuring.asked) == 1
    assert remeasuring.measure(check, [], 1) is found
    assert len(remeasuring.asked) == 1


def test_baseline_is_measured_again_where_it_is_another_thing_to_measure(remeasuring: Noting) -> None:
    circumstances = replace(points_of(RUNS["then"])[1].circumstances, artifact="another export")
    found = remeasuring.measure(checked(circumstances=circumstances), [], 1)
    assert remeasuring.asked == [("now", "resnet50", [ORT]), ("then", "resnet50", [ORT])]
    assert [point.run for (point,) in found.then.values()] == ["again-2"]


def test_no_result_ends_it(remeasuring: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "_measured", lambda *_: [])
    check = checked()
    found = remeasuring.measure(check, [], 3)
    assert list(found.reasons.values()) == ["it gave no result"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": {"lock_clocks": 1500}}, "its clocks were held"),
        (
            {"environment": {"libraries": {"torch": "2.12.0"}}},
            "than is here now: torch 2.12.0 > 2.13.0",
        ),
        ({}, "its export is no longer in the cache"),
    ],
)
def test_reasons(changes: dict[str, dict[str, Any]], says: str) -> None:
    run = RUNS["now"]
    here = run.environment
    run = replace(run, **{name: replace(getattr(run, name), **fields) for name, fields in changes.items()})
    assert says in again._impossible(run, run.workloads[0], here, points_of(run))


def test_what_is_not_here_is_not_tried() -> None:
    points = [replace(point, status="unavailable") for point in points_of(RUNS["now"])]
    assert again._impossible(RUNS["now"], RUNS["now"].workloads[0], RUNS["now"].environment, points) == (
        "it is unavailable here"
    )


def test_run_to_be_is_one_workload_with_its_baseline_and_enough_launches() -> None:
    asked = ["eager", f"{ORT}:level=basic", ORT, ORT]
    cases = {"eager": 10.0, f"{ORT}:level=basic": 6.0, ORT: 5.0, f"{ORT}#2": 5.0}
    run = a_run("quick", launches=1, cases=cases)
    run = replace(run, settings=replace(run.settings, asked=asked, budget_s=60.0))
    variants = again._variants(run, run.workloads[0], {ORT})
    assert [variant.id for variant in variants] == ["eager", ORT, f"{ORT}#2"]
    made = again._blank(run, run.workloads[0], run.environment, variants, "again", cold=True)
    settings = made.settings
    assert (settings.launches, settings.quick, settings.cold, settings.budget_s) == (again.LAUNCHES, False, True, 60.0)
    assert settings.asked == ["eager", ORT, ORT], "it can be resumed"
    assert made.command == "harness check quick"
    assert made.workloads[0].cases == [] and made.workloads[0].baseline == "eager"


def test_what_cannot_be_written_leaves_the_verdict_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    run = RUNS["now"]
    made = Remeasuring(RUNS.__getitem__, tmp_path / "file", None, Narrator(quiet=True))
    suspects = checked().suspects
    points = {one.row.after.series: one.row.after for one in suspects}
    assert made._measured(run, run.workloads[0], run.environment, suspects, points) == []
    (note,) = made.measure(replace(checked(), judged=[]), [], 1).notes
    assert note.startswith("measuring resnet50 again ended with: ")
