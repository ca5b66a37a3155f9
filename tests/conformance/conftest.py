"""One `backend` fixture over all registered backends, and strict typed markers for what a backend cannot do.

`notimpl`: we have not built it. `notyet`: its library cannot do it yet. `never`: its nature forbids it. Each names
backend, exception and reason. All are strict: a check that starts to pass breaks the build until its marker goes.
"""

from __future__ import annotations

import os

import pytest

from harness import protocol, registry
from harness.artifact import Artifact
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from tests.conformance.running import Results, run_checks
from tests.support import ROOT

MARKERS = ("notimpl", "notyet", "never")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", registry.backend_names(), scope="session")


@pytest.fixture(scope="session")
def probed(backend: str, launcher: Launcher) -> protocol.Probed:
    """Probe a backend in a process of its own."""
    with launcher.start(f"probe-{backend}") as worker:
        return worker.call(protocol.Probe(backend=backend), protocol.Probed, timeout_s=120)


@pytest.fixture(scope="session")
def usable(backend: str, probed: protocol.Probed) -> str:
    """Skip where a backend is unavailable, unless HARNESS_REQUIRE names it: CI cannot go green by skipping."""
    if not probed.available:
        if backend in os.environ.get("HARNESS_REQUIRE", "").split(","):
            pytest.fail(f"{backend} is required here but unavailable: {probed.reason}")
        pytest.skip(f"{backend}: {probed.reason}")
    return backend


@pytest.fixture(scope="session")
def tiny2(launcher: Launcher) -> Artifact:
    """Export the tiny model with a batch of two."""
    return ensure_artifact(
        Recipe(model=ModelSpec(name="tiny"), dims={"batch": 2}), launcher, on_progress=lambda _: None
    )[0]


PECULIAR = ModelSpec(kind="factory", name="tests.conformance.peculiar:make", root=str(ROOT))


@pytest.fixture(scope="session")
def peculiar(launcher: Launcher) -> Artifact:
    """Export the model with unusual inputs and outputs."""
    recipe = Recipe(model=PECULIAR, dims={"batch": 1}, weights="own", input_sets=2)
    return ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0]


@pytest.fixture(scope="session")
def swept(launcher: Launcher) -> Artifact:
    """Export it again for every batch from one to three, with inputs of the largest."""
    recipe = Recipe(model=PECULIAR, dims={"batch": 3}, dynamic={"batch": (1, 3)}, weights="own", input_sets=2)
    return ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0]


@pytest.fixture(scope="session")
def results(
    usable: str, tiny: Artifact, tiny2: Artifact, peculiar: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Run all session checks of a backend where it runs, on the CPU if it can."""
    devices = registry.backend(usable).capabilities.devices
    device = "cpu" if "cpu" in devices else f"{devices[0]}:0"
    return run_checks(usable, device, [tiny, tiny2, peculiar], tmp_path_factory.mktemp(usable))


@pytest.fixture(autouse=True)
def typed_markers(request: pytest.FixtureRequest) -> None:
    """Turn a marker that names the running backend into a strict expected failure."""
    if "backend" not in request.fixturenames:
        return
    backend = request.getfixturevalue("backend")
    for name in MARKERS:
        for marker in request.node.iter_markers(name):
            lacks = not request.getfixturevalue("probed").devices
            if backend in marker.args and (lacks or not marker.kwargs.get("without_device")):
                request.applymarker(
                    pytest.mark.xfail(
                        strict=True, raises=marker.kwargs["raises"], reason=f"{name}: {marker.kwargs['reason']}"
                    )
                )
