"""The suite of `session_checks.py` on a GPU that is not there, for backends whose own CUDA runtime runs on it.

TVM's does: its CUDA runtime, its generated kernels and its sessions do all that they would do on a GPU. That shows
that the results are right; how fast they come, and a real driver's moods, only a real one shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.artifact import Artifact
from tests import fake_cuda
from tests.conformance import session_checks


@pytest.fixture(scope="module")
def results(
    fake_gpu: dict[str, str],
    tiny: Artifact,
    tiny2: Artifact,
    peculiar: Artifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str] | None]:
    """Run all checks in one process, and return what each said."""
    folder: Path = tmp_path_factory.mktemp("fake-gpu")
    kind = registry.backend("tvm")
    done = subprocess.run(
        [
            sys.executable,
            str(fake_cuda.HERE / "conformance.py"),
            kind.name,
            *map(str, (tiny.folder, tiny2.folder, peculiar.folder, folder)),
        ],
        env={**os.environ, **kind.environment(kind.Options(), folder / "engine", 1), **fake_gpu},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, list[str] | None] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("check", [check.__name__ for check in session_checks.CHECKS])
def test_on_the_fake_gpu(check: str, results: dict[str, list[str] | None]) -> None:
    assert results[check] is None, results[check]
