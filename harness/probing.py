"""Cuts of a graph on a real backend: every engine in a worker of its own, every failure an error that says why."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness import devices, drift, protocol, refusals, registry
from harness.artifact import Artifact, read_tensors
from harness.conversion import Calibration, ensure_converted
from harness.engines import backend_cache
from harness.environments.preparing import release_in
from harness.errors import HarnessError, UnavailableError, UnsupportedError
from harness.export import Recipe, ensure_artifact
from harness.interpreter import Interpreter
from harness.launcher import Answer, Launcher, OnProgress, Worker
from harness.localization import Alone
from harness.lowering import readable
from harness.modelspec import ModelSpec
from harness.paths import make_folder
from harness.plan import FP32, Variant
from harness.precisions import CALIBRATED, CONVERTED
from harness.records import OutputDrift
from harness.rounds import Seat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every engine of one command has in common."""

    variant: Variant
    precision: str
    device: str
    device_chosen: bool
    threads: int
    calibration: Calibration
    command: str
    """What the user typed."""
    interpreter: Interpreter | None = None
    """What the backend's workers run in, where it is another one than that of harness."""


class Bench:
    """Builds engines of artifacts and returns their outputs."""

    def __init__(self, asked: Asked, launcher: Launcher, scratch: Path, on_progress: OnProgress) -> None:
        self._asked = asked
        self._launcher = launcher
        self._scratch = scratch
        self._on_progress = on_progress
        self._count = 0
        self.version: str | None = None

    def refuse(self) -> None:
        """Refuse what the backend cannot do, before anything is exported for it.

        Raises:
            UnsupportedError: It compiles no ONNX graph, or lacks the device or the precision.
        """
        name = self._asked.variant.backend
        if registry.backend(name).capabilities.source != "onnx":
            able = [one for one in registry.backend_names() if registry.backend(one).capabilities.source == "onnx"]
            raise UnsupportedError(
                f"{name} compiles a torch module, whose inside has no names that could be compared; drift is looked "
                "for in ONNX graphs",
                hint=f"backends that compile those: {', '.join(able)}",
            )
        refusals.refuse_unsupported(self.spec("", None, Path()), self._asked.device_chosen)

    def spec(self, artifact: str, fed_by: str | None, engine: Path) -> protocol.CaseSpec:
        """Return a case as a worker needs it."""
        asked = self._asked
        return protocol.CaseSpec(
            backend=asked.variant.backend,
            options=asked.variant.options,
            artifact=artifact,
            fed_by=fed_by,
            device=asked.device,
            precision=asked.precision,
            threads=asked.threads,
            engine_dir=str(engine),
            cache_dir=str(backend_cache(asked.variant.backend)),
        )

    def outputs(self, artifact: Artifact, fed_by: Artifact | None, sets: int) -> list[Tensors]:
        """Compile a graph and return its outputs, one entry a set of inputs.

        Raises:
            HarnessError: The backend gave no result; the error has its log.
        """
        asked, limit = self._asked, self._launcher.timeout_s
        self._count += 1
        folder = make_folder(self._scratch / f"engine-{self._count}", "the engine folder")
        artifact = self._readable(artifact)
        spec = self.spec(str(artifact.folder), str(fed_by.folder) if fed_by else None, folder)
        make_folder(Path(spec.cache_dir), "the backend's cache folder")
        kind = registry.backend(spec.backend)
        environment = kind.environment(asked.variant.parsed(), folder, asked.threads)
        name = f"{asked.variant.slug}-{self._count}"
        try:
            with self._launcher.start(name, environment, threads=asked.threads, python=self._python) as worker:
                self._compile(spec, worker)
                out: list[Tensors] = []
                for index in range(sets):
                    path = folder / f"outputs-{index}.safetensors"
                    request = protocol.Outputs(index=index, path=str(path))
                    worker.call(request, protocol.Written, timeout_s=limit)
                    out.append(read_tensors(path))
                return out
        except HarnessError as exc:
            exc.log = exc.log or str(self._launcher.logs / f"{name}.log")
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def seat(self, case: str, artifact: Artifact, fed_by: Artifact | None, precision: str) -> Seat:
        """Compile a graph, save its engine, and return what a launch needs to measure it.

        Raises:
            HarnessError: The backend gave no engine; the error has its log.
        """
        asked, limit = self._asked, self._launcher.timeout_s
        folder = make_folder(self._scratch / f"engine-{case}", "the engine folder")
        artifact = self._readable(artifact)
        spec = self.spec(str(artifact.folder), str(fed_by.folder) if fed_by else None, folder)
        # An option of the case's own would say otherwise where all of it is in float32.
        options = {key: value for key, value in spec.options.items() if key != "precision"}
        spec = msgspec.structs.replace(spec, precision=precision, options=options)
        environment = registry.backend(spec.backend).environment(asked.variant.parsed(), folder, asked.threads)
        refusals.refuse_unsupported(spec, asked.device_chosen)
        name = f"{asked.variant.slug}-{case}"
        try:
            with self._launcher.start(name, environment, threads=asked.threads, python=self._python) as worker:
                provider = self._compile(spec, worker).provider
                worker.call(protocol.RunOnce(), protocol.Took, timeout_s=limit)
                worker.call(protocol.Save(), protocol.Took, timeout_s=limit)
        except HarnessError as exc:
            exc.log = exc.log or str(self._launcher.logs / f"{name}.log")
            raise
        return Seat(case=case, spec=spec, environment=environment, slug=name, provider=provider, python=self._python)

    @property
    def _python(self) -> str | None:
        return self._asked.interpreter.executable if self._asked.interpreter else None

    def _readable(self, artifact: Artifact) -> Artifact:
        asked = self._asked
        release = release_in(asked.variant, asked.interpreter, devices.kind(asked.device))
        return readable(artifact, registry.backend(asked.variant.backend), release, self._launcher)

    def _compile(self, spec: protocol.CaseSpec, worker: Worker) -> protocol.Opened:
        limit = self._launcher.timeout_s
        imported = worker.call(protocol.Import(backend=spec.backend), protocol.Imported, timeout_s=limit)
        probed = imported.probed
        if not probed.available:
            raise UnavailableError(
                probed.reason or "it gave no reason", hint=probed.hint or registry.install_hint(spec.backend)
            )
        refusals.refuse_unseen(spec, probed)
        self.version = next(iter(probed.versions.values()), None)
        request = protocol.Compile(case=spec)
        opened = worker.call(request, protocol.Opened, timeout_s=limit, on_progress=self._on_progress)
        refusals.refuse_elsewhere(spec, opened)
        if not opened.runnable:
            raise UnsupportedError(
                f"the engine is for a device that is not here ({opened.provider}): nothing to compare"
            )
        return opened


