"""Tests that need an NVIDIA GPU: skipped with the driver's reason where none answers, unless `HARNESS_REQUIRE=gpu`."""

from __future__ import annotations

import os

import pytest

from backends.cuda_device import Gpu, driver
from harness import protocol, registry
from harness.api import Backend
from harness.artifact import Artifact
from harness.errors import UnavailableError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from tests.conformance.conftest import PECULIAR
from tests.conformance.running import Results, run_checks

DEVICE = "cuda:0"


def on_gpus() -> list[str]:
    """Return the backends that run on a GPU."""
    kinds: dict[str, type[Backend]] = {name: registry.backend(name) for name in registry.backend_names()}
    return [name for name, kind in kinds.items() if "cuda" in kind.capabilities.devices]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gpu_backend" in metafunc.fixturenames:
        metafunc.parametrize("gpu_backend", on_gpus(), scope="session")


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    """Skip where no GPU answers."""
    try:
        return driver().gpu(DEVICE)
    except UnavailableError as exc:
        if "gpu" in os.environ.get("HARNESS_REQUIRE", "").split(","):
            pytest.fail(f"a GPU is required here: {exc.message}")
        pytest.skip(exc.message)


@pytest.fixture(scope="session")
def usable_on_gpu(gpu_backend: str, gpu: Gpu, launcher: Launcher) -> str:
    """Skip a backend that sees no GPU, unless HARNESS_REQUIRE names it."""
    with launcher.start(f"probe-{gpu_backend}") as worker:
        probed = worker.call(protocol.Probe(backend=gpu_backend), protocol.Probed, timeout_s=120)
    seen = probed.available and any(device.startswith("cuda") for device in probed.devices)
    if not seen:
        reason = f"{gpu_backend} sees no GPU: {probed.reason or ', '.join(probed.devices)}"
        if gpu_backend in os.environ.get("HARNESS_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    return gpu_backend


@pytest.fixture(scope="session")
def gpu_results(
    usable_on_gpu: str, tiny: Artifact, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Run all session checks of a backend on the GPU."""
    recipes = (
        Recipe(model=ModelSpec(name="tiny"), dims={"batch": 2}),
        Recipe(model=PECULIAR, dims={"batch": 1}, weights="own", input_sets=2),
    )
    others = [ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0] for recipe in recipes]
    return run_checks(usable_on_gpu, DEVICE, [tiny, *others], tmp_path_factory.mktemp(usable_on_gpu))
