"""Two releases of a real backend in one run, the older one installed for it: nothing here is a fake.

Skipped where no package index answers, unless HARNESS_REQUIRE names `environments`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from harness import environments
from harness.engines import engines_root
from harness.errors import EnvironmentFailed
from harness.records import Run
from tests.support import Cli, rows_of

OLDER = "1.16.3"
"""Of 2023: built for numpy 1, and it reads no file format as new as that of the export."""


@pytest.fixture(scope="module")
def older() -> environments.Interpreter:
    try:
        return environments.ensure("onnxruntime", OLDER, timeout_s=300)
    except EnvironmentFailed as exc:
        if "environments" in os.environ.get("HARNESS_REQUIRE", "").split(","):
            raise
        pytest.skip(f"onnxruntime {OLDER} cannot be installed here: {exc.message}")


def test_an_old_and_the_installed_release_side_by_side(
    older: environments.Interpreter, cli: Cli, tmp_path: Path
) -> None:
    names = f"onnxruntime@{OLDER},onnxruntime"
    asked = ("compare", "--model", "tiny", "--backends", names, "--baseline", "onnxruntime", "--quick", "--json")
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in rows_of(done)}
    old, new = rows[f"onnxruntime@{OLDER}"], rows["onnxruntime"]
    assert (old["version"], old["release"], old["status"]) == (OLDER, OLDER, "ok")
    assert new["release"] is None and new["interpreter"] is None and new["version"] != OLDER
    assert old["interpreter"]["packages"] == older.packages
    assert older.packages["numpy"].startswith("1."), "as it was when the release came out"
    assert old["comparison"]["ratio"]["value"] > 0, "one run, one table"
    run = json.loads(done.stdout)["run"]["id"]
    stored = msgspec.json.decode((tmp_path / "results" / run / "run.json").read_bytes(), type=Run)
    (workload,) = stored.workloads
    assert {sitting.case for sitting in workload.launches[0].sittings} >= set(rows), "in the same launch"
    assert len({Path(case.engine or "").parents[1] for case in workload.cases}) == 2
    assert all(engines_root() in Path(case.engine or "").parents for case in workload.cases)
    again = rows_of(cli(*asked))
    assert all("engine_compiled_at" in row["facts"] for row in again), "each finds its own engine again"


def test_a_release_is_profiled_where_it_is_installed(older: environments.Interpreter, cli: Cli) -> None:
    done = cli("profile", "--model", "tiny", "--backends", f"onnxruntime@{OLDER},onnxruntime", "--json")
    cases = {one["id"]: one for one in json.loads(done.stdout)["workloads"][0]["cases"]}
    assert cases["onnxruntime"]["status"] == "ok", done.stderr
    assert "onnx" not in older.packages, "what maps operators to nodes is not there"
    old = cases[f"onnxruntime@{OLDER}"]
    assert old["status"] == "unsupported"
    assert "by onnx, which is not installed where this backend runs" in old["failure"]["message"]


def test_a_release_that_there_is_not_ends_the_command(
    older: environments.Interpreter, cli: Cli, tmp_path: Path
) -> None:
    done = cli("compare", "--model", "tiny", "--backends", "onnxruntime@1.16.99")
    assert done.returncode == 2
    assert "onnxruntime 1.16.99 was never released" in done.stderr and "1.16.3" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_users_interpreter_runs_a_backend(older: environments.Interpreter, cli: Cli) -> None:
    python = f"onnxruntime={older.executable}"
    done = cli("compare", "--model", "tiny", "--backends", "onnxruntime", "--python", python, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(done)
    assert (row["id"], row["version"], row["release"]) == ("onnxruntime", OLDER, None)
    assert row["interpreter"]["executable"] == older.executable
    assert f"--python {python}" in row["reproduce"]
