"""Where cases run: devices, targets and independent builds, by the command line on fake backends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness.artifact import Artifact
from tests.faults.test_isolation import survivors
from tests.support import PLUGINS, RUN_CLI, Cli, rows_of


def compared(cli: Cli, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = cli("compare", "--model", "tiny", "--quick", "--json", *arguments)
    assert done.returncode == code, done.stderr
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def test_each_device_is_measured_on_its_own(cli: Cli, tiny: Artifact) -> None:
    table = compared(cli, "--device", "cuda:0,cuda:1", "--backends", "fake-device,fake-device:off=3")
    assert [(one["key"], one["device"]) for one in table["workloads"]] == [
        ("tiny on cuda:0", "cuda:0"),
        ("tiny on cuda:1", "cuda:1"),
    ]
    for workload in table["workloads"]:
        rows = {row["id"]: row for row in workload["rows"]}
        assert {row["device"] for row in rows.values()} == {workload["device"]}
        assert rows["fake-device"]["off_device"] == 0
        assert rows["fake-device:off=3"]["off_device"] == 3
        assert "3 of 13 nodes do not run" in rows["fake-device:off=3"]["cautions"][0]
        device = workload["device"]
        assert rows["fake-device"]["reproduce"] == (
            f"harness compare --model tiny --backends fake-device --device {device}"
        )


def test_nothing_on_the_device_is_a_fallback_and_has_no_number(cli: Cli, tiny: Artifact) -> None:
    table = compared(cli, "--device", "cuda", "--backends", "fake-device:nodes=0,off=5", code=3)
    (row,) = table["workloads"][0]["rows"]
    assert (row["status"], row["compute"]) == ("fallback", None)
    assert "asked for cuda, but none of its nodes run there: 0 on cuda, 5 on cpu" in row["failure"]["message"]


def test_a_backend_that_sees_no_device_is_unavailable(cli: Cli, tiny: Artifact) -> None:
    table = compared(cli, "--device", "cuda", "--backends", "fake-blind,fake-device", code=3)
    rows = {row["id"]: row for row in table["workloads"][0]["rows"]}
    assert rows["fake-blind"]["status"] == "unavailable"
    assert "fake-blind sees no cuda device here; it sees cpu" in rows["fake-blind"]["failure"]["message"]
    assert rows["fake-device"]["status"] == "ok"


def test_a_device_that_was_named_is_not_exchanged(cli: Cli, tiny: Artifact) -> None:
    table = compared(cli, "--device", "cpu", "--backends", "fake-ok,fake-device", code=3)
    rows = {row["id"]: row for row in table["workloads"][0]["rows"]}
    assert rows["fake-device"]["status"] == "unsupported"
    assert rows["fake-device"]["failure"]["message"] == "fake-device runs on cuda only, not on cpu"
    assert rows["fake-ok"]["status"] == "ok"


def test_a_target_is_compiled_for_and_not_run(cli: Cli, tiny: Artifact) -> None:
    table = compared(cli, "--target", "sm_89", "--backends", "fake-target,fake-device", code=3)
    (workload,) = table["workloads"]
    assert workload["target"] == "sm_89"
    rows = {row["id"]: row for row in workload["rows"]}
    assert (rows["fake-target"]["status"], rows["fake-target"]["compute"]) == ("compiled", None)
    assert rows["fake-target"]["engine_bytes"] > 0
    assert rows["fake-target"]["reproduce"].endswith("--backends fake-target --target sm_89")
    assert rows["fake-device"]["status"] == "unsupported"
    assert rows["fake-device"]["failure"]["message"] == "fake-device cannot build for sm_89 without the device"

    table = compared(cli, "--target", "sm_120", "--backends", "fake-target", code=3)
    (row,) = table["workloads"][0]["rows"]
    assert row["failure"]["message"] == "fake-target cannot build for sm_120 without the device; it builds for sm_89"


def test_builds_take_turns_and_their_spread_is_shown(cli: Cli, tiny: Artifact) -> None:
    done = cli(
        "compare", "--model", "tiny", "--backends", "fake-ok,fake-varies", "--baseline", "fake-ok",
        "--builds", "3", "--launches", "3", "--budget", "25", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in rows_of(done)}
    assert len(rows["fake-varies"]["builds"]) == 3
    assert len({build["engine"] for build in rows["fake-varies"]["builds"]}) == 3
    # Builds of 1, 10 and 100 ms, so that no load of the machine can hide them: in log units their deviation is 2.3.
    assert 1.5 < rows["fake-varies"]["comparison"]["build_sd"] < 3.1
    assert rows["fake-varies"]["comparison"]["verdict"] == "UNDECIDED"
    text = cli("show", "last").stdout
    assert "3 builds, compiled in" in text

    again = cli(
        "compare", "--model", "tiny", "--backends", "fake-varies", "--builds", "3", "--quick", "--json"
    )  # fmt: skip
    kept = [build["engine_created"] for build in rows_of(again)[0]["builds"]]
    assert kept == [build["engine_created"] for build in rows["fake-varies"]["builds"]], "all builds are reused"


def test_parallel_measures_all_devices_and_ctrl_c_ends_them_all(cli: Cli, tiny: Artifact, tmp_path: Path) -> None:
    devices = ("--device", "cuda:0,cuda:1", "--parallel", "--backends", "fake-device,fake-device:ms=2")
    table = compared(cli, *devices)
    assert [[row["status"] for row in one["rows"]] for one in table["workloads"]] == [["ok", "ok"]] * 2

    process = subprocess.Popen(
        [sys.executable, str(RUN_CLI), "compare", "--model", "tiny", *devices, "--launches", "9", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        (run,) = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/run.json")] or [{"workloads": []}]
        if run["workloads"] and all(one["launches"] for one in run["workloads"]):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not survivors()
    (path,) = tmp_path.glob("out/*/run.json")
    run = json.loads(path.read_text())
    assert run["state"] == "interrupted"
    assert {case["status"] for one in run["workloads"] for case in one["cases"]} == {"ok"}, "nobody crashed"


def test_what_contradicts_itself_is_refused(cli: Cli) -> None:
    for arguments, said in (
        (["--target", "sm_89", "--device", "cuda"], "--target and --device contradict each other"),
        (["--for", "RTX 4090", "--baseline", "tvm"], "--for and --baseline contradict each other"),
        (["--parallel"], "--parallel needs several devices"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--for", "RTX 9999"], "unknown card 'RTX 9999'"),
        (["--builds", "0"], "0 is not in the range"),
    ):
        done = cli("compare", "--model", "tiny", "--backends", "fake-ok", *arguments)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert said in done.stderr, done.stderr
        assert not done.stdout
