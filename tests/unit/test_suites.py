"""Suites of harness.toml: what a table means, mistakes with their place, and what `harness run` and `init` do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness import suite_running
from harness.cli import cli as commands
from harness.cli import main
from harness.errors import StoreError
from harness.history.deriving import points_of
from harness.history.location import Location
from harness.history.store import History
from harness.protocol import Probed
from harness.starting import config_text
from harness.store import RunFolder, load_run
from harness.suite_running import joined
from harness.suite_tables import Suite, read_suites
from tests.example_history import a_run
from tests.support import Cli

NIGHTLY = """
[compare]
threads = 2
quick = true
suite = "vision"

[store]
url = "common.sqlite"

[suite.nightly]
models = ["tiny", "gemm:n=64"]
backends = ["eager", "fake-ok:level=basic", "fake-nan"]
precision = ["fp32", "fp16"]
launches = 3
store = "nightly.sqlite"

[suite.nightly.options]
fake-ok = { seconds = 0.5, exact = true }
fake-nan = { level = "all" }

[suite.nightly.check]
max_slowdown = "3%"
against = "last:10"
"""


def suites_of(text: str, folder: Path) -> dict[str, Suite]:
    path = folder / "harness.toml"
    path.write_text(text, encoding="utf-8")
    return read_suites(path, commands.commands)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # pytest keeps its own

    def run(*arguments: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


# ---- a table


def test_suite_says_what_is_compared_and_the_rest_is_common(here: Path) -> None:
    suite = suites_of(NIGHTLY, here)["nightly"]
    given = suite.of_compare()
    assert given["models"] == ["tiny", "gemm:n=64"]
    assert given["backends"] == ["eager", "fake-ok:level=basic,seconds=0.5,exact=true", "fake-nan:level=all"]
    assert (given["precisions"], given["launches"], given["threads"]) == ("fp32,fp16", 3, 2)
    assert given["store"] == "nightly.sqlite"
    assert not {"suite", "quick"} & given.keys(), "the suite overrules what cannot stand beside its own"
    assert suite.of_check() == {"max_slowdown": "3%", "against": "last:10", "store": "common.sqlite"}


def test_gates_are_common_where_the_suite_has_none_of_its_own(here: Path) -> None:
    text = '[check]\nmax_memory = "50%"\n[suite.a]\nmodels = "tiny"\ncheck = {}\n[suite.b]\nmodels = "tiny"\n'
    suites = suites_of(text, here)
    assert suites["a"].of_check() == {"max_memory": "50%"}
    assert (suites["a"].check, suites["b"].check) == ({}, None), "b has no gate"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[suite.a]\nmodel = "tiny"\n', "[suite.a] 'model'; did you mean 'models'?"),
        ('[suite.a]\nmodels = "tiny"\nlaunchs = 3\n', "unknown key of [suite.a] 'launchs'; did you mean 'launches'?"),
        ('[suite.a]\nmodels = "tiny"\noption = 3\n', "unknown key of [suite.a] 'option'; did you mean 'options'?"),
        ('[suite.a]\nmodels = "tiny"\nresume = "last"\n', "unknown key of [suite.a] 'resume'"),
        ('[suite.a]\nmodels = "tiny"\nlaunches = "many"\n', "[suite.a] launches: 'many' is not a valid number"),
        ('[suite.a]\nmodels = "tiny"\nlaunches = true\n', "[suite.a] launches: true is no value for it"),
        ('[suite.a]\nmodels = ["tiny", 3]\n', '[suite.a] models: 3 is not a text; write "3"'),
        ('[suite.a]\nmodels = "tiny"\nbackends = { eager = 1 }\n', "[suite.a] backends: a table is no value for it"),
        ('[suite.a]\nbackends = "eager"\n', "[suite.a] says not what to compare"),
        ("suite = 3\n", "suite must hold tables: [suite.NAME]"),
        ("[suite]\nnightly = 3\n", "suite.nightly must be a table: [suite.nightly]"),
        (
            '[suite.a]\nmodels = "tiny"\ncheck = { max_slow = "5%" }\n',
            "unknown key of [suite.a.check] 'max_slow'; did you mean 'max-slowdown'?",
        ),
        (
            '[suite.a]\nmodels = "tiny"\ncheck = { max_memory = "much" }\n',
            "[suite.a.check] max_memory: 'much' is neither a growth in percent",
        ),
        ('[suite.a]\nmodels = "tiny"\ncheck = 5\n', "suite.a.check must be a table"),
        (
            '[suite.a]\nmodels = "tiny"\nbackends = "fake-ok"\noptions = { fake-okay = { level = "all" } }\n',
            "[suite.a.options]: unknown backend of [suite.a] 'fake-okay'; did you mean 'fake-ok'?",
        ),
        (
            '[suite.a]\nmodels = "tiny"\nbackends = "eager"\noptions = { eager = 3 }\n',
            "[suite.a.options] holds a table a backend",
        ),
        (
            '[suite.a]\nmodels = "tiny"\nbackends = "eager"\noptions = { eager = { level = [1] } }\n',
            "[suite.a.options] eager.level: [1] is neither a number, true, false",
        ),
        ("[run]\nquick = true\n", "unknown table 'run'"),
        ("[suit.a]\n", "unknown table 'suit'; did you mean 'suite'?"),
    ],
)
def test_mistakes_say_where_whatever_the_command(text: str, says: str, here: Path, told: Any) -> None:
    (here / "harness.toml").write_text(text)
    for command in (["models"], ["run", "a"]):
        code, out, err = told(*command)
        assert (code, out) == (2, "")
        assert f"error: harness.toml: {says}" in err or f"error: harness.toml: unknown key of {says}" in err
        assert "Traceback" not in err


# ---- several suites


def suite(name: str, **compare: Any) -> Suite:
    return Suite(name=name, where="", compare={"models": ["tiny"]} | compare)


def test_suites_that_differ_in_their_models_are_one_comparison() -> None:
    parts = joined(
        [suite("a"), suite("b", models=["gemm", "tiny"]), suite("c", launches=3), suite("d", models=["bert-base"])]
    )
    assert [(names, one.compare["models"]) for names, one in parts] == [
        (("a", "b", "d"), ["tiny", "gemm", "bert-base"]),
        (("c",), ["tiny"]),
    ]
    gated = Suite(name="g", where="", compare={"models": ["tiny"]}, check={"max_memory": "5%"})
    assert len(joined([suite("a"), gated])) == 2, "another gate"
    assert len(joined([Suite(name="v", where="", compare={"suite": "vision"}), suite("a")])) == 2


TWO = """
[suite.first]
models = "tiny"
backends = "eager"
[suite.second]
models = "tiny"
backends = "eager"
launches = 2
"""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("run", "which suite?"),
        ("run --list first", "--list takes no suite"),
        ("run frist", "unknown suite 'frist'; did you mean 'first'?"),
        ("run first second --resume last", "--resume goes on with one, and these suites are 2 comparisons"),
        ("run first second --json", "one report of all cannot be made"),
        ("run first second --format html=report.html", "one report of all cannot be made"),
        ("--config other.toml run first", "other.toml cannot be read"),
    ],
)
def test_wrong_usage(words: str, part: str, here: Path, told: Any) -> None:
    (here / "harness.toml").write_text(TWO)
    code, out, err = told(*words.split())
    assert (code, out) == (2, "")
    assert part in err
    assert os.listdir(here) == ["harness.toml"]


def test_no_file_and_no_suite(here: Path, told: Any) -> None:
    assert "there is no harness.toml here" in told("run", "--list")[2]
    (here / "harness.toml").write_text("[compare]\n")
    code, _, err = told("run", "nightly")
    assert code == 2 and "harness.toml has no suite" in err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('models = "tinny"', "[suite.bad] unknown model 'tinny'"),
        ('models = "tiny"\nbackends = "fake"', "[suite.bad] unknown backend 'fake'"),
        ('models = "tiny"\nbackends = "eager:leval=1"', "[suite.bad] unknown option of eager 'leval'"),
        ('models = "tiny"\nprecision = "fp31"', "[suite.bad] unknown precision 'fp31'"),
        ('models = "tiny"\nquick = true\nlaunches = 2', "[suite.bad] --quick and --launches contradict each other"),
    ],
)
def test_mistakes_of_the_last_suite_are_found_before_the_first_runs(
    line: str, part: str, here: Path, told: Any
) -> None:
    (here / "harness.toml").write_text(f"{TWO}[suite.bad]\n{line}\n")
    code, out, err = told("run", "first", "bad")
    assert (code, out) == (2, "")
    assert f"harness.toml: {part}" in err
    assert os.listdir(here) == ["harness.toml"]


def test_one_suite_after_another_with_a_summary(here: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "harness.toml").write_text(TWO + '[suite.third]\nmodels = "tiny"\nbackends = "fake-ok"\n')
    outcomes: dict[Any, Any] = {5: StoreError("the disk is full", hint="make room"), 2: 3, 7: 130}

    def compared(given: dict[str, Any], explicit: set[str]) -> tuple[int, RunFolder]:
        assert (given["quiet"], explicit) == (True, {"quiet"})
        outcome = outcomes[given["launches"]]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, RunFolder(here / "results" / "run")

    monkeypatch.setattr(suite_running, "compared", compared)
    monkeypatch.setattr(suite_running, "_refuse_early", lambda *_: None)
    code, _, err = told("run", "first", "second", "-q")
    assert code == 3, "the gravest"
    assert "error: the disk is full\n  hint: make room\n" in err
    assert err.splitlines()[-2:] == ["first    could not be done", "second   a case has no result"]
    outcomes[5] = 130
    code, _, err = told("run", "first", "second", "-q")
    assert code == 130
    assert "or: harness run first --resume" in err
    assert err.splitlines()[-1] == "what is left: harness run first second"
    assert "second   not run" in err


@pytest.mark.parametrize(
    ("line", "slower", "code", "says"),
    [
        ('max_slowdown = "5%"', 1.5, 1, "onnxruntime"),
        ('max_slowdown = "80%"', 1.5, 0, "Nothing is worse in 2 cases."),
        ('against = "last:3"', 1.0, 0, "Nothing is worse in 2 cases."),
    ],
)
def test_gate_of_a_suite_decides_the_exit_code(
    line: str, slower: float, code: int, says: str, here: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'[suite.a]\nmodels = "resnet50"\nstore = "h.sqlite"\n[suite.a.check]\nremeasure = 0\n{line}\n'
    (here / "harness.toml").write_text(text)
    monkeypatch.delenv("HARNESS_STORE", raising=False)
    history = History(Location(path=here / "h.sqlite"), create=True)
    before = a_run("before", created="2026-03-01T00:00:00Z", seed=1)
    after = a_run("after", cases={"eager": 10.0, "onnxruntime": 5.0 * slower}, versions={"onnxruntime": "2.0"}, seed=2)
    (here / "results" / "after").mkdir(parents=True)
    folder = RunFolder(here / "results" / "after")
    folder.save(after)
    history.add(after)
    monkeypatch.setattr(suite_running, "compared", lambda *_: (0, folder))
    assert "no gate: no case has a" in told("run", "a")[2]
    history.add(before)
    history.set_baseline(points_of(before))
    found, out, err = told("run", "a")
    assert (found, err) == (code, "")
    assert says in out
    found, out, err = told("run", "a", "--json")
    assert (found, out) == (code, ""), "the comparison's own document is all that a machine gets"
    assert err.startswith(f"the gate {'failed' if code else 'passed'}; see it with: harness check ")


@pytest.mark.usefixtures("tiny")
def test_suite_is_measured_kept_and_held_against_its_baseline(cli: Cli, tmp_path: Path) -> None:
    text = '[suite.a]\nmodels = "tiny"\nbackends = "fake-ok"\nquick = true\nstore = "h.sqlite"\nlabel = "nightly"\n'
    (tmp_path / "harness.toml").write_text(text + 'check = { max_memory = "any", max_slowdown = "any" }\n')
    environment = {"HARNESS_STORE": ""}
    first = cli("run", "a", environment=environment)
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "results").iterdir()
    assert f"no gate: no case has a baseline; set one: harness baseline set {run.name}" in first.stderr
    kept = load_run(RunFolder(run))
    assert (kept.command, kept.labels, kept.settings.quick) == ("harness run a", ["nightly"], True)
    assert cli("baseline", "set", "last", "--store", "h.sqlite").returncode == 0
    second = cli("run", "a", "--label", "later", environment=environment)
    assert second.returncode == 0, second.stderr
    assert second.stdout.endswith("Nothing is worse in 1 case.\n")
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_list(here: Path, told: Any) -> None:
    (here / "harness.toml").write_text(NIGHTLY + '[suite.quick]\nsuite = "quick"\n')
    code, out, err = told("run", "--list")
    assert code == 0, err
    nightly, quick = out.splitlines()[2:]
    assert "tiny, gemm:n=64" in nightly and "slowdown=3% against=last:10" in nightly
    assert "suite quick" in quick and "no gate" in quick
    listed = json.loads(told("run", "--list", "--json")[1])
    assert listed["nightly"]["check"] == {"max_slowdown": "3%", "against": "last:10"}


# ---- init

WORKS = Probed(available=True, devices=["cpu"], versions={"one": "1.0"})


def test_written_file_is_valid_and_holds_what_works(here: Path) -> None:
    lacks = Probed(available=False, reason="not installed", hint="pip install 'harness[tvm]'")
    elsewhere = Probed(available=True, devices=[])
    text = config_text([("eager", WORKS), ("onnxruntime", WORKS), ("tvm", lacks), ("tensorrt-rtx", elsewhere)])
    suite = suites_of(text, here)["default"]
    assert suite.compare == {"models": ["resnet50"], "backends": ["eager", "onnxruntime"]}
    assert suite.of_check()["max_slowdown"] == "5%"
    assert "# not among them: tvm, pip install 'harness[tvm]'" in text
    assert "# not among them: tensorrt-rtx, it runs on none" in text


def test_every_line_that_is_commented_out_is_valid_too(here: Path) -> None:
    lines = config_text([("eager", WORKS), ("onnxruntime", WORKS)]).splitlines()
    active = "\n".join(line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines)
    suite = suites_of(active, here)["default"]
    given = suite.of_compare()
    assert (given["launches"], given["threads"], given["precisions"]) == (5, 4, "fp32,fp16")
    assert given["backends"][1].startswith("onnxruntime:") and given["store"]


def test_nothing_is_overwritten_unless_that_is_wished(here: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.starting.probe_all", lambda names: [(name, WORKS) for name in names])
    (here / "harness.toml").write_text("mine, and no TOML")
    code, _, err = told("init")
    assert (code, (here / "harness.toml").read_text()) == (2, "mine, and no TOML")
    assert "is there already" in err and "harness init --force" in err
    code, out, err = told("init", "--force")
    assert code == 0, err
    assert out.startswith("wrote harness.toml: suite default with eager, onnxruntime")
    assert told("run", "--list")[0] == 0


def test_place_that_cannot_be_written(here: Path, told: Any) -> None:
    (here / "harness.toml").mkdir()
    code, _, err = told("init", "--force")
    assert code == 2 and "harness.toml is a folder" in err


def test_backends_are_found_for_real(here: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.registry.backend_names", lambda: ["onnxruntime", "tensorrt"])
    code, out, err = told("init")
    assert code == 0, err
    (suite,) = read_suites(here / "harness.toml", commands.commands).values()
    assert set(suite.compare["backends"]) <= {"onnxruntime", "tensorrt"}
    assert ("onnxruntime" in suite.compare["backends"]) == ("onnxruntime" in out)
