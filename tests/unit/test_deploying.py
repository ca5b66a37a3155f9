"""Saving a recommended engine: what is refused, and what a manifest says."""

from __future__ import annotations

import ast
import errno
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import deploying
from harness.advice import Wish
from harness.artifact import TensorSpec
from harness.errors import StoreError, UnsupportedError, UsageError
from harness.recommend import advise, recommend
from harness.recommending import with_snippets
from harness.summarize import summarize
from tests.example_runs import NASTY, case, model_info
from tests.unit.test_summarize import measured, run_of, summed


def saved(tmp_path: Path, case: str, **changes: Any) -> tuple[Any, Any, Any]:
    """Return a recommendation of `case`, whose engine is one small file, with its workload and its run."""
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "model.onnx").write_bytes(b"engine")
    workload = measured({"eager": 1.0, case: 0.5})
    cases = [
        msgspec.structs.replace(one, engine=str(engine), provider="CPUExecutionProvider", **changes)
        if one.id == case
        else one
        for one in workload.cases
    ]
    workload = msgspec.structs.replace(workload, cases=cases, info=model_info(inputs=["x float32[4, 3]"]))
    found = recommend(summed(workload), Wish())
    assert found.case == case
    return found, workload, run_of(workload)


def test_inputs_are_read_back_from_the_record() -> None:
    texts = ["x float32[1, 3, 224, 224]", "a name int64[]", "mask bool[2]"]
    workload = msgspec.structs.replace(measured({"eager": 1.0}), info=model_info(inputs=texts))
    assert deploying.input_specs(workload) == [
        TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224)),
        TensorSpec(name="a name", dtype="int64", shape=()),
        TensorSpec(name="mask", dtype="bool", shape=(2,)),
    ]


def test_saves_engine_loader_and_manifest(tmp_path: Path) -> None:
    found, workload, run = saved(tmp_path, "onnxruntime")
    folder = deploying.save(tmp_path / "deploy", found, workload, run)
    assert (folder / "engine" / "model.onnx").read_bytes() == b"engine"
    ast.parse((folder / "load.py").read_text())
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=deploying.Deployed)
    assert manifest.case == "onnxruntime"
    assert set(manifest.files) == {"engine/model.onnx", "load.py"}
    assert manifest.figures["latency"] == pytest.approx(0.005, rel=0.05)


def test_a_hostile_name_stays_in_the_docstring(tmp_path: Path) -> None:
    found, workload, run = saved(tmp_path, "onnxruntime", version=f'"""\nraise SystemExit(3)\n{NASTY}\\')
    folder = deploying.save(tmp_path / "deploy", found, workload, run)
    tree = ast.parse((folder / "load.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    found, workload, run = saved(tmp_path, "onnxruntime")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "mine").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        deploying.save(tmp_path / "deploy", found, workload, run)


def test_an_engine_that_is_gone(tmp_path: Path) -> None:
    found, workload, run = saved(tmp_path, "onnxruntime", reproduce="harness compare --model tiny")
    (tmp_path / "engine").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="the engine of onnxruntime is gone") as raised:
        deploying.save(tmp_path / "deploy", found, workload, run)
    assert raised.value.hint == "build it again: harness compare --model tiny"
    (one,) = with_snippets(advise(summarize(run), Wish()), run).recommendations
    assert one.snippet is None
    assert "the engine is gone" in one.no_snippet


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, workload, run = saved(tmp_path, "onnxruntime")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(StoreError, match=r"cannot be copied to .*No space left"):
        deploying.save(tmp_path / "deploy", found, workload, run)
    assert not list((tmp_path / "deploy").iterdir())


def test_a_backend_whose_engine_does_not_load_by_itself(tmp_path: Path) -> None:
    found, workload, run = saved(tmp_path, "torch-compile")
    with pytest.raises(UnsupportedError, match=r"what torch\.compile saves is a cache"):
        deploying.save(tmp_path / "deploy", found, workload, run)
    (one,) = with_snippets(advise(summarize(run), Wish()), run).recommendations
    assert "torch-compile:aot=true" in one.no_snippet
    eager = next(case for case in workload.cases if case.id == "eager")
    with pytest.raises(UnsupportedError, match="eager has no engine that loads without harness"):
        deploying.snippet(eager, workload)


def test_folder_names() -> None:
    assert deploying.folder_name("bert-base sequence=512") == "bert-base-sequence=512"
    assert "/" not in deploying.folder_name("../../etc/passwd")


@pytest.mark.parametrize("name", ["onnxruntime", "torch-compile:aot=true", "tvm"])
def test_a_snippet_is_written_only_for_what_was_tried(name: str) -> None:
    workload = msgspec.structs.replace(measured({"eager": 1.0}), info=model_info(inputs=["x float32[4, 3]"]))
    options = {"aot": True} if "aot" in name else {}
    made = case(name, options=options, provider="CPUExecutionProvider")
    assert "def run(inputs):" in deploying.snippet(made, workload)
    with pytest.raises(UnsupportedError):
        deploying.snippet(msgspec.structs.replace(made, device="cuda:0", provider="CUDAExecutionProvider"), workload)
