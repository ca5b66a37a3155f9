"""The workflow in docs/ci: what it asks GitHub for is well formed, and its harness commands run."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import commands
from harness.cli import cli
from tests.history.conftest import Harness
from tests.support import PLUGINS, ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "docs/ci/github-workflow.yml").read_text(encoding="utf-8"))
HERE = {"MODEL": "tiny", "BACKENDS": "fake-ok,fake-planted"}


def lines(job: str) -> list[list[str]]:
    """Return the words of the harness commands of a job, with its variables as the shell would put them in."""
    found = [
        shlex.split(line)
        for step in WORKFLOW["jobs"][job]["steps"]
        for line in step.get("run", "").splitlines()
        if line.strip().startswith("harness ")
    ]
    variables = WORKFLOW["env"] | HERE
    return [[re.sub(r"\$(\w+)", lambda name: variables[name[1]], word) for word in words[1:]] for words in found]


def test_steps_are_well_formed() -> None:
    assert "on" in {str(key).replace("True", "on") for key in WORKFLOW}  # YAML 1.1 reads `on` as true
    for job in WORKFLOW["jobs"].values():
        assert job["timeout-minutes"] and job["runs-on"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            # What comes from a pull request must not become part of a script.
            assert "${{" not in step.get("run", "")
            assert re.fullmatch(r"[\w-]+(/[\w-]+)+@v\d+", step.get("uses", "actions/any@v1"))
        names = [step.get("name") for step in job["steps"]]
        assert names.index("Check") < names.index("Report")


def test_every_command_parses() -> None:
    seen = [words for job in WORKFLOW["jobs"] for words in lines(job)]
    assert {words[0] for words in seen} == {"doctor", "compare", "check"}
    for words in seen:
        command = cli.commands[words[0]]
        command.make_context(words[0], words[1:])


@pytest.mark.usefixtures("tiny")
def test_pull_request_runs(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setenv("HARNESS_STORE", str(WORKFLOW["env"]["HARNESS_STORE"]))
    monkeypatch.setitem(commands.QUICK, "rounds", 2)
    monkeypatch.setitem(commands.QUICK, "slice_s", 0.02)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("harness.toml").write_text("[compare]\nquick = true\n\n[check]\nremeasure = 0\n")
    for words in lines("pull-request"):
        if words[0] == "compare" and "head" in words:
            monkeypatch.setenv("PLANTED_ENGINE_BYTES", "30000")
        done = harness(*words)
        assert done.returncode == (1 if words[0] == "check" else 0), done.stdout + done.stderr
    assert "::error title=harness%3A tiny%2C fake-planted::engine 3.00x" in done.stderr
    assert "| **regression** |" in Path("summary.md").read_text()
    kept = WORKFLOW["jobs"]["pull-request"]["steps"][-1]["with"]["path"].split()
    for pattern in kept:
        assert list(Path().glob(pattern)), f"{pattern} is uploaded, and nothing wrote it"
    assert os.path.exists(WORKFLOW["env"]["HARNESS_STORE"])
