"""The script that runs the GPU suite names all that it needs before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import run
from tests.support import ROOT


def test_what_the_project_depends_on_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "installed", lambda name: False)
    named = run.missing()
    assert {"sqlalchemy", "jinja2", "nvidia-ml-py", "plotext", "torch", "hypothesis"} <= set(named)
    assert ("tomli" in named) is (sys.version_info < (3, 11))


def test_nothing_is_run_where_something_is_missing(tmp_path: Path) -> None:
    # Without site packages nothing is installed.
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(ROOT / "tests" / "gpu" / "run.py")],
        env={**os.environ, "HARNESS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing: alembic, click, ")
    assert "pip install -c constraints.txt" in done.stderr
