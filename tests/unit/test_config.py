"""Defaults from harness.toml: read, overruled by the command line, and refused with the place of the mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import Cli, rows_of


def write(folder: Path, text: str, name: str = "harness.toml") -> None:
    (folder / name).write_text(text, encoding="utf-8")


def test_file_sets_defaults_and_the_command_line_comes_first(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, '[compare]\nmodel = "tiny"\nbackends = ["fake-ok", "fake-nan"]\nquick = true\n')
    done = cli("compare", "--json", "--backends", "fake-ok", "--seed", "3")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert [row["id"] for row in rows_of(done)] == ["fake-ok"]
    assert table["settings"]["quick"] is True
    assert table["settings"]["models"] == ["tiny"]
    assert table["settings"]["seed"] == 3


def test_another_file_can_be_named(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, '[cache]\nengines = "perhaps"\n', "other.toml")
    assert cli("cache").returncode == 0
    done = cli("--config", "other.toml", "cache")
    assert done.returncode == 2
    assert "other.toml: [cache] engines" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[compare\n", "harness.toml is not valid TOML"),
        ("[compere]\nbatch = 1\n", "unknown table 'compere'; did you mean 'compare'?"),
        ("compare = 3\n", "compare must be a table"),
        ("[compare]\nbatchs = 1\n", "unknown key of [compare] 'batchs'; did you mean 'batch'?"),
        ('[compare]\nbatch = "1,4,many"\n', "batch: sizes: 'many' is not a number"),
        ("[compare]\nbatch = 0\n", "harness.toml: [compare] batch: sizes: '0' is not a number from 1"),
        ('[compare]\nthreads = "many"\n', "harness.toml: [compare] threads: 'many' is not a valid number"),
        ('[compare]\nresume = "last"\n', "unknown key of [compare] 'resume'"),
        ("[compare]\nlock-clocks = 1800\n", "unknown key of [compare] 'lock-clocks'"),
    ],
)
def test_mistakes_say_where(text: str, says: str, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, text)
    done = cli("compare", "--quick")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_missing_file_that_was_named_is_an_error(cli: Cli) -> None:
    done = cli("--config", "nowhere.toml", "doctor")
    assert done.returncode == 2
    assert "nowhere.toml cannot be read" in done.stderr
