"""Names that several tests need."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
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


def run_graph(graph: Artifact, source: Artifact, index: int = 0) -> dict[str, np.ndarray]:
    """Run an artifact's graph in ONNX Runtime on an input set of the artifact that it was made from."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.onnx_path, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in source.outputs]
    return dict(zip(names, session.run(names, source.input_set(index)), strict=True))
