"""Bisects through the command line, with real runs of fake backends: a version is a fake backend with its options."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.bisect import commands
from harness.bisect.found import Release
from harness.cli import main
from harness.compare import Comparison
from harness.errors import EnvironmentFailed
from harness.records import Run
from tests.support import PLUGINS

Bisect = Callable[..., "Said"]


class Said:
    """What a bisect printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def found(self) -> dict[str, Any]:
        """The JSON that it printed."""
        assert self.out, self.err
        answer: dict[str, Any] = json.loads(self.out)
        return answer

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(step["before"]["version"], step["after"]["version"]) for step in self.found["steps"]]


class Planted:
    """Versions 1.0, 1.1 and so on, each what asks for it in the grammar of `--backends`."""

    distribution = "planted"

    def __init__(self, texts: Sequence[str], broken: Sequence[int]) -> None:
        self.texts = texts
        self.broken = broken

    def listed(self) -> list[Release]:
        return [Release(version=f"1.{index}", released=f"2026-01-{index + 1:02}") for index in range(len(self.texts))]

    def install(self, version: str) -> Mapping[str, str]:
        index = int(version.partition(".")[2])
        if index in self.broken:
            raise EnvironmentFailed(f"no wheel of planted {version} fits", hint="none")
        return {"planted": version, "numpy": "1.26.4" if index == 0 else "2.1.0"}

    def text(self, version: str) -> str:
        return self.texts[int(version.partition(".")[2])]


