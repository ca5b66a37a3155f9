"""harness check on real comparisons: regressions that were planted in a backend, a run that is as good, one bad day."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import commands
from harness.artifact import Artifact
from harness.history import queries
from harness.history.location import Location
from harness.history.store import History
from tests.history.conftest import Harness
from tests.support import PLUGINS

COMPARE = [
    "compare",
    "--model",
    "tiny",
    "--backends",
    "fake-ok,fake-planted",
    "--baseline",
    "fake-ok",
    "--launches",
    "2",
]


@pytest.fixture
def planted(harness: Harness, tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Return the command with the planted backend in reach, and a run of it that is the baseline."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setattr(commands, "ROUNDS", 3)
    monkeypatch.setattr(commands, "SLICE_S", 0.03)
    first = harness(*COMPARE, "--cold")
    assert first.returncode == 0, first.stderr
    assert harness("baseline", "set", "last").returncode == 0
    return harness


def plant(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"PLANTED_{name.upper()}", str(value))


def outcomes(check: dict[str, Any], case: str) -> dict[str, str]:
    (one,) = (one for one in check["judged"] if one["row"]["case"] == case)
    return {"status": one["status"], **{figure["metric"]: figure["outcome"] for figure in one["figures"]}}


def run_ids() -> list[str]:
    with History(Location(path=Path(os.environ["HARNESS_STORE"]))).database.read() as connection:
        return [row.id for row in queries.newest_runs(connection, 100)]


def test_unchanged_passes_and_what_was_planted_is_caught(
    planted: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unchanged_code_passes(planted)
    regressions_are_confirmed_and_remembered(planted, monkeypatch)
    what_fails_once_is_gone_again(planted, monkeypatch, tmp_path / "failed-once")


def unchanged_code_passes(planted: Harness) -> None:
    assert planted(*COMPARE, "--cold").returncode == 0
    same = planted("check", "--json", "--max-slowdown", "25%")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "regression" not in outcomes(json.loads(same.stdout), "fake-planted").values()


def regressions_are_confirmed_and_remembered(planted: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, version="2.0", slower=2, compile_s=0.8, engine_bytes=25_000, memory_mb=200, off=1e-5)
    worse = planted(*COMPARE)
    assert worse.returncode == 0, worse.stderr
    before = len(run_ids())
    done = planted("check", "--format", "json,markdown=check.md", "--junit", "check.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    check = json.loads(done.stdout)
    worse_in = ("latency", "compile", "memory", "compile-memory", "engine", "drift")
    assert outcomes(check, "fake-planted") == {"status": "pass", **dict.fromkeys(worse_in, "regression")}
    assert "regression" not in outcomes(check, "fake-ok").values()
    (again,) = {name for one in check["judged"] for name in one["again"]}
    assert len(run_ids()) == before + 1
    assert run_ids()[0] == again
    assert f"confirmed in {again.replace('_', '')}" in Path("check.md").read_text()
    assert len(ElementTree.parse("check.xml").getroot().findall(".//failure")) == len(worse_in)

    twice = planted("check", "--json", "-q")
    assert (twice.returncode, len(run_ids())) == (1, before + 1), "it was measured a third time"
    assert json.loads(twice.stdout)["judged"] == check["judged"]


def what_fails_once_is_gone_again(planted: Harness, monkeypatch: pytest.MonkeyPatch, once: Path) -> None:
    for name in ("slower", "compile_s", "engine_bytes", "memory_mb", "off"):
        monkeypatch.delenv(f"PLANTED_{name.upper()}")
    plant(monkeypatch, version="3.0", fails=once)
    assert planted(*COMPARE).returncode == 3
    done = planted("check", "--max-slowdown", "25%")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "suspicious, and gone when measured again" in done.stdout
    assert "ok > compile_failed; compile: the compiler lost its way, this time; it did not fail again in" in done.stdout
