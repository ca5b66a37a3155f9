"""Run the session checks of one backend on one device, and raise what it raised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import errors, registry
from harness.artifact import Artifact

SCRIPT = Path(__file__).with_name("session_checks.py")
Results = dict[str, "list[str] | None"]
"""Check -> None where it was kept, or the kind of exception and its message."""


def run_checks(
    backend: str,
    device: str,
    artifacts: Sequence[Artifact],
    folder: Path,
    *,
    script: Path = SCRIPT,
    variables: Mapping[str, str] | None = None,
) -> Results:
    """Run all session checks in one process, with the backend's environment, and return what each said.

    Args:
        artifacts: The tiny model, the same with a batch of two, and the one with peculiar tensors.
        folder: Takes engines and caches.
        script: What runs them.
        variables: Of its environment, beyond those that the backend asks for.
    """
    kind = registry.backend(backend)
    done = subprocess.run(
        [sys.executable, str(script), backend, device, *(str(one.folder) for one in artifacts), str(folder)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            **kind.environment(kind.Options(), folder / "engine", 1),
            **(variables or {}),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{backend}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    answers: Results = json.loads(done.stdout)
    return answers


def hold(results: Results, check: str) -> None:
    """Raise what the backend raised in this check, in its own kind where it is one of ours."""
    answer = results[check]
    if answer is None:
        return
    kind, message = answer
    raise getattr(errors, kind, AssertionError)(f"{kind}: {message}")
