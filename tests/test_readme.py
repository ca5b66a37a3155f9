"""The commands of the README and of the pages beside it run, in their order, and its example backend is one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.api import Backend, InputSpec, ReferenceModel
from tests.support import ROOT, RUN_CLI

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETUP = "make compare"
"""Downloads, tunes and measures for minutes: here only what it would do is looked at. CI's own set-up is the other
command, `make test`."""


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, page by page."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]


def test_links_between_pages_lead_somewhere() -> None:
    seen = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
            seen += 1
    assert seen >= 6


def commands() -> Iterator[str]:
    """Yield the commands of all shell blocks."""
    for block in blocks("sh"):
        for line in block.splitlines():
            if command := line.partition(" #")[0].strip():
                yield command


def test_commands_run(tmp_path: Path) -> None:
    seen = 0
    variables = {**os.environ, "HARNESS_STORE": str(tmp_path / "history.sqlite")}
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            continue
        assert words[0] == ".venv/bin/harness", f"unknown kind of command: {command}"
        done = subprocess.run(
            [sys.executable, str(RUN_CLI), *words[1:]],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command
        seen += 1
    assert seen >= 6


def test_make_compare_would_run_the_comparison() -> None:
    assert SETUP in list(commands())
    done = subprocess.run(["make", "--dry-run", "compare"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "harness compare --model resnet50 --backends all" in done.stdout


def test_make_compare_with_variables(tmp_path: Path) -> None:
    command = next(line for line in commands() if line.startswith("make compare MODEL="))
    venv = Path(sys.prefix)
    if not any(venv.glob(".installed-*")):
        pytest.skip("this environment was not made by make")
    words = [*shlex.split(command), f"VENV={venv}"]
    words = [f"{word} --out {tmp_path}" if word.startswith("ARGS=") else word for word in words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    assert list(tmp_path.glob("*/run.json"))


@pytest.mark.parametrize(
    ("lacks", "says"),
    [("g++", "sudo apt-get install g++"), ("venv", "sudo apt-get install python3-venv")],
)
def test_missing_system_packages_are_one_line(lacks: str, says: str, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("make", "sh", "bash", "rm", "ls", "touch", "test", "env", "g++"):
        found = shutil.which(tool)
        if found and tool != lacks:
            (tools / tool).symlink_to(found)
    python = tools / "python3"
    code = "raise SystemExit(any('ensurepip' in word for word in __import__('sys').argv))"
    if lacks == "venv":  # Debian's python3 without python3-venv lacks ensurepip
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    else:
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "test", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert says in lines[0]
    assert not (tmp_path / "venv").exists()


def block_with(text: str) -> str:
    """Return the one block of Python that holds a text."""
    (found,) = (block for block in blocks("python") if text in block)
    return found


def test_example_model_is_a_model() -> None:
    scope: dict[str, object] = {"ReferenceModel": ReferenceModel, "InputSpec": InputSpec, "MyModule": object}
    exec(block_with("ReferenceModel"), scope)
    kind = scope["Mine"]
    assert isinstance(kind, type)
    assert issubclass(kind, ReferenceModel)
    model = kind()
    assert model.example_inputs({"batch": 2}, seed=0)["x"].shape == (2, 3, 32, 32)
    assert isinstance(model.build({"batch": 2}), object)


def test_example_factory_keeps_its_contract(tmp_path: Path) -> None:
    head = (
        "import torch\n\nclass MyModule(torch.nn.Module):\n    def forward(self, ids):\n        return ids * 2.0\n\n\n"
    )
    (tmp_path / "nets.py").write_text(head + block_with("def factory"))
    words = ["compare", "--model", "nets:factory", "--dim", "length=16", "--backends", "eager,onnxruntime", "--quick"]
    done = subprocess.run(
        [sys.executable, str(RUN_CLI), *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "ids int64[1, 16]" in done.stdout


def test_example_backend_is_a_backend() -> None:
    scope: dict[str, object] = {}
    exec(block_with("Backend, Capabilities"), scope)
    kind = scope["Mine"]
    assert isinstance(kind, type)
    assert issubclass(kind, Backend)
    assert kind().probe().available
