"""What is saved for deployment runs without harness, and gives the outputs that were judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness import deploying, drift
from harness.advice import Wish
from harness.artifact import Artifact, sha256
from harness.export import exports_root
from harness.recommend import advise
from harness.records import Run
from harness.store import RUN_FILE, RunFolder, load_run
from harness.summarize import summarize
from tests.support import ROOT, Cli

CASES = ("onnxruntime", "torch-compile:aot=true", "tvm:tuner=none")
CHECK = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from load import run
inputs = dict(np.load(sys.argv[2]))
np.savez(sys.argv[3], *run(inputs))
assert "harness" not in sys.modules
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
    """Compare all of them once, on the model with several inputs and outputs."""
    out = tmp_path_factory.mktemp("deploying")
    command = [sys.executable, "-m", "harness", "compare", "--quick", "--model", "tests.conformance.peculiar:make"]
    command += ["--backends", ",".join(("eager", *CASES)), "--input-sets", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    (found,) = out.glob(f"*/{RUN_FILE}")
    assert done.stdout, done.stderr
    return load_run(RunFolder(found.parent))


@pytest.mark.parametrize("case", CASES)
def test_runs_without_harness(case: str, compared: Run, tmp_path: Path) -> None:
    workload = compared.workloads[0]
    status = next(one.status for one in workload.cases if one.id == case)
    if status == "unavailable" and case.partition(":")[0] not in os.environ.get("HARNESS_REQUIRE", "").split(","):
        pytest.skip(f"{case} is not installed")
    assert status == "ok"
    (found,) = advise(summarize(compared), Wish()).recommendations
    folder = deploying.save(tmp_path / "saved", msgspec.structs.replace(found, case=case), workload, compared)
    artifact = artifact_of(compared)
    for index in range(2):
        np.savez(tmp_path / "inputs.npz", **artifact.input_set(index))  # type: ignore[arg-type]  # numpy's own flag is typed in the way
        done = subprocess.run(
            [
                sys.executable,
                "-I",
                "-B",
                "-c",
                CHECK,
                str(folder),
                str(tmp_path / "inputs.npz"),
                str(tmp_path / "out.npz"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        arrays = list(np.load(tmp_path / "out.npz").values())
        names = [spec.name for spec in artifact.outputs]
        outputs = dict(zip(names, arrays, strict=True))
        judged = drift.judge(
            outputs, reference=artifact.reference(index), golden=artifact.golden(index), input_set=index
        )
        assert all(one.passed for one in judged), [one.reason for one in judged]
        # Not only good outputs: the very ones that the run has judged.
        of = next(one for one in workload.cases if one.id == case)
        before = {one.output: one.rmse for one in of.drift if one.input_set == index}
        assert {one.output: one.rmse for one in judged} == before
    manifest = json.loads((folder / deploying.MANIFEST).read_text())
    assert [one["name"] for one in manifest["inputs"]] == [spec.name for spec in artifact.inputs]
    assert manifest["files"] == {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != deploying.MANIFEST
    }


def test_the_command_prints_what_it_saves(compared: Run, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "results" / "one"
    run.mkdir(parents=True)
    (run / RUN_FILE).write_bytes(msgspec.json.encode(compared))
    done = cli("recommend", "--objective", "engine", "--save", "deploy")
    assert done.returncode == 0, done.stderr
    assert "def run(inputs):" in done.stdout
    assert done.stderr.splitlines() == ["saved deploy"]
    again = cli("recommend", "--objective", "engine", "--save", "deploy")
    assert again.returncode == 2
    assert "error: deploy exists and is not an empty folder" in again.stderr
    assert "hint: choose another --save" in again.stderr


def test_a_later_run_that_starts_from_the_engine_leaves_the_way_to_it(cli: Cli, tmp_path: Path) -> None:
    command = ["compare", "--quick", "--model", "tiny", "--backends", "onnxruntime", "--input-sets", "1"]
    for _ in range(2):
        done = cli(*command)
        assert done.returncode == 0, done.stderr
    first, second = sorted((tmp_path / "results").glob("*-tiny-*"), key=lambda path: load_run(RunFolder(path)).created)
    workload = load_run(RunFolder(first)).workloads[0]
    (mine,), (theirs,) = workload.cases, load_run(RunFolder(second)).workloads[0].cases
    assert not Path(mine.engine or "").exists()
    (found,) = json.loads(cli("recommend", str(first), "--json", "--save", "deploy").stdout)["recommendations"]
    assert found["engine"] == theirs.engine
    (spec,) = deploying.input_specs(workload)
    tried = f"\nimport numpy as np\nrun({{{spec.name!r}: np.zeros({spec.shape}, {spec.dtype!r})}})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", found["snippet"] + tried], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deploy" / "engine").is_dir()


def artifact_of(run: Run) -> Artifact:
    """Return the export that a run was made with."""
    info = run.workloads[0].info
    assert info is not None
    found = (Artifact.open(path.parent) for path in exports_root().glob("*/artifact.json"))
    return next(one for one in found if one.hash == info.artifact)
