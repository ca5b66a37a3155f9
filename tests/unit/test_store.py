"""Runs on disk: finding one by any of its names, and refusing what is damaged or too new."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.errors import StoreError
from harness.records import SCHEMA, Environment, Run, Settings
from harness.store import RUN_FILE, RunFolder, find_run, load_run


def a_run(**changes: Any) -> Run:
    settings = Settings(
        models=["tiny"], cases=["eager"], dims={"batch": [1]}, seed=0, threads=1, launches=1, rounds=1,
        slice_s=0.1, budget_s=1.0, timeout_s=1.0, memory_limit_bytes=1, quick=True,
    )  # fmt: skip
    environment = Environment(
        cpu="cpu", cores=1, logical_cores=1, memory_bytes=1, kernel="k", os="o", python="3", governor=None,
        load_average=0.0, gpus=[], libraries={}, git_commit=None, hostname="h", container=None, advice=[],
    )  # fmt: skip
    run = Run(
        id="run", created="now", harness="0", state="finished", command="harness", settings=settings,
        environment=environment,
    )  # fmt: skip
    return msgspec.structs.replace(run, **changes)


def put(out: Path, name: str) -> RunFolder:
    (out / name).mkdir(parents=True)
    folder = RunFolder(out / name)
    folder.save(a_run(id=name))
    return folder


def test_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "out", "tiny")
    run = a_run(notes=["µ±", "second"])
    folder.save(run)
    assert load_run(folder) == run
    assert [path.name for path in folder.path.iterdir()] == [RUN_FILE]


def test_folders_of_one_second_differ_and_are_named_after_the_model(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path, "a/b c") for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.parent == tmp_path and "-a-b-c" in folder.path.name for folder in folders)


def test_found_by_folder_file_name_and_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    wanted = put(out, "2026-01-02T00-00-00-tiny").path
    put(out, "2026-01-03T00-00-00-tiny")
    for name in (str(wanted), str(wanted / RUN_FILE), wanted.name, "2026-01-02"):
        assert find_run(name, out).path == wanted
    monkeypatch.chdir(wanted)
    assert find_run(RUN_FILE, out).path.resolve() == wanted


def test_last_is_the_run_that_was_written_last(tmp_path: Path) -> None:
    later, earlier = put(tmp_path, "a"), put(tmp_path, "b")
    os.utime(later.path / RUN_FILE, (2000, 2000))
    os.utime(earlier.path / RUN_FILE, (1000, 1000))
    assert find_run("last", tmp_path).path == later.path


def test_whole_name_goes_before_the_start_of_another(tmp_path: Path) -> None:
    first = put(tmp_path, "2026-01-02T00-00-00-tiny")
    put(tmp_path, "2026-01-02T00-00-00-tiny-2")
    assert find_run("2026-01-02T00-00-00-tiny", tmp_path).path == first.path


def test_no_runs(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match="no run 'last': there are no runs in") as caught:
            find_run("last", out)
        assert "harness compare makes one" in (caught.value.hint or "")


def test_unknown_and_ambiguous_names_list_what_there_is(tmp_path: Path) -> None:
    put(tmp_path, "2026-01-02-tiny")
    put(tmp_path, "2026-01-03-tiny")
    (tmp_path / "2026-01-04-unfinished").mkdir()
    with pytest.raises(StoreError, match="no run 'other'") as unknown:
        find_run("other", tmp_path)
    with pytest.raises(StoreError, match="several runs match '2026-01'") as several:
        find_run("2026-01", tmp_path)
    for caught in (unknown, several):
        assert "2026-01-02-tiny, 2026-01-03-tiny; or: last" in (caught.value.hint or "")
        assert "unfinished" not in (caught.value.hint or "")


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_truncated_file_is_damaged(cut: int, tmp_path: Path) -> None:
    folder = put(tmp_path, "run")
    path = folder.path / RUN_FILE
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match=r"run.json is damaged: ") as caught:
        load_run(folder)
    assert "harness compare" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"null", b'{"schema": "2"}', b'{"schema": 2}'])
def test_other_content_is_damaged(content: bytes, tmp_path: Path) -> None:
    folder = put(tmp_path, "run")
    (folder.path / RUN_FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"run.json is damaged: "):
        load_run(folder)


@pytest.mark.parametrize(
    ("schema", "says", "hint"),
    [(SCHEMA + 1, "a newer harness", "update harness to read it"), (SCHEMA - 1, "an older harness", "measure again")],
)
def test_another_schema_says_what_to_do_whatever_else_changed(
    schema: int, says: str, hint: str, tmp_path: Path
) -> None:
    folder = put(tmp_path, "run")
    (folder.path / RUN_FILE).write_text(json.dumps({"schema": schema, "everything": "else"}))
    with pytest.raises(StoreError, match=f"was written by {says}: it has schema {schema}") as caught:
        load_run(folder)
    assert hint in (caught.value.hint or "")


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    folder = put(tmp_path, "run")
    path = folder.path / RUN_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_later": 1}))
    assert load_run(folder).id == "run"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file or directory"):
        load_run(RunFolder(tmp_path))


def test_failed_save_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = put(tmp_path, "run")
    before = load_run(folder)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left"):
        folder.save(a_run(id="run", notes=["more"]))
    assert load_run(folder) == before
