"""What all tests share: a cache of their own, and running the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from harness.artifact import Artifact
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from tests import fake_gpu as fake
from tests.support import PLUGINS, RUN_CLI, Cli

# A shared machine pauses now and then; how long one example takes says nothing about the code.
hypothesis.settings.register_profile("harness", deadline=None)
hypothesis.settings.load_profile("harness")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep together what shares fixtures when tests run in several processes: a backend's conformance, else a file."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        assert isinstance(item, pytest.Function)
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        alone = isinstance(backend, str) and "table" not in item.fixturenames  # a table is of all backends at once
        item.add_marker(pytest.mark.xdist_group(str(backend) if alone else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's own cache out of the tests, and the tests' exports and engines out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder))
        # Else Inductor compiles test programs for seconds, in every engine's folder anew, to see which of the vector
        # instructions that this processor has its compiler knows too.
        patch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_history() -> Iterator[None]:
    """Keep the tests' comparisons out of the user's history. Tests of the history have their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_STORE", "none")
        yield


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Start real workers, two threads each."""
    with Launcher(
        logs=tmp_path_factory.mktemp("logs"), threads=2, memory_limit_bytes=12 << 30, timeout_s=300.0
    ) as started:
        yield started


@pytest.fixture(scope="session")
def tiny(launcher: Launcher) -> Artifact:
    """Export the tiny model for real, once for all tests."""
    recipe = Recipe(model=ModelSpec(name="tiny"), dims={"batch": 1})
    return ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0]


@pytest.fixture(scope="session")
def fake_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the fake GPU; return the variables that make a process find it."""
    if lacks := fake.missing():
        if "tvm" in os.environ.get("HARNESS_REQUIRE", "").split(","):
            pytest.fail(f"tvm is required here, and so is the fake GPU that it is checked on: {lacks}")
        pytest.skip(lacks)
    return fake.install(tmp_path_factory.mktemp("fake-gpu"))


@pytest.fixture
def cli(cache: Path, tmp_path: Path) -> Cli:
    """Run `harness` in an empty folder, with the fake backends on the path."""

    def run(
        *arguments: str, environment: dict[str, str] | None = None, **kwargs: object
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": str(PLUGINS), "COLUMNS": "200", **(environment or {})}
        command = [sys.executable, str(RUN_CLI), *arguments]
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            command,
            **{"cwd": tmp_path, "env": variables, "capture_output": True, "text": True, "timeout": 300} | kwargs,
        )

    return run
