"""harness import, sync, baseline and history export, label, keep, remove: what they do, and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.history import keeping
from harness.history.location import Location, locate
from harness.history.store import PRUNED, History
from harness.store import RUN_FILE, RunFolder, load_run
from tests.example_history import a_run, failed
from tests.history.conftest import Harness, Server, put_run

DAY_1, DAY_2 = "2026-03-01T00-00-00-resnet50-aa", "2026-03-02T00-00-00-resnet50-bb"


@pytest.fixture
def two(harness: Harness) -> Harness:
    """A history with two runs."""
    for name in (DAY_1, DAY_2):
        put_run(a_run(name, created=f"{name[:10]}T00:00:00+00:00", labels=["nightly"]))
    done = harness("import", f"results/{DAY_1}", f"results/{DAY_2}")
    assert done.returncode == 0, done.stderr
    return harness


def history() -> History:
    location = locate(os.environ["HARNESS_STORE"])
    assert location is not None
    return History(location)


def complains(done: object, *parts: str) -> None:
    assert getattr(done, "returncode", None) == 2
    told = str(getattr(done, "stderr", ""))
    assert told.count("error: ") == 1, told
    for part in parts:
        assert part in told
    assert "Traceback" not in told and "internal" not in told


# ---- import and export


def test_imported_by_folder_by_file_and_by_name(harness: Harness) -> None:
    one, two, three = a_run("one"), a_run("two"), a_run("three", labels=["own"])
    put_run(one)
    put_run(two, Path("elsewhere"))
    put_run(three)
    done = harness("import", "results/one", f"elsewhere/two/{RUN_FILE}", "three", "--label", "v2", "--label", "own")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one: added, 2 cases", "two: added, 2 cases", "three: added, 2 cases"]
    assert history().load("three").labels == ["own", "v2"]
    again = harness("import", "three")
    assert again.stdout == "three: is there already, 2 cases\n"
    assert history().load("three").labels == ["own", "v2"]


def test_files_that_cannot_be_read_do_not_keep_the_others_out(harness: Harness) -> None:
    put_run(a_run("good"))
    (put_run(a_run("bad")) / RUN_FILE).write_text("{")
    done = harness("import", "results/bad", "results/good", "missing")
    assert done.returncode == 2
    assert done.stdout == "good: added, 2 cases\n"
    assert done.stderr.count("error: ") == 2
    assert "is damaged" in done.stderr and "no run 'missing'" in done.stderr


def test_import_of_nothing_makes_no_history(harness: Harness) -> None:
    complains(harness("import", "missing"), "no run 'missing'")
    complains(harness("import"), "missing argument 'RUN...'")
    assert not Path(os.environ["HARNESS_STORE"]).exists()


def test_export_is_the_run_file_again(two: Harness) -> None:
    done = two("history", "export", "last", "2026-03-01", "--to", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"out/{DAY_2}", f"out/{DAY_1}"]
    assert load_run(RunFolder(Path("out") / DAY_2)) == load_run(RunFolder(Path("results") / DAY_2))
    shown = two("show", f"out/{DAY_2}")
    assert shown.returncode == 0 and "onnxruntime" in shown.stdout
    complains(two("history", "export", "last", "--to", "out"), "exists and is not empty", "another --to")
    complains(two("history", "export", "last", "--to", f"out/{DAY_2}/{RUN_FILE}"), "out")
    complains(two("history", "export", "2026-04", "--to", "new"), "no run '2026-04' in the history", DAY_1, "last")
    complains(two("history", "export", "2026", "--to", "new"), "several runs match '2026'", DAY_1)


def test_export_says_where_samples_are_gone(harness: Harness) -> None:
    put_run(a_run("old", created="2020-01-01T00:00:00+00:00"))
    harness("import", "old")
    assert harness("history", "keep", "30").stdout.splitlines() == [
        "raw samples are kept for 30 days; figures are kept for good",
        "removed the raw samples of 1 run(s)",
    ]
    done = harness("history", "export", "old", "--to", "out")
    assert done.returncode == 0
    assert PRUNED in done.stderr
    assert "kept for 30 days" in harness("history", "keep").stdout
    assert "kept for good" in harness("history", "keep", "0").stdout


# ---- labels, removing, baselines


def test_labels_are_given_and_taken(two: Harness) -> None:
    assert two("history", "label", "last", "v2", "best").stdout == f"{DAY_2}: v2, best\n"
    assert history().load(DAY_2).labels == ["best", "nightly", "v2"]
    two("history", "label", DAY_2, "nightly", "--remove")
    assert history().load(DAY_2).labels == ["best", "v2"]


def test_removed_runs_are_gone_and_unknown_ones_remove_nothing(two: Harness) -> None:
    complains(two("history", "remove", DAY_1, "unknown"), "no run 'unknown'")
    assert two("history", "remove", DAY_1).stdout == f"removed {DAY_1}\n"
    complains(two("history", "remove", DAY_1), f"no run '{DAY_1}'", DAY_2)


def test_baseline_is_set_shown_and_cleared(two: Harness) -> None:
    assert "no baseline; set one with" in two("baseline").stdout
    assert two("baseline", "set", "2026-03-01").stdout == f"baseline of 2 series: {DAY_1}\n"
    shown = two("baseline", "show").stdout
    assert shown.count(DAY_1) == 2 and "onnxruntime" in shown and "1.31.0" in shown
    assert [point["run"] for point in json.loads(two("baseline", "show", "--json").stdout)] == [DAY_1, DAY_1]
    complains(two("baseline", "clear", "--model", "resnet"), "no baseline of model 'resnet'", "resnet50")
    complains(two("baseline", "clear", "--backend", "tvm"), "no baseline of backend 'tvm'", "resnet50, onnxruntime")
    complains(two("baseline", "show", "--backend", "eager"), "--backend belongs to harness baseline clear, not to show")
    assert "1 series" in two("baseline", "clear", "--model", "resnet50", "--backend", "onnxruntime").stdout
    shown = two("baseline", "show").stdout
    assert "eager" in shown and "onnxruntime" not in shown
    assert "1 series" in two("baseline", "clear", "--model", "resnet50").stdout
    assert "no baseline" in two("baseline", "show").stdout


def test_baseline_needs_a_case_that_is_ok(harness: Harness) -> None:
    bad = {"status": "crashed", "failure": failed()}
    put_run(a_run("half", fields={"onnxruntime": bad}))
    put_run(a_run("none", fields={"onnxruntime": bad, "eager": bad}))
    harness("import", "half", "none")
    assert harness("baseline", "set", "half").stdout.splitlines() == [
        "baseline of 1 series: half",
        "  not resnet50, onnxruntime: crashed",
    ]
    complains(harness("baseline", "set", "none"), "has no case that is ok")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("baseline set", "harness baseline set wants a run"),
        ("baseline show last", "harness baseline show takes no run"),
        ("baseline set last --model resnet50", "--model belongs to harness baseline clear"),
        ("baseline forget", "'forget' is not one of"),
        ("history keep 99999", "99999 is not in the range"),
        ("history keep many", "'many' is not a valid"),
        ("history label last", "missing argument 'LABEL...'"),
        ("history export last", "missing option '--to'"),
        ("history --store x export last --to y", "--store belongs after 'export'"),
    ],
)
def test_wrong_usage(arguments: str, part: str, two: Harness) -> None:
    complains(two(*arguments.split()), part)


@pytest.mark.parametrize("command", ["baseline", "history keep", "history export last --to x", "history remove last"])
def test_no_history(command: str, harness: Harness) -> None:
    complains(harness(*command.split()), "there is no history in", "harness compare begins one")
    complains(harness(*command.split(), "--store", "none"), "switched off with 'none'", "--store PATH")
    complains(harness(*command.split(), "--store", "mysql://h/d"), "'mysql' is no kind of database")


def test_place_in_harness_toml(two: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_STORE")
    Path("harness.toml").write_text(f'[store]\nurl = "{tmp_path}/history.sqlite"\n[baseline]\nstore = "other.sqlite"\n')
    assert "for good" in two("history", "keep").stdout
    complains(two("baseline"), "there is no history in", "other.sqlite")
    for text, part in (
        ('store = "x"', "harness.toml: store must be a table"),
        ('[store]\npath = "x"', "unknown key of [store] 'path'"),
        ("[store]\nurl = 3", "[store] url: 3 is not a path or a URL"),
    ):
        Path("harness.toml").write_text(text)
        complains(two("baseline"), part)


# ---- a server that does not answer


def test_runs_wait_for_a_server_and_are_sent_when_it_is_back(
    harness: Harness, postgres: Server, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = postgres.database()
    store = location.url.replace("+psycopg", "")
    postgres.stop()
    try:
        for name in ("one", "two"):
            run = a_run(name)
            keeping.keep(run, RunFolder(put_run(run)), location)
        told = capsys.readouterr().err
        assert told.count("cannot be reached") == 2
        assert told.count("the run waits here; send it with: harness sync") == 2
        assert len(list((data_folder / keeping.WAITING).glob(f"*/*/{RUN_FILE}"))) == 2
        complains(harness("sync", "--store", store), "cannot be reached")
        assert len(keeping.waiting(location)) == 2, "nothing is lost by trying"
    finally:
        postgres.start()
    late = a_run("three")
    keeping.keep(late, RunFolder(put_run(late)), location)
    assert "2 earlier run(s) wait for this history" in capsys.readouterr().err
    done = harness("sync", "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"2 run(s) sent to {location.shown}; 0 wait\n"
    assert History(location).load("one") == a_run("one")
    assert harness("sync", "--store", store).stdout == "no run waits\n"


def test_damaged_run_that_waits_is_named_and_stays(sqlite_file: Location, harness: Harness) -> None:
    keeping.wait(a_run("good"), sqlite_file)
    keeping.wait(a_run("bad"), sqlite_file)
    (keeping.waiting(sqlite_file)[0].path / RUN_FILE).write_text("{")
    done = harness("sync", "--store", str(sqlite_file.path))
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert done.stdout.startswith("1 run(s) sent to")
    assert [folder.path.name for folder in keeping.waiting(sqlite_file)] == ["bad"]


# ---- what a comparison does with its run


def test_failure_to_keep_a_run_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine, and longer than the header of a database would ever be: " * 4)
    folder = RunFolder(put_run(a_run(), tmp_path))
    keeping.keep(a_run(), folder, Location(path=tmp_path / "file"))
    told = capsys.readouterr().err
    assert "warning: the run is not in the history: " in told and "file is not a database" in told
    assert f"  later: harness import {folder.path}" in told

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(History, "add", broken)
    keeping.keep(a_run(), folder, Location(path=tmp_path / "new.sqlite"))
    assert "failed: RuntimeError: a defect" in capsys.readouterr().err


def test_run_without_a_case_and_a_switched_off_store_keep_nothing(tmp_path: Path) -> None:
    location = Location(path=tmp_path / "h.sqlite")
    keeping.keep(a_run(workloads=[]), RunFolder(tmp_path), location)
    keeping.keep(a_run(), RunFolder(tmp_path), None)
    assert not (tmp_path / "h.sqlite").exists()
