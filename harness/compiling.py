"""Compile one case cold, in a worker of its own, and keep the engine: every stage timed, every failure a row."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from harness import devices, environment, nvml, protocol, refusals, registry
from harness.api import Backend
from harness.artifact import Artifact, sha256
from harness.cases import blank_case
from harness.engines import FILES, MANIFEST, Engine, EngineStore, backend_cache
from harness.environments.preparing import Interpreters, release_in
from harness.errors import (
    EnvironmentFailed,
    ExportError,
    HarnessError,
    OutOfMemory,
    StoreError,
    UnavailableError,
    UnsupportedError,
)
from harness.grouping import NONE, Memory
from harness.interpreter import Interpreter
from harness.launcher import Launcher, OnProgress, Worker
from harness.lowering import readable
from harness.paths import FREE_SPACE, folder_bytes, link_or_copy, make_folder
from harness.plan import Variant
from harness.precisions import Source, is_converted
from harness.protocol import CaseSpec
from harness.records import REUSED, Build, Case, Failure, Settings, Workload
from harness.rounds import Seat, describe
from harness.sourcecode import source_files
from harness.store import now_utc

SLUG_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A case after its compilation. Without seats there is nothing to measure."""

    case: Case
    seats: tuple[Seat, ...] = ()
    """One for each independent build; launches take them in turn."""
    memory: Memory = NONE
    """What a worker that holds the engine takes."""
    shared: bool = False
    """Whether an earlier point of the sweep compiled the engine."""


