"""`harness profile` where backends have no profiler, crash or hang in it, and where the user stops it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.artifact import Artifact
from harness.profiling import PROFILE_FILE
from harness.surroundings import MARK
from tests.support import Cli, interrupted


def profiled(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.stdout, done.stderr
    return {case["id"]: case for case in json.loads(done.stdout)["workloads"][0]["cases"]}


def test_every_backend_gets_a_row(cli: Cli, tiny: Artifact, tmp_path: Path) -> None:
    backends = "fake-profiled,fake-ok,fake-segfault-in-profile,fake-segfault-at-compile,fake-hang-in-profile"
    done = cli("profile", "--model", "tiny", "--backends", backends, "--timeout", "5", "--json", "--iterations", "3")
    found = profiled(done)
    assert {name: case["status"] for name, case in found.items()} == {
        "fake-profiled": "ok",
        "fake-ok": "unsupported",
        "fake-segfault-in-profile": "crashed",
        "fake-segfault-at-compile": "crashed",
        "fake-hang-in-profile": "timeout",
    }
    assert found["fake-ok"]["failure"]["message"] == "fake does not say what its operators take"
    assert "SIGSEGV" in found["fake-segfault-in-profile"]["failure"]["message"]
    assert found["fake-segfault-at-compile"]["failure"]["stage"] == "compile"
    assert found["fake-profiled"]["profile"]["operators"][0]["calls"] == 3
    assert len(found["fake-profiled"]["profiled_ns"]) == 3
    assert len(found["fake-profiled"]["nodes"]) == 7
    assert done.returncode == 3, "backends that were asked for by name have no profile"
    (kept,) = (tmp_path / "results").glob(f"*/{PROFILE_FILE}")
    assert json.loads(kept.read_text())["state"] == "finished"
    shown = cli("profile", kept.parent.name)
    assert shown.returncode == 0, shown.stderr
    assert "fake does not say what its operators take" in shown.stdout
    assert "profiling" not in shown.stderr


def test_a_run_is_profiled_with_the_engines_that_it_saved(cli: Cli, tiny: Artifact, tmp_path: Path) -> None:
    compared = cli("compare", "--model", "tiny", "--backends", "fake-profiled", "--quick")
    assert compared.returncode == 0, compared.stderr
    before = sorted((Path(os.environ["HARNESS_CACHE"]) / "engines").glob("*/*/manifest.json"))
    done = cli("profile", "last", "--json")
    assert done.returncode == 0, done.stderr
    assert profiled(done)["fake-profiled"]["engine_reused"] is True
    assert "compiled fake-profiled" not in done.stderr
    assert sorted((Path(os.environ["HARNESS_CACHE"]) / "engines").glob("*/*/manifest.json")) == before
    again = cli("profile", "last", "--by", "op")
    assert again.returncode == 0, again.stderr
    assert again.stderr == "", "what was profiled is not profiled again"
    assert "(Fake)" in again.stdout
    assert cli("show", "last").returncode == 0, "the comparison is as it was"


def test_ctrl_c_keeps_what_is_finished(tiny: Artifact, tmp_path: Path) -> None:
    command = ["profile", "--model", "tiny", "--backends", "fake-profiled,fake-hang-in-profile"]
    code, shown, _ = interrupted([*command, "--out", str(tmp_path), "--by", "op"], "profiled fake-profiled", tmp_path)
    assert code == 130
    assert "INTERRUPTED" in shown
    assert "(Fake)" in shown
    (kept,) = tmp_path.glob(f"*/{PROFILE_FILE}")
    record = json.loads(kept.read_text())
    assert record["state"] == "interrupted"
    assert [case["id"] for case in record["workloads"][0]["cases"]] == ["fake-profiled"]
    assert MARK not in os.environ


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["last", "--model", "tiny"], "a RUN brings its own model and backends; leave out --model"),
        (["--again"], "--again belongs to a RUN"),
        (["--model", "tiny,resnet50"], "harness profile takes one model, and there are 2"),
        (["--backends", "tensort"], "did you mean 'tensorrt'?"),
        (["no-such-run"], "no run 'no-such-run'"),
        (["--json", "--format", "csv"], "--json and --format contradict each other"),
        (["--iterations", "0"], "0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_leaves_nothing_behind(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["profile", *arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_damaged_profile_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import main

    (tmp_path / PROFILE_FILE).write_text('{"schema": 1, "id"')
    with pytest.raises(SystemExit) as left:
        main(["profile", str(tmp_path)])
    assert left.value.code == 2
    assert "cannot be read" in capsys.readouterr().err
