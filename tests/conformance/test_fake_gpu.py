"""The rules of every session on a GPU that is not there, for backends whose own CUDA runtime runs on it.

TVM's does: its CUDA runtime, its generated kernels and its sessions do all that they would do on a GPU. That shows
that the results are right; how fast they come, and a real driver's moods, only a real one shows.
"""

from __future__ import annotations

import pytest

from harness.artifact import Artifact
from tests.conformance.running import Results, hold, run_checks
from tests.conformance.session_checks import CHECKS
from tests.fake_gpu import HERE


@pytest.fixture(scope="module")
def results(
    fake_gpu: dict[str, str],
    tiny: Artifact,
    tiny2: Artifact,
    peculiar: Artifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    """Run all session checks in one process."""
    script = HERE / "conformance.py"
    folder = tmp_path_factory.mktemp("fake-gpu")
    return run_checks("tvm", "cuda:0", [tiny, tiny2, peculiar], folder, script=script, variables=fake_gpu)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_keeps_the_rule(results: Results, check: str) -> None:
    hold(results, check)