class Compiler:
    """Turns variants into compiled cases, on one workload."""

    def __init__(
        self,
        artifact: Artifact,
        workload: Workload,
        settings: Settings,
        launcher: Launcher,
        engines: EngineStore,
        on_progress: OnProgress,
        *,
        dynamic: Callable[[], Artifact],
        converted: Callable[[Artifact, str, Source], Artifact],
        failed: dict[Path, Case],
        interpreters: Interpreters = MappingProxyType({}),
    ) -> None:
        """Take what all cases of a workload share.

        `dynamic` returns the artifact whose graph leaves the dimensions of the sweep free, `converted` an artifact's
        graph or module in another precision; they are asked for only where a case wants them, and may raise. `failed`
        remembers, from one point of the sweep to the next, which of the engines for all of it could not be compiled.
        `interpreters` has those of the cases that run in another than harness does.
        """
        self._interpreters = interpreters
        self._failed = failed
        self._artifact = artifact
        self._dynamic = dynamic
        self._converted = converted
        self._workload = workload
        self._settings = settings
        self._launcher = launcher
        self._engines = engines
        self._on_progress = on_progress

    def compile(self, variant: Variant) -> Compiled:
        """Compile a variant as often as asked; whatever goes wrong becomes the case's status and failure."""
        builds = [self._compile(variant, 0)]
        for number in range(1, self._number_of_builds(variant)):
            if builds[-1].case.failure is not None:
                break
            builds.append(self._compile(variant, number))
        return _together(builds)

    def _number_of_builds(self, variant: Variant) -> int:
        # Without an engine there is nothing that could come out differently.
        return self._settings.builds if registry.backend(variant.backend).capabilities.saves_engines else 1

    def _compile(self, variant: Variant, build: int) -> Compiled:
        if isinstance(lacking := self._interpreters.get(variant.id), EnvironmentFailed):
            log = Path(lacking.log) if lacking.log else None
            return Compiled(case=self.refused(variant, lacking.status, describe(lacking, "environment", log)))
        try:
            spec, seat, case = self.describe(variant, build)
        except (ExportError, OutOfMemory, UnsupportedError) as exc:  # there is no such graph
            log = Path(exc.log) if exc.log else None
            return Compiled(case=self.refused(variant, exc.status, describe(exc, "export", log)))
        attempt = _Attempt(log=self._launcher.logs / f"{seat.slug}-compile{build or ''}.log")
        folder = Path(spec.engine_dir).parent
        if spec.fed_by is not None and (engine := self._engines.read(folder)) is not None:
            return dataclasses.replace(self.finished(case, seat, engine), shared=True)
        if folder in self._failed:
            earlier = self._failed[folder]
            return Compiled(case=msgspec.structs.replace(earlier, batch=case.batch, reproduce=case.reproduce))
        try:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(Path(spec.engine_dir), "the engine folder")
            make_folder(Path(spec.cache_dir), "the backend's cache folder")
            engine = self._build(dataclasses.replace(seat, spec=msgspec.structs.replace(spec, fed_by=None)), attempt)
            self._engines.write(folder, engine)
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            raise  # a full disk is no fault of the backend's
        except HarnessError as exc:
            failure = describe(exc, attempt.stage, attempt.log)
            free = shutil.disk_usage(folder.parent).free  # before its half engine is deleted
            if failure.hint is None and free < self._artifact.manifest.weights_bytes:
                failure = msgspec.structs.replace(failure, hint=f"{free / 1e9:.1f} GB were free there: {FREE_SPACE}")
            shutil.rmtree(folder, ignore_errors=True)
            peak = attempt.peak_bytes or None
            versions = attempt.versions
            case = msgspec.structs.replace(
                case,
                status=exc.status,
                failure=failure,
                versions=versions,
                version=next(iter(versions.values()), None),
                stages=attempt.stages,
                peak_compile_bytes=peak,
            )
            if spec.fed_by is not None:
                self._failed[folder] = case
            return Compiled(case=case)
        done = self.finished(case, seat, engine)
        notes = [*done.case.notes, *([attempt.replaces] if attempt.replaces else [])]
        return dataclasses.replace(done, case=msgspec.structs.replace(done.case, notes=notes))

    def describe(self, variant: Variant, build: int = 0) -> tuple[CaseSpec, Seat, Case]:
        """Return what a worker, a launch and the record need to know of a variant before it is compiled."""
        kind = registry.backend(variant.backend)
        options = variant.parsed()
        case = self._case(variant)
        dynamic = options.dynamic and kind.capabilities.dynamic_shapes
        graph = self._dynamic() if dynamic else self._artifact
        source = kind.capabilities.source
        if is_converted(case.precision, source) and self._offers(kind, case):
            graph = self._converted(graph, case.precision, source)
        interpreter = self._interpreter(variant)
        if source == "onnx":
            release = release_in(variant, interpreter, devices.kind(case.device))
            graph = readable(graph, kind, release, self._launcher)
        threads = case.threads
        spec = CaseSpec(
            backend=variant.backend,
            options=variant.options,
            artifact=str(graph.folder),
            fed_by=str(self._artifact.folder) if dynamic else None,
            device=case.device,
            target=case.target,
            precision=case.precision,
            threads=threads,
            build=build,
            engine_dir="",
            cache_dir=str(backend_cache(variant.backend, build)),
        )
        folder = self._engines.folder(spec, variant.id, _identity(graph), self._built_by(kind, interpreter)) / FILES
        spec = msgspec.structs.replace(spec, engine_dir=str(folder))
        seat = Seat(
            case=variant.id,
            spec=spec,
            environment=kind.environment(options, folder, threads),
            slug=f"{_slug(self._workload.key)}-{variant.slug}",
            python=interpreter.executable if interpreter else None,
        )
        return spec, seat, case

    def _interpreter(self, variant: Variant) -> Interpreter | None:
        found = self._interpreters.get(variant.id)
        return found if isinstance(found, Interpreter) else None

    @staticmethod
    def _offers(kind: type[Backend], case: Case) -> bool:
        # What a backend lacks is refused before it is started: no graph is converted for it.
        return case.precision in kind.capabilities.precisions_on(devices.kind(case.device))

    def _built_by(self, kind: type[Backend], interpreter: Interpreter | None) -> str:
        """Return what an engine is found again by beside its case: processor, interpreter, the backend's own code."""
        python = interpreter.executable if interpreter else self._launcher.python
        return "\n".join([f"{environment.cpu_model()} {python}", *map(sha256, source_files(kind))])

    def refused(self, variant: Variant, status: str, failure: Failure) -> Case:
        """Return the case of a variant that there is nothing to compile for."""
        return msgspec.structs.replace(self._case(variant), status=status, failure=failure)

    def _case(self, variant: Variant) -> Case:
        case = blank_case(self._settings, self._workload, variant)
        return msgspec.structs.replace(case, interpreter=self._interpreter(variant))

    def resumed(self, variant: Variant, case: Case) -> Compiled | None:
        """Return a case that an interrupted run has compiled, or None where its engine is gone."""
        created = [build.engine_created for build in case.builds] or [case.engine_created or ""]
        again = []
        for number, when in enumerate(created):
            try:
                _, seat, fresh = self.describe(variant, number)
            except (ExportError, OutOfMemory, UnsupportedError):
                return None
            engine = self._engines.read(Path(seat.spec.engine_dir).parent)
            if engine is None or engine.created != when or engine.hardware != _hardware(seat.spec):
                return None
            again.append(self.finished(fresh, seat, engine))
        return dataclasses.replace(_together(again), case=case)

    def _earlier(self, folder: Path, hardware: str, attempt: _Attempt) -> Engine | None:
        for path, engine in self._engines.earlier(folder):
            if changed := _changed(engine, attempt.versions, hardware):
                attempt.replaces = attempt.replaces or f"compiled anew, as the engine of {engine.created} was {changed}"
                continue
            try:
                # Without the manifest, which marks it as complete and is written when all of it is there.
                ignored = shutil.ignore_patterns(MANIFEST)
                shutil.copytree(
                    path, folder, symlinks=True, ignore=ignored, dirs_exist_ok=True, copy_function=link_or_copy
                )
            except OSError:  # another run deleted it meanwhile, or the disk is full: compiling will tell
                shutil.rmtree(folder, ignore_errors=True)
                make_folder(folder / FILES, "the engine folder")
                continue
            attempt.replaces = ""
            facts = {**engine.opened.facts, REUSED: engine.created}
            return msgspec.structs.replace(engine, opened=msgspec.structs.replace(engine.opened, facts=facts))
        return None

    def _build(self, seat: Seat, attempt: _Attempt) -> Engine:
        refusals.refuse_unsupported(seat.spec, self._settings.device_chosen)
        with self._launcher.start(
            attempt.log.stem, seat.environment, threads=seat.spec.threads, python=seat.python
        ) as worker:
            try:
                return self._steps(seat.spec, worker, attempt)
            finally:
                attempt.peak_bytes = worker.peak_bytes

    def _steps(self, spec: CaseSpec, worker: Worker, attempt: _Attempt) -> Engine:
        limit = self._launcher.timeout_s
        attempt.stage = "import"
        imported = worker.call(protocol.Import(backend=spec.backend), protocol.Imported, timeout_s=limit)
        attempt.versions = imported.probed.versions
        attempt.stages["import"] = imported.import_s
        if not imported.probed.available:
            attempt.stage = "probe"
            raise UnavailableError(
                imported.probed.reason or "it gave no reason",
                hint=imported.probed.hint or registry.install_hint(spec.backend),
            )
        refusals.refuse_unseen(spec, imported.probed)
        hardware = _hardware(spec)
        if not self._settings.cold and (engine := self._earlier(Path(spec.engine_dir).parent, hardware, attempt)):
            return engine
        attempt.stage = "compile"
        card = nvml.card(spec.device) if spec.target is None else None
        free = card.free_bytes if card else None
        opened = worker.call(
            protocol.Compile(case=spec), protocol.Opened, timeout_s=limit, on_progress=self._on_progress
        )
        refusals.refuse_elsewhere(spec, opened)
        parts = dict(opened.seconds)
        attempt.stages |= {"compile": parts.pop("total"), **parts}
        resident = on_card = 0
        if opened.runnable:
            for stage in ("first_run", "second_run"):
                attempt.stage = stage.replace("_", " ")
                attempt.stages[stage] = worker.call(protocol.RunOnce(), protocol.Took, timeout_s=limit).seconds
            resident = worker.resident_bytes()
            on_card = card.taken_bytes(worker.pid, free) if card else 0
            worker.check_cpus()
        attempt.stage = "save"
        attempt.stages["save"] = worker.call(protocol.Save(), protocol.Took, timeout_s=limit).seconds
        worker.note_peak()
        saves = registry.backend(spec.backend).capabilities.saves_engines
        return Engine(
            versions=attempt.versions,
            version=next(iter(attempt.versions.values()), None),
            hardware=hardware,
            stages=attempt.stages,
            opened=opened,
            engine_bytes=folder_bytes(Path(spec.engine_dir)) if saves else None,
            peak_compile_bytes=worker.peak_bytes,
            resident_bytes=resident,
            device_bytes=on_card,
            created=now_utc(),
        )

    @staticmethod
    def finished(case: Case, seat: Seat, engine: Engine) -> Compiled:
        """Return a case with what its engine says of it."""
        seat = dataclasses.replace(seat, provider=engine.opened.provider)
        case = msgspec.structs.replace(
            case,
            status="interrupted" if engine.opened.runnable else "compiled",
            version=engine.version,
            versions=engine.versions,
            provider=engine.opened.provider,
            stages=engine.stages,
            facts=engine.opened.facts,
            placement=engine.opened.placement,
            notes=engine.opened.notes,
            engine_bytes=engine.engine_bytes,
            engine=seat.spec.engine_dir,
            engine_created=engine.created,
            peak_compile_bytes=engine.peak_compile_bytes,
        )
        seats = (seat,) if engine.opened.runnable else ()
        memory = Memory(host_bytes=engine.resident_bytes, device_bytes=engine.device_bytes)
        return Compiled(case=case, seats=seats, memory=memory)


