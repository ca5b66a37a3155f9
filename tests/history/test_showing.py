"""harness history and harness diff: what they show, of which cases, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from harness.history import schema
from harness.history.database import Database
from harness.history.location import Location
from harness.history.store import History
from tests.example_history import BOTH, a_run, failed
from tests.history.conftest import Harness, put_run

UPGRADE = 6


@pytest.fixture(scope="module")
def ten_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a history of ten days; on the sixth, onnxruntime is upgraded and becomes 1.25 times slower."""
    path = tmp_path_factory.mktemp("ten") / "history.sqlite"
    history = History(Location(path=path), create=True)
    history.add(a_run("elsewhere", created="2026-02-01T00:00:00Z", model="bert-base", labels=["odd"]))
    for day in range(1, 11):
        put(day, history)
    return path


@pytest.fixture
def ten(harness: Harness, ten_days: Path) -> Harness:
    """Return the command on a copy of that history."""
    shutil.copy(ten_days, os.environ["HARNESS_STORE"])
    return harness


def store() -> History:
    return History(Location(path=Path(os.environ["HARNESS_STORE"])), create=True)


def put(day: int, history: History | None = None, **fields: Any) -> str:
    later = day >= UPGRADE
    name = f"2026-03-{day:02}T00-00-00-resnet50"
    ordinary: dict[str, Any] = {
        "cases": BOTH | {"onnxruntime": 6.25 if later else 5.0},
        "created": f"2026-03-{day:02}T00:00:00Z",
        "versions": {"onnxruntime": "1.32.0" if later else "1.31.0"},
        "labels": [*(["nightly"] if day % 2 else []), *(["upgraded"] if later else [])],
        "machine": 1 + 0.02 * (day % 3),
        "seed": day,
    }
    (history or store()).add(a_run(name, **(ordinary | fields)))
    return name


def refused(harness: Harness, words: str, *parts: str) -> None:
    done = harness(*words.split())
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""


# ---- history


def test_newest_cases_are_shown_with_a_plot(ten: Harness) -> None:
    done = ten("history", "--limit", "6")
    assert done.returncode == 0, done.stderr
    assert "history: the newest 6 of 22 cases, newest last" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("2026-03-")]
    assert [row[8:10] for row in rows] == ["08", "08", "09", "09", "10", "10"]
    assert "nightly" in rows[2] and "1.32.0" in rows[1]
    assert "latency ms" in done.stdout and "o resnet50, eager   x resnet50, onnxruntime" in done.stdout


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("--model resnet50", 20),
        ("--model resnet*", 20),
        ("--backend onnxruntime", 11),
        ("--backend onnxruntime --version 1.32.0", 5),
        ("--label nightly --backend eager", 5),
        ("--since 2026-03-09", 4),
        ("--since 2026-03-09T12:00:00Z", 2),
        ("--device cpu --model bert-base", 2),
    ],
)
def test_filters(words: str, count: int, ten: Harness) -> None:
    done = ten("history", "--limit", "100", "--format", "json", *words.split())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (len(found["points"]), found["total"]) == (count, count)


def test_figures_that_failed_runs_lack_are_dashes(ten: Harness) -> None:
    bad = {"onnxruntime": {"status": "crashed", "failure": failed(), "stages": {}, "drift": [], "engine_bytes": None}}
    put(11, fields=bad, cases=BOTH)
    done = ten("history", "--limit", "2", "--metric", "compile")
    crashed = next(line for line in done.stdout.splitlines() if "crashed" in line)
    assert crashed.split()[-6:-1] == ["-"] * 5
    assert "compile s" not in done.stdout, "one run of a series is no line"
    assert "compile s" in ten("history", "--limit", "8", "--metric", "compile").stdout


def test_what_tells_series_apart_is_a_column(ten: Harness) -> None:
    assert "threads" not in ten("history").stdout
    put(20, fields={"eager": {"threads": 8}})
    shown = ten("history", "--backend", "eager", "--model", "resnet50").stdout
    assert "device  threads  version" in shown and "machine" not in shown
    assert "resnet50, eager (threads 8)" in shown and "resnet50, eager (threads 2)" in shown


def test_markdown_has_the_table_only(ten: Harness) -> None:
    done = ten("history", "--backend", "onnxruntime", "--format", "markdown")
    assert done.stdout.startswith("## history: 11 cases, newest last\n\n| run | labels |")
    assert done.stdout.count("\n| 2026-03") == 10


def test_filters_that_let_nothing_through_say_what_there_is(ten: Harness) -> None:
    refused(
        ten, "history --model resnet", "unknown model in the history 'resnet'; did you mean 'resnet50'?", "bert-base"
    )
    refused(ten, "history --backend tvm", "unknown backend in the history 'tvm'", "eager, onnxruntime")
    refused(ten, "history --backend onnxruntime --version 1.3", "'1.3'; did you mean", "Known: 1.31.0, 1.32.0")
    refused(ten, "history --label weekly", "unknown label in the history 'weekly'", "nightly, odd, upgraded")
    refused(ten, "history --label odd --model resnet50", "nothing in the history fits all of these filters")
    refused(ten, "history --device cuda", "nothing in the history fits all")
    refused(ten, "history --since yesterday", "'yesterday' is neither a day such as 2026-03-02 nor a number of days")
    refused(ten, "history --limit 0", "'--limit'")
    refused(ten, "history --metric speed", "'speed' is not one of")


def test_empty_history(harness: Harness) -> None:
    refused(harness, "history", "there is no history in", "harness compare begins one")
    store()
    refused(harness, "history", "nothing in the history fits")


# ---- diff


