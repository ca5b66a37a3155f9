"""What two cases of a run differ by, figure by figure, on runs whose truth is known."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import pytest

from harness.bisect.cli import FIGURES
from harness.bisect.pairs import BEYOND, Change, Figure, change_of
from harness.history.points import Metric
from harness.records import REUSED, Run
from tests.example_history import a_run, failed

BEFORE, AFTER = "onnxruntime@1.0", "onnxruntime@2.0"


def pair(before: float = 10.0, after: float = 11.0, **more: Any) -> Run:
    return a_run(cases={BEFORE: before, AFTER: after}, baseline=BEFORE, **more)


def change(figure: Figure, *runs: Run) -> Change:
    return change_of(list(runs), BEFORE, AFTER, figure)


def with_peaks(run: Run, peaks: dict[str, list[int]]) -> Run:
    """Return the run with these peaks of memory, a case's one a launch."""
    workload = run.workloads[0]
    launches = [
        msgspec.structs.replace(
            launch,
            sittings=[
                msgspec.structs.replace(
                    one, peak_bytes=peaks[one.case.partition("~")[0]][index % len(peaks[one.case.partition("~")[0]])]
                )
                for one in launch.sittings
            ],
        )
        for index, launch in enumerate(workload.launches)
    ]
    return msgspec.structs.replace(run, workloads=[msgspec.structs.replace(workload, launches=launches)])


def test_all_figures_of_the_history_and_whether_it_works() -> None:
    assert (*get_args(Metric), "status") == FIGURES


def test_latency_is_what_the_comparison_says() -> None:
    found = change("latency", pair(10.0, 11.0))
    assert found.change == pytest.approx(math.log(1.1), abs=0.01)
    assert found.half_width is not None
    assert 0 < found.half_width < 0.03
    assert found.values == 5
    assert found.before == pytest.approx(10e6, rel=0.03)
    assert found.after == pytest.approx(11e6, rel=0.03)


def test_latency_against_what_is_not_the_baseline_of_the_run() -> None:
    run = a_run(cases={AFTER: 11.0, BEFORE: 10.0}, baseline=AFTER)
    assert change("latency", run).change == pytest.approx(math.log(1.1), abs=0.01)


def test_one_launch_has_no_interval() -> None:
    found = change("latency", pair(launches=1))
    assert found.change is not None
    assert found.half_width is None


def test_memory_is_paired_by_launch() -> None:
    # Both take more in the second launch: the pairs say that the ratio hardly moves.
    peaks = {BEFORE: [100, 200, 100, 200, 100], AFTER: [111, 220, 110, 221, 110]}
    found = change("memory", with_peaks(pair(), peaks))
    logs = [math.log(after / before) for before, after in zip(peaks[BEFORE], peaks[AFTER], strict=True)]
    mean = sum(logs) / 5
    deviation = math.sqrt(sum((one - mean) ** 2 for one in logs) / 4)
    assert found.change == pytest.approx(mean)
    assert found.half_width == pytest.approx(4.6040949 * deviation / math.sqrt(5))  # t of 4 at 99.5 %
    assert found.values == 5


def test_compile_time_is_paired_by_run() -> None:
    seconds = [(2.0, 2.2), (4.0, 4.5), (2.0, 2.2)]
    runs = [
        pair(fields={BEFORE: {"compile_s": before}, AFTER: {"compile_s": after}}, launches=1)
        for before, after in seconds
    ]
    found = change("compile", *runs)
    logs = [math.log(after / before) for before, after in seconds]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((one - mean) ** 2 for one in logs) / 2)
    assert found.change == pytest.approx(mean)
    assert found.half_width == pytest.approx(9.9248432 * deviation / math.sqrt(3))  # t of 2 at 99.5 %
    assert (found.before, found.after, found.values) == (2.0, 2.2, 3)


def test_compile_time_of_an_engine_that_was_there_is_none() -> None:
    found = change("compile", pair(fields={BEFORE: {"facts": {REUSED: "2026-03-01"}}}))
    assert (found.before, found.change) == (None, None)


def test_sizes_and_drift_do_not_vary() -> None:
    run = pair(fields={BEFORE: {"engine_bytes": 100, "relative_l2": 1e-6}, AFTER: {"engine_bytes": 150}})
    engine = change("engine", run)
    assert (engine.before, engine.after, engine.half_width) == (100, 150, 0.0)
    assert engine.change == pytest.approx(math.log(1.5))
    assert change("drift", run).change == pytest.approx(math.log(1.2))


def test_from_nothing_to_something() -> None:
    run = pair(fields={BEFORE: {"relative_l2": 0.0}, AFTER: {"relative_l2": 1e-3}})
    assert change("drift", run).change == BEYOND
    same = pair(fields={BEFORE: {"relative_l2": 0.0}, AFTER: {"relative_l2": 0.0}})
    assert change("drift", same).change == 0.0


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [(("ok", "ok"), 0.0), (("ok", "crashed"), BEYOND), (("crashed", "ok"), -BEYOND), (("timeout", "crashed"), 0.0)],
)
def test_status(statuses: tuple[str, str], expected: float) -> None:
    fields = {
        case: {"status": status, "failure": None if status == "ok" else failed(message="it died\nat 0x0")}
        for case, status in zip((BEFORE, AFTER), statuses, strict=True)
    }
    found = change("status", pair(fields=fields))
    assert found.change == expected
    assert found.statuses == statuses
    assert found.failures[1] == ("" if statuses[1] == "ok" else "compile: it died")


def test_a_change_survives_being_remembered() -> None:
    found = change("status", pair(fields={AFTER: {"status": "crashed", "failure": failed()}}))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Change) == found