@dataclass(kw_only=True)
class _Attempt:
    """How far a compilation came, for the row it gets when it fails."""

    log: Path
    stage: str = "plan"
    stages: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    replaces: str = ""
    """Why an engine of an earlier run was not used again, where there was one."""


def _together(builds: list[Compiled]) -> Compiled:
    """Return the builds of a case as one: what is known of the first, and the seats of all. A failed one ends it."""
    first, last = builds[0], builds[-1]
    if len(builds) == 1:
        return first
    if (failure := last.case.failure) is not None:
        failure = msgspec.structs.replace(failure, message=f"build {len(builds)}: {failure.message}")
        return dataclasses.replace(last, case=msgspec.structs.replace(last.case, failure=failure))
    cases = [build.case for build in builds]
    case = msgspec.structs.replace(
        first.case,
        notes=list(dict.fromkeys(note for one in cases for note in one.notes)),
        builds=[
            Build(
                engine=one.engine or "",
                engine_created=one.engine_created or "",
                engine_bytes=one.engine_bytes,
                stages=one.stages,
                peak_compile_bytes=one.peak_compile_bytes or 0,
            )
            for one in cases
        ],
    )
    return Compiled(
        case=case,
        seats=tuple(seat for build in builds for seat in build.seats),
        memory=Memory(
            host_bytes=max(build.memory.host_bytes for build in builds),
            device_bytes=max(build.memory.device_bytes for build in builds),
        ),
        shared=all(build.shared for build in builds),
    )


def _identity(graph: Artifact) -> str:
    # The sizes that stay free are not in the graph's own bytes, and an engine is built for them.
    return f"{graph.hash} {sorted(graph.manifest.dynamic.items())}"


def _hardware(spec: CaseSpec) -> str:
    if spec.target is not None or devices.kind(spec.device) == devices.CPU:
        return ""
    return environment.gpu_identity(spec.device)


def _changed(engine: Engine, versions: dict[str, str], hardware: str) -> str:
    """Return what an engine was built with or on that is another now; empty where all is as it was."""
    names = [name for name in {**engine.versions, **versions} if engine.versions.get(name) != versions.get(name)]
    if names:
        then = ", ".join(f"{name} {engine.versions.get(name, '-')}" for name in names)
        return f"built with {then}, and this is {', '.join(versions.get(name, '-') for name in names)}"
    return f"built on {engine.hardware or '-'}, and this is {hardware or '-'}" if engine.hardware != hardware else ""


def _slug(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._=-]+", "-", text)
    return name if len(name) <= SLUG_CHARACTERS else f"{name[:20]}-{name[-(SLUG_CHARACTERS - 21) :]}"