def test_versions_are_compared_over_their_runs(ten: Harness) -> None:
    done = ten("diff", "onnxruntime@1.31.0", "onnxruntime@1.32.0", "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    (latency,) = (change for change in row["changes"] if change["metric"] == "latency")
    assert row["runs"] == [5, 5]
    assert (latency["verdict"], latency["basis"], latency["other"]) == ("SLOWER", "another case", "eager")
    assert latency["ratio"]["value"] == pytest.approx(1.25, rel=0.02)
    assert row["circumstances"] == {"version": ["1.31.0", "1.32.0"], "onnxruntime": ["1.31.0", "1.32.0"]}


def test_versions_that_were_asked_for_are_compared_too(harness: Harness) -> None:
    for number, version in enumerate(["1.30.0", "1.31.0"]):
        fields = {"onnxruntime": {"release": version}}
        put(number, fields=fields, cases=BOTH | {"onnxruntime": 5.0 - number}, versions={"onnxruntime": version})
    done = harness("diff", "onnxruntime@1.30.0", "onnxruntime@1.31.0")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime: 1.25x faster." in done.stdout
    done = harness("diff", "last~1", "last")
    assert "resnet50, onnxruntime  release: 1.30.0 > 1.31.0" in done.stdout, "of runs it was part of the question"


def test_runs_and_labels_are_compared(ten: Harness) -> None:
    for one, other in (("last~9", "last"), ("2026-03-01", "upgraded"), ("2026-03-05", "2026-03-06")):
        done = ten("diff", one, other)
        assert done.returncode == 0, done.stderr
        assert "resnet50, onnxruntime: 1.25x slower." in done.stdout
        assert "onnxruntime  1.31.0 > 1.32.0" in done.stdout
        assert "resnet50, eager: 1.25x" not in done.stdout


def test_run_files_need_no_history(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STORE", "none")
    one = put_run(a_run("one"))
    other = put_run(a_run("two", cases=BOTH | {"onnxruntime": 4.0}, versions={"onnxruntime": "1.32.0"}))
    done = harness("diff", str(one), f"{other}/run.json", "--format", "markdown")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime: 1.25x faster." in done.stdout
    refused(harness, f"diff {one} last", "switched off with 'none'", "or run files")


def test_what_cannot_be_compared_says_which_key_differs(ten: Harness) -> None:
    four = {"onnxruntime": {"threads": 4}, "eager": {"threads": 4}}
    put(11, fields=four, cases=BOTH | {"tvm": 7.0})
    done = ten("diff", "last~1", "last")
    assert done.returncode == 3
    assert "NOT COMPARABLE" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["resnet50,", "onnxruntime", "threads:", "2", ">", "4"] in lines
    assert ["resnet50,", "tvm", "only", "in", "last"] in lines
    done = ten("diff", "elsewhere", "last")
    assert done.returncode == 3
    assert "bert-base, eager        only in elsewhere" in done.stdout


def test_another_model_of_the_same_name_is_not_compared(ten: Harness) -> None:
    run = a_run("other")
    info = run.workloads[0].info
    assert info is not None
    smaller = replace(run.workloads[0], info=replace(info, parameters=7))
    store().add(replace(run, created="2026-03-12T00:00:00Z", workloads=[smaller]))
    done = ten("diff", "last~1", "last")
    assert done.returncode == 3
    assert "parameters: 25,557,032 > 7" in done.stdout


def test_a_case_that_fails_now_is_a_row(ten: Harness) -> None:
    put(11, fields={"onnxruntime": {"status": "crashed", "failure": failed()}}, cases=BOTH)
    done = ten("diff", "last~1", "last")
    assert done.returncode == 0
    assert "ok > crashed" in done.stdout


def test_samples_that_are_gone_are_said(ten: Harness) -> None:
    whole = json.loads(ten("diff", "2026-03-02", "2026-03-08", "--format", "json").stdout)
    ten("history", "keep", "1")
    done = ten("diff", "2026-03-02", "2026-03-08", "--format", "json")
    thinned = json.loads(done.stdout)
    assert "raw samples of 2026-03-02T00-00-00-resnet50 are gone by the policy" in thinned["before"]["notes"][0]
    assert thinned["rows"] == whole["rows"], "the figures were kept"
    assert "are gone by the policy" in ten("diff", "2026-03-02", "2026-03-08").stdout


def test_samples_are_read_again_and_not_only_what_was_made_of_them(ten: Harness) -> None:
    where = Location(path=Path(os.environ["HARNESS_STORE"]))
    with Database(where).write() as connection:
        wrong = schema.cases.c.detail
        connection.execute(sa.update(schema.cases).values(detail=sa.func.replace(wrong, '"levels":[1', '"levels":[9')))
    done = ten("diff", "last~9", "last")
    assert "resnet50, onnxruntime: 1.25x slower." in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("diff last last", ["are the same run, 2026-03-10"]),
        ("diff nightly nightly", ["are the same runs"]),
        (
            "diff last weekly",
            ["'weekly' is neither a run, nor a label, nor BACKEND@VERSION", "labels: nightly, odd, upgraded"],
        ),
        ("diff last last~99", ["'last~99' is neither a run"]),
        ("diff 2026-03 last", ["several runs match '2026-03'"]),
        ("diff onnxruntime@1.3 last", ["unknown version of onnxruntime in the history '1.3'; did you mean '1.3"]),
        ("diff onnxrumtime@1.31.0 last", ["unknown backend 'onnxrumtime'; did you mean 'onnxruntime'?"]),
        ("diff tvm@0.27 last", ["no run of tvm is in the history", "harness compare --backends tvm"]),
        ("diff last", ["missing argument 'AFTER'"]),
    ],
)
def test_sides_that_are_none(words: str, parts: list[str], ten: Harness) -> None:
    refused(ten, words, *parts)
