"""What the GPU suite on a bare machine says is missing is all that it imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.gpu import run
from tests.support import ROOT

OWN = {"_harness_boot", "backends", "harness", "models", "reports", "tests"}
FILES = (
    *ROOT.glob("harness/**/*.py"),
    *ROOT.glob("reports/*.py"),
    *(ROOT / "tests" / f"{name}.py" for name in ("conftest", "support", "torch_support")),
    *ROOT.glob("tests/gpu/*.py"),
    *(ROOT / "tests" / "conformance" / f"{name}.py" for name in ("conftest", "peculiar", "running", "session_checks")),
)


def imported(file: Path) -> set[str]:
    """Return the libraries that importing a file imports."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - OWN - set(sys.stdlib_module_names)


def test_it_names_every_library_that_it_cannot_do_without() -> None:
    used = {library for file in FILES for library in imported(file)}
    assert {"scipy", "sqlalchemy"} <= used <= set(run.NEEDED), used - set(run.NEEDED)
    assert "pynvml" in run.NEEDED, "imported when a GPU is first looked for"


def test_what_is_missing_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "present", lambda module: module not in ("alembic", "onnx"))
    assert run.main() == 2
    assert "error: missing: alembic, onnx; pip install" in capsys.readouterr().err
