"""Names that several tests need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifact import Artifact

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "tests" / "plugins"
"""Put on PYTHONPATH, this folder registers the fake backends through their entry points."""
RUN_CLI = ROOT / "tests" / "run_cli.py"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return the rows of the first table of a comparison that printed JSON."""
    assert done.stdout, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["workloads"][0]["rows"]
    return rows


def interrupted(arguments: Sequence[str], at: str, folder: Path) -> tuple[int, str, str]:
    """Press Ctrl-C as soon as a line of progress holds `at`; return exit code, stdout, and stderr up to the line."""
    with subprocess.Popen(
        [sys.executable, str(RUN_CLI), *arguments],
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        assert running.stderr is not None
        told = []
        for line in running.stderr:
            told.append(line)
            if at in line:
                running.send_signal(signal.SIGINT)
                break
        shown, rest = running.communicate(timeout=120)
    assert told and at in told[-1], f"it never said '{at}': {''.join(told)}"
    assert "Traceback" not in rest
    return running.returncode, shown, "".join(told)


def run_graph(graph: Artifact, source: Artifact, index: int = 0) -> dict[str, np.ndarray]:
    """Run an artifact's graph in ONNX Runtime on an input set of the artifact that it was made from."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.onnx_path, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in source.outputs]
    return dict(zip(names, session.run(names, source.input_set(index)), strict=True))
