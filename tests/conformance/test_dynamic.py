"""One engine for a whole sweep: compiled at its largest shape, loaded in fresh processes at any other.

| backend              | how                                                     | a batch of 1                     |
|----------------------|---------------------------------------------------------|----------------------------------|
| onnxruntime          | the graph's dimensions stay free                        | the same graph                   |
| torch-compile        | a graph for every range of sizes that torch tells apart | a graph of its own               |
| torch-compile, aot   | a package for every such range                          | the package of the lowest range  |
| tensorrt, -rtx       | an optimisation profile, tuned for the largest          | the same engine                  |
| tvm                  | symbolic shapes, without a schedule                     | the same engine                  |
| eager                | never: it has no engine, and takes every shape as it is |                                  |
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness import drift, errors, protocol, registry
from harness.artifact import Artifact, read_tensors
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher, Worker
from harness.modelspec import ModelSpec
from tests.support import ROOT

TIMEOUT_S = 300.0
PICTURES = ModelSpec(kind="factory", name="tests.conformance.pictures:make", root=str(ROOT))
VARIANTS: dict[str, tuple[dict[str, bool], ...]] = {"torch-compile": ({}, {"aot": True})}
"""Options under which a backend makes engines in different ways."""

no_engine = pytest.mark.never("eager", raises=errors.UsageError, reason="it has no engine")
nothing_to_load_on = pytest.mark.never(
    "tensorrt-rtx", raises=errors.RunError, reason="an engine needs its device to be loaded", without_device=True
)


class Engine:
    """A backend's engine for a sweep, and the way to open it in a new process."""

    def __init__(
        self, launcher: Launcher, backend: str, options: dict[str, bool], folder: Path, graph: Artifact
    ) -> None:
        kind = registry.backend(backend)
        parsed = msgspec.convert({"dynamic": True, **options}, type=kind.Options)
        kind.check(parsed)
        folder.mkdir()
        devices = kind.capabilities.devices
        self._launcher = launcher
        self._environment = kind.environment(parsed, folder, 1)
        self._case = protocol.CaseSpec(
            backend=backend,
            options={"dynamic": True, **options},
            artifact=str(graph.folder),
            device="cpu" if "cpu" in devices else f"{devices[0]}:0",
            precision="fp32",
            threads=1,
            engine_dir=str(folder),
            cache_dir=str(folder.with_name("cache")),
        )

    def start(self, name: str) -> Worker:
        """Start a process with the environment that the backend asks for."""
        return self._launcher.start(f"dynamic-{self._case.backend}-{name}", self._environment, threads=1)

    def compile(self, worker: Worker) -> protocol.Opened:
        """Compile and save."""
        opened = worker.call(protocol.Compile(case=self._case), protocol.Opened, timeout_s=TIMEOUT_S)
        worker.call(protocol.Save(), protocol.Took, timeout_s=TIMEOUT_S)
        return opened

    def load(self, worker: Worker, fed_by: Artifact) -> protocol.Opened:
        """Load at the shape of an artifact's inputs."""
        case = msgspec.structs.replace(self._case, fed_by=str(fed_by.folder))
        return worker.call(protocol.Load(case=case), protocol.Opened, timeout_s=TIMEOUT_S)


@pytest.fixture(scope="session")
def engines(
    usable: str, swept: Artifact, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Engine, protocol.Opened]]:
    """Compile for the sweep, in each of the backend's ways."""
    folder = tmp_path_factory.mktemp(f"dynamic-{usable}")
    out = []
    for index, options in enumerate(VARIANTS.get(usable, ({},))):
        engine = Engine(launcher, usable, options, folder / str(index), swept)
        with engine.start(f"{index}-compile") as worker:
            out.append((engine, engine.compile(worker)))
    return out


@pytest.fixture(scope="session")
def one(peculiar: Artifact) -> Artifact:
    """The point of the sweep that is hardest for compilers: a batch of one."""
    return peculiar


@no_engine
def test_compiles_for_all_sizes(usable: str, request: pytest.FixtureRequest) -> None:
    engines: list[tuple[Engine, protocol.Opened]] = request.getfixturevalue("engines")
    assert registry.backend(usable).capabilities.dynamic_shapes
    assert all(opened.provider for _, opened in engines)


@no_engine
@nothing_to_load_on
def test_runs_every_size_without_compiling_again(
    usable: str, swept: Artifact, one: Artifact, launcher: Launcher, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engines: list[tuple[Engine, protocol.Opened]] = request.getfixturevalue("engines")
    for number, (engine, compiled) in enumerate(engines):
        # One other way of making the engine shows itself at the hardest size; each process costs seconds.
        for point in (one, swept) if number == 0 else (one,):
            with engine.start(f"{number}-load") as worker:
                opened = engine.load(worker, point)
                assert opened.provider == compiled.provider
                assert not [note for note in opened.notes if "anew" in note]
                assert not list(worker._scratch.rglob("*.gch")), "compiling headers is no part of loading"
                for index in range(point.manifest.input_sets):
                    path = tmp_path / "outputs.safetensors"
                    worker.call(protocol.Outputs(index=index, path=str(path)), protocol.Written, timeout_s=TIMEOUT_S)
                    rows = drift.judge(
                        read_tensors(path),
                        reference=point.reference(index),
                        golden=point.golden(index),
                        input_set=index,
                    )
                    assert all(row.passed for row in rows), [row.reason for row in rows]


@pytest.mark.parametrize("way", VARIANTS["torch-compile"])
def test_a_convolution_on_both_sides_of_what_torch_tells_apart(
    way: dict[str, bool], launcher: Launcher, tmp_path: Path
) -> None:
    pytest.importorskip("torch")

    def exported(batch: int, free: dict[str, tuple[int, int]]) -> Artifact:
        recipe = Recipe(model=PICTURES, dims={"batch": batch}, dynamic=free, weights="own", input_sets=1)
        return ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0]

    engine = Engine(launcher, "torch-compile", way, tmp_path / "engine", exported(32, {"batch": (1, 32)}))
    with engine.start("compile") as worker:
        assert "batch 16 to 32; batch" in engine.compile(worker).notes[0]
    for batch in (1, 4, 32):
        point = exported(batch, {})
        with engine.start("load") as worker:
            assert not [note for note in engine.load(worker, point).notes if "anew" in note]
            worker.call(protocol.RunOnce(), protocol.Took, timeout_s=TIMEOUT_S)
            slice_ = protocol.Sample(boundary="host-to-host", min_iterations=5, min_seconds=0.0)
            assert worker.call(slice_, protocol.Samples, timeout_s=TIMEOUT_S).compilations == 0
            path = tmp_path / "outputs.safetensors"
            worker.call(protocol.Outputs(index=0, path=str(path)), protocol.Written, timeout_s=TIMEOUT_S)
            rows = drift.judge(read_tensors(path), reference=point.reference(0), golden=point.golden(0), input_set=0)
            assert rows, "nothing was compared"
            assert all(row.passed for row in rows), [row.reason for row in rows]


def test_only_backends_with_engines_for_a_sweep_say_so(backend: str) -> None:
    assert registry.backend(backend).capabilities.dynamic_shapes == (backend != "eager")
