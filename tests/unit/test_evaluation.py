"""Accuracy as a user gets it: the whole way from the command line, offline, on the digits classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.records import Run
from harness.store import RunFolder, load_run
from tests.support import Cli, rows_of

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")
RUN = ("compare", "--model", "digits", "--batch", "16", "--dataset", "digits", "--max-samples", "100", "--json")


def last_run(folder: Path) -> tuple[RunFolder, Run]:
    found = RunFolder(max((folder / "results").iterdir()))
    return found, load_run(found)


def test_every_measured_engine_is_judged_and_a_resumed_run_does_not_repeat_it(cli: Cli, tmp_path: Path) -> None:
    backends = "onnxruntime,onnxruntime:level=basic,fake-ok"
    done = cli(*RUN, "--backends", backends, "--baseline", "onnxruntime", "--launches", "1", "--budget", "1")
    rows: dict[str, dict[str, Any]] = {row["id"]: row for row in rows_of(done)}
    base, basic, fake = (rows[name] for name in ("onnxruntime", "onnxruntime:level=basic", "fake-ok"))
    assert base["accuracy"]["metrics"]["top-1"] > 0.9, "it was trained"
    assert (base["accuracy"]["dataset"], base["accuracy"]["samples"], base["accuracy"]["of"]) == ("digits", 100, 599)
    assert base["accuracy"]["paired"] is None
    paired = basic["accuracy"]["paired"]
    assert (paired["against"], paired["difference"], paired["p"]) == ("onnxruntime", 0, 1)
    assert paired["low"] < 0 < paired["high"]
    # It answers with the artifact's own outputs, so it has none for other inputs: its numbers stand, with a reason.
    assert fake["status"] == "ok"
    assert fake["compute"]["samples"] > 0
    assert "these inputs are none of the artifact's" in fake["accuracy"]["failure"]["message"]
    assert {row["agreement"][0]["figure"] for row in rows.values()} == {"top-1"}

    folder, run = last_run(tmp_path)
    files = {
        case.id: folder.path / case.accuracy.answers
        for case in run.workloads[0].cases
        if case.accuracy and case.accuracy.answers
    }
    assert set(files) == {"onnxruntime", "onnxruntime:level=basic"}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    again = cli("compare", "--resume", "last", "--launches", "2", "--budget", "30", "--json")
    assert {row["id"]: row["accuracy"] and row["accuracy"]["metrics"] for row in rows_of(again)}["onnxruntime"] == (
        base["accuracy"]["metrics"]
    )
    assert {name: file.stat().st_mtime_ns for name, file in files.items()} == before


def test_what_does_not_fit_is_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    done = cli("compare", "--model", "yolov8n", "--dataset", "digits", "--backends", "fake-ok")
    assert done.returncode == 2
    assert "is for models of classification, and yolov8n is one of detection" in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_old_run_without_these_fields_still_loads() -> None:
    import msgspec

    from tests.example_runs import full

    content = msgspec.to_builtins(full().run)
    for case in content["workloads"][0]["cases"]:
        del case["agreement"], case["accuracy"]
    del content["settings"]["dataset"], content["settings"]["max_samples"]
    run = msgspec.convert(content, type=Run)
    assert run.workloads[0].cases[0].accuracy is None