class GraphLab:
    """Cuts an artifact's graph and runs the parts: what `harness.localizing` searches with. A context manager."""

    def __init__(
        self, asked: Asked, bench: Bench, source: Artifact, graph: Artifact, launcher: Launcher, scratch: Path, to: Path
    ) -> None:
        self.source = source
        self.precision = asked.precision
        self._asked = asked
        self._bench = bench
        self._graph = graph
        self._launcher = launcher
        self._scratch = scratch
        self._to = to
        self._count = 0
        self._nodes = 0
        self._cutter: Worker | None = None

    def __enter__(self) -> GraphLab:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cutter is not None:
            self._cutter.close()

    def base(self) -> list[Tensors]:
        fed_by = None if self._graph is self.source else self.source
        return self._bench.outputs(self._graph, fed_by, self.source.manifest.input_sets)

    def survey(self, input_set: int) -> protocol.Surveyed:
        request = protocol.Survey(source=str(self.source.folder), graph=str(self._graph.folder), input_set=input_set)
        return self._call(request, protocol.Surveyed)

    def reference(self, names: Sequence[str], input_set: int) -> Tensors:
        part = self._cut(self._graph, [], names, input_set, whole=False)
        try:
            return part.reference(0)
        finally:
            shutil.rmtree(part.folder, ignore_errors=True)

    def probe(self, names: Sequence[str], input_set: int, *, whole: bool) -> tuple[Tensors, Tensors]:
        part = self._cut(self._graph, [], names, input_set, whole=whole)
        try:
            return self._bench.outputs(part, None, 1)[0], part.reference(0)
        finally:
            shutil.rmtree(part.folder, ignore_errors=True)

    def alone(self, inputs: Sequence[str], output: str, input_set: int) -> Alone:
        folder = self._to
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder, "the folder")
        nodes = self._write_alone(folder, inputs, output, input_set)
        words = ["harness", "compare", "--model", str(folder / "model.onnx"), "--backends", self._backend()]
        words += ["--precision", self.precision] if self.precision != FP32 else []
        words += ["--inputs", str(folder / "inputs.npz")]
        calibration = folder / "calibration"
        words += ["--calibration", str(calibration)] if calibration.is_dir() else []
        words += ["--device", self._asked.device] if self._asked.device_chosen else []
        blank = Alone(folder=str(folder), nodes=nodes, shows=None, reproduce=shlex.join(words))
        try:
            rows = self._compared(folder)
        except HarnessError as exc:
            note = f"{exc.status.replace('_', ' ')}: {exc.message}"
            again = self._asked.command if isinstance(exc, UnsupportedError) else blank.reproduce
            return msgspec.structs.replace(blank, note=note, reproduce=again)
        at = drift.worst(rows)
        return msgspec.structs.replace(blank, shows=not drift.passed(rows), drift=None if at is None else rows[at])

    def _write_alone(self, folder: Path, inputs: Sequence[str], output: str, input_set: int) -> int:
        part = self._cut(self.source, inputs, [output], input_set, whole=False)
        for path in part.folder.iterdir():
            if path.name.startswith("model.onnx") or path.suffix not in (".json", ".safetensors"):
                shutil.copy2(path, folder)
        _save_npz(folder / "inputs.npz", part.input_set(0))
        shutil.rmtree(part.folder, ignore_errors=True)
        others = [index for index in range(self.source.manifest.input_sets) if index != input_set]
        if self.precision in CALIBRATED and others:
            make_folder(folder / "calibration", "the folder")
            for index in others:  # never the judged set
                sibling = self._cut(self.source, inputs, [output], index, whole=False)
                _save_npz(folder / "calibration" / f"{index}.npz", sibling.input_set(0))
                shutil.rmtree(sibling.folder, ignore_errors=True)
        return self._nodes

    def _compared(self, folder: Path) -> list[OutputDrift]:
        """Do what `harness compare` does with the model alone."""
        recipe = Recipe(
            model=ModelSpec(kind="onnx", name=str(folder / "model.onnx"), root=str(folder)),
            weights="own",
            inputs=str(folder / "inputs.npz"),
            input_sets=1,
        )
        artifact, _ = ensure_artifact(recipe, self._launcher, on_progress=lambda _: None)
        graph = artifact
        if self.precision in CONVERTED:
            own = folder / "calibration"
            calibration = msgspec.structs.replace(self._asked.calibration, source=str(own) if own.is_dir() else None)
            graph, _ = ensure_converted(
                artifact, self.precision, calibration, self._launcher, weights="own", on_progress=lambda _: None
            )
        outputs = self._bench.outputs(graph, None if graph is artifact else artifact, 1)[0]
        return drift.judge(outputs, artifact.reference(0), precision=self.precision)

    def _backend(self) -> str:
        return self._asked.variant.id.partition("#")[0]

    def _cut(
        self, graph: Artifact, inputs: Sequence[str], outputs: Sequence[str], input_set: int, *, whole: bool
    ) -> Artifact:
        self._count += 1
        folder = make_folder(self._scratch / f"cut-{self._count}", "the folder")
        request = protocol.Cut(
            source=str(self.source.folder),
            graph=str(graph.folder),
            input_set=input_set,
            inputs=list(inputs),
            outputs=list(outputs),
            whole=whole,
            folder=str(folder),
        )
        self._nodes = self._call(request, protocol.WasCut).nodes
        return Artifact.open(folder)

    def _call(self, request: protocol.AnyRequest, answer: type[Answer]) -> Answer:
        if self._cutter is None or self._cutter.closed:
            self._cutter = self._launcher.start("graph")
        return self._cutter.call(request, answer, timeout_s=self._launcher.timeout_s)


def _save_npz(path: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    # Member by member: `numpy.savez` takes names as keyword arguments, and a tensor may be called `file`.
    from zipfile import ZipFile

    import numpy as np

    with ZipFile(path, "w") as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