@pytest.fixture
def bisect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bisect]:
    """Bisect among planted versions; what was measured is remembered in a cache of the test's own."""
    monkeypatch.syspath_prepend(PLUGINS)
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setattr("harness.bisect.memory.cache_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, texts: Sequence[str], broken: Sequence[int] = ()) -> Said:
        monkeypatch.setattr(commands, "source_of", lambda *_, **__: Planted(texts, broken))
        capsys.readouterr()  # what others have printed
        with pytest.raises(SystemExit) as ended:
            main(["bisect", "--model", "tiny", "--backend", "fake-ok", "--json", *arguments])
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    yield run


def works_until(count: int, first_bad: int, bad: str = "fake-segfault-at-compile") -> list[str]:
    """Return versions that work before one of them."""
    return [
        f"fake-ok:ms={0.1 + index / 1000}" if index < first_bad else f"{bad}:ms={0.1 + index / 1000}"
        for index in range(count)
    ]


ENDS = ("--good", "1.0", "--bad", "1.5")
STATUS = (*ENDS, "--metric", "status")


def test_it_finds_the_version_that_is_slower(bisect: Bisect, tmp_path: Path) -> None:
    texts = [f"fake-ok:ms={(1.0 if index < 1 else 1.2) + index / 1e6}" for index in range(4)]
    ends = ("--good", "1.0", "--bad", "1.3", "--launches", "2")
    said = bisect(*ends, texts=texts)
    assert said.code == 0, said.err
    assert said.pairs == [("1.0", "1.1")]
    (step,) = said.found["steps"]
    assert math.exp(step["change"]) == pytest.approx(1.2, abs=0.02)
    assert step["half_width"] < math.log(1.05)
    assert step["packages"] == {"numpy": ["1.26.4", "2.1.0"]}
    assert step["after"]["released"] == "2026-01-02"
    assert f"--backends {texts[0]},{texts[1]} --baseline {texts[0]}" in step["reproduce"]
    assert said.found["measurements"] <= math.log2(4) + 3
    assert "4 versions, 1.0 to 1.3" in said.err
    assert "2 versions left, about 3 measurements" in said.err

    # Each pair is a run that can be shown, with both sides in it.
    runs = [Path(trial["runs"][-1]) for trial in said.found["trials"]]
    assert all((run / "run.json").is_file() for run in runs)
    assert sorted(runs) == sorted((tmp_path / "results").iterdir())
    with pytest.raises(SystemExit) as shown:
        main(["show", str(runs[-1])])
    assert not shown.value.code

    # Again, with another threshold: nothing is measured.
    again = bisect(*ends, "--threshold", "10%", texts=texts)
    assert again.pairs == said.pairs
    assert all(trial["remembered"] for trial in again.found["trials"])
    assert sorted(runs) == sorted((tmp_path / "results").iterdir())


def test_the_first_version_that_does_not_work(bisect: Bisect) -> None:
    said = bisect(*STATUS, texts=works_until(6, 4), broken=[2])
    assert said.code == 0, said.err
    assert said.pairs == [("1.3", "1.4")]
    assert said.found["skipped"] in ({}, {"1.2": "1.2 cannot be installed: no wheel of planted 1.2 fits"})
    last = next(one for one in said.found["trials"] if one["after"] == "1.4")
    assert last["change"]["statuses"] == ["ok", "crashed"]
    assert "SIGSEGV" in last["change"]["failures"][1]


def test_what_cannot_be_tried_leaves_a_range(bisect: Bisect) -> None:
    said = bisect(*STATUS, texts=works_until(6, 3), broken=[3, 2])
    assert said.pairs == [("1.1", "1.4")]
    (step,) = said.found["steps"]
    assert list(step["unknown"]) == ["1.2", "1.3"]
    assert "cannot be installed" in step["unknown"]["1.2"]


def test_ends_that_do_not_differ(bisect: Bisect) -> None:
    said = bisect(*STATUS, texts=works_until(6, 6))
    assert said.code == 1
    assert (said.found["outcome"], said.found["measurements"], said.found["steps"]) == ("no_change", 1, [])


def test_ends_the_wrong_way_round(bisect: Bisect) -> None:
    said = bisect("--good", "1.5", "--bad", "1.0", "--metric", "status", texts=works_until(6, 3))
    assert said.code == 2
    assert "--bad 1.0 is better than --good 1.5" in said.err
    assert "--good 1.0 --bad 1.5" in said.err


def test_an_end_that_cannot_be_installed(bisect: Bisect, tmp_path: Path) -> None:
    said = bisect(*STATUS, texts=works_until(6, 3), broken=[5])
    assert said.code == 3
    assert "both ends must work" in said.err
    assert "no wheel of planted 1.5 fits" in said.err
    assert not (tmp_path / "results").exists()


def test_an_end_that_gives_no_result(bisect: Bisect) -> None:
    said = bisect(*ENDS, "--metric", "engine", texts=works_until(6, 3))
    assert said.code == 3
    assert "1.5: crashed" in said.err
    assert "log:" in said.err


def test_a_figure_that_neither_has(bisect: Bisect) -> None:
    said = bisect(*ENDS, "--metric", "device-memory", "--launches", "2", "--budget", "1", texts=works_until(6, 6))
    assert said.code == 2
    assert "device memory" in said.err
    assert "--metric latency" in said.err


def test_an_interrupted_bisect_goes_on_where_it_was(bisect: Bisect, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, execute, begun = works_until(6, 4), Comparison.execute, []

    def interrupted(comparison: Comparison) -> Run:
        begun.append(comparison.run.id)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return execute(comparison)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "execute", interrupted)
        stopped = bisect(*STATUS, texts=texts)
    assert stopped.code == 130
    assert stopped.found["outcome"] == "interrupted"
    (ends,) = stopped.found["trials"]
    assert (ends["before"], ends["after"], ends["kind"]) == ("1.0", "1.5", "changed")
    said = bisect(*STATUS, texts=texts)
    assert said.pairs == [("1.3", "1.4")]
    first, second, *_ = said.found["trials"]
    assert first["remembered"], "the verdict that was finished"
    assert second["runs"][-1].endswith(begun[1]), "the run that was interrupted goes on"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--good", "1.0"), "--bad is missing"),
        (("--good", "1.0", "--bad", "1.0"), "both 1.0"),
        (("--good", "0.9", "--bad", "1.5"), "--good 0.9 is no release"),
        ((*ENDS, "--threshold", "5"), "is not a threshold"),
        ((*ENDS, "--metric", "speed"), "speed"),
        ((*ENDS, "--launches", "1"), "launches"),
        ((*ENDS, "--backend", "fake-ok,fake-nan"), "takes one backend"),
        ((*ENDS, "--backend", "onnxruntime@1.24.4"), "versions are searched for"),
        ((*ENDS, "--model", "tiny,gemm"), "takes one model"),
        ((*ENDS, "--precision", "fp32,int8"), "takes one precision"),
        ((*ENDS, "--batch", "1,2"), "batch"),
    ],
)
def test_what_cannot_be_asked_for(bisect: Bisect, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    said = bisect(*arguments, texts=works_until(6, 3))
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "results").exists(), "nothing is left behind"
