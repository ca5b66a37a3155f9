"""One crash takes no other row along: every fault in one run, then a look at what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.artifact import Artifact
from harness.surroundings import MARK
from tests.fake_names import EXPECTED
from tests.support import PLUGINS, RUN_CLI, Cli, rows_of


def survivors() -> list[psutil.Process]:
    """Return processes that a worker of these tests started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            ours = MARK in variables and variables.get("HARNESS_CACHE") == os.environ["HARNESS_CACHE"]
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def ruined(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run one comparison in which every backend but two misbehaves."""
    folder = tmp_path_factory.mktemp("ruined")
    command = [
        sys.executable, str(RUN_CLI), "compare", "--model", "tiny", "--baseline", "fake-ok",
        "--backends", ",".join(["fake-ok", "fake-ok:ms=2", *EXPECTED]),
        "--quick", "--timeout", "15", "--memory-limit", "1.5", "--json", "--out", str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done, folder


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the JSON table's rows by case id."""
    return {row["id"]: row for row in rows_of(done)}


def test_every_case_has_a_row(ruined: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert set(rows(ruined[0])) == {"fake-ok", "fake-ok:ms=2.0", *EXPECTED}


@pytest.mark.parametrize("case", EXPECTED)
def test_fault_has_its_status_and_reason(case: str, ruined: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    row = rows(ruined[0])[case]
    status, stage, reason = EXPECTED[case]
    assert row["status"] == status, row
    if status == "ok":
        return
    failure = row["failure"]
    assert failure["stage"] == stage
    assert reason in failure["message"]
    assert row["reproduce"] == f"harness compare --model tiny --backends {case} --timeout 15 --memory-limit 1.5"
    assert "Traceback" not in failure["message"]


def test_the_sound_cases_are_complete(ruined: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    for case in ("fake-ok", "fake-ok:ms=2.0"):
        row = rows(ruined[0])[case]
        assert row["status"] == "ok"
        assert row["compute"]["p50_ns"]["value"] > 0


def test_exit_code_and_no_traceback(ruined: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert ruined[0].returncode == 3
    assert "Traceback" not in ruined[0].stderr


def test_nothing_is_left_running(ruined: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert ruined[0].returncode == 3
    deadline = time.monotonic() + 60
    while (left := survivors()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_run_file_is_complete(ruined: tuple[subprocess.CompletedProcess[str], Path], cli: Cli) -> None:
    done = cli("show", "last", "--out", str(ruined[1]), "--json")
    assert done.returncode == 0, done.stderr
    assert rows(done).keys() == rows(ruined[0]).keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_finished_and_resume_completes_it(
    number: signal.Signals, tiny: Artifact, tmp_path: Path, cache: Path, cli: Cli
) -> None:
    command = [
        sys.executable, str(RUN_CLI), "compare", "--model", "tiny", "--backends",
        "fake-ok,fake-ok:ms=2", "--baseline", "fake-ok", "--launches", "3", "--json", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    run_file = _wait_for_launches(tmp_path / "out", 1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    table = json.loads(stdout)
    assert [row["status"] for row in table["workloads"][0]["rows"]] == ["ok", "ok"]
    assert not survivors()
    run = json.loads(run_file.read_text())
    assert run["state"] == "interrupted"
    (before,) = run["workloads"]
    finished = [launch for launch in before["launches"] if launch["complete"]]
    assert finished

    done = cli("compare", "--resume", "last", "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(run_file.read_text())
    assert run["state"] == "finished"
    (after,) = run["workloads"]
    assert len(after["launches"]) >= 3
    assert after["launches"][: len(finished)] == finished, "finished launches are kept, not measured again"
    assert [case["stages"]["compile"] for case in after["cases"]] == [
        case["stages"]["compile"] for case in before["cases"]
    ], "nothing is compiled again"


def test_another_baseline_takes_over_when_the_first_cannot_be_loaded(tiny: Artifact, cli: Cli) -> None:
    cases = "fake-exit-at-load,fake-ok,fake-ok:ms=2"
    done = cli("compare", "--model", "tiny", "--backends", cases, "--launches", "2", "--budget", "30", "--json")
    assert done.returncode == 3, done.stderr
    table = json.loads(done.stdout)
    assert table["workloads"][0]["baseline"] == "fake-ok"
    found = rows(done)
    assert found["fake-exit-at-load"]["status"] == "crashed"
    assert found["fake-ok:ms=2.0"]["comparison"]["ratio"]["value"] > 1.5
    assert any("compared with fake-ok instead" in note for note in table["workloads"][0]["notes"])


def test_a_drifted_case_is_measured_on_and_resumed(tiny: Artifact, tmp_path: Path, cli: Cli) -> None:
    first = cli("compare", "--model", "tiny", "--backends", "fake-ok,fake-nan", "--launches", "1", "--json")
    assert first.returncode == 1, first.stderr
    again = cli("compare", "--resume", "last", "--launches", "2", "--json")
    assert again.returncode == 1, again.stderr
    assert {row["id"]: row["launches"] for row in rows_of(again)} == {
        "fake-ok": 2,
        "fake-nan": 2,
    }


def _wait_for_launches(out: Path, count: int) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in out.glob("*/run.json"):
            if len(json.loads(path.read_text())["workloads"][0]["launches"]) >= count:
                return path
        time.sleep(0.1)
    raise AssertionError("no launch was finished in time")


def test_workers_die_with_a_killed_parent(tiny: Artifact, tmp_path: Path) -> None:
    command = [
        sys.executable, str(RUN_CLI), "compare", "--model", "tiny", "--backends", "fake-ok",
        "--out", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for_launches(tmp_path, 1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while survivors() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not survivors()
