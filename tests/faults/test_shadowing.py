"""Rivals of our everyday names, on PYTHONPATH and in the working folder, win no import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PLUGINS, ROOT, RUN_CLI, rows_of

CONSOLE_SCRIPT = Path(sys.executable).parent / "harness"
FRAMEWORKS = {"torch", "onnx", "onnxruntime", "tvm", "tvm_ffi", "tensorrt", "tensorrt_rtx"}


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each of our names, none of which can be imported."""
    folder = tmp_path_factory.mktemp("rivals")
    for name in ("harness", "backends", "models", "reports"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the rival {name} was imported')\n")
    return folder


@pytest.fixture(
    params=[
        pytest.param([sys.executable, str(RUN_CLI)], id="as pip writes it"),
        pytest.param(
            [str(CONSOLE_SCRIPT)],
            id="installed",
            marks=pytest.mark.skipif(not CONSOLE_SCRIPT.exists(), reason="harness is not installed here"),
        ),
    ]
)
def command(request: pytest.FixtureRequest) -> list[str]:
    """The console script."""
    return list(request.param)


def run_beside(
    rivals: Path, command: list[str], *arguments: str, first: bool = True
) -> subprocess.CompletedProcess[str]:
    path = [str(rivals), str(PLUGINS)] if first else [str(PLUGINS), "", "."]
    return subprocess.run(
        [*command, *arguments],
        cwd=rivals,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_rivals_would_win_without_us(rivals: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import backends"], cwd=rivals, capture_output=True, text=True, timeout=60
    )
    assert "the rival backends was imported" in done.stderr


@pytest.mark.parametrize("first", [True, False], ids=["named on the path", "the working folder on the path"])
def test_comparison_works_beside_rivals(rivals: Path, command: list[str], first: bool, tmp_path: Path) -> None:
    # A seed of its own, so that the exporting worker is part of it.
    done = run_beside(
        rivals, command, "compare", "--model", "tiny", "--backends", "fake-ok", "--quick", "--seed", "7",
        "--json", "--out", str(tmp_path), first=first,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rival" not in done.stderr
    assert [row["status"] for row in rows_of(done)] == ["ok"]


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["backends", "fake-ok"], ["doctor"]], ids=" ".join)
def test_other_commands_work_beside_rivals(rivals: Path, command: list[str], arguments: list[str]) -> None:
    done = run_beside(rivals, command, *arguments)
    assert done.returncode == 0, done.stderr
    assert "rival" not in done.stdout + done.stderr


@pytest.mark.usefixtures("tiny")
def test_parent_imports_no_framework(tmp_path: Path) -> None:
    script = tmp_path / "watched.py"
    script.write_text(
        f"import atexit, json, sys\n"
        f"sys.path[0] = {str(ROOT)!r}\n"
        f"atexit.register(lambda: open('modules.json', 'w').write(json.dumps(sorted(sys.modules))))\n"
        f"from _harness_boot import main\n"
        f"main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "compare", "--model", "tiny", "--backends", "fake-ok,eager", "--quick"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 3), done.stderr
    imported = {name.partition(".")[0] for name in json.loads((tmp_path / "modules.json").read_text())}
    assert "harness" in imported
    assert "backends" in imported
    assert not imported & FRAMEWORKS
