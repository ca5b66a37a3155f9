"""One comparison from plan to record: export each model once, compile each case, measure them side by side, save.

Every finished step is saved at once, so that nothing is lost to an interruption and a run can be resumed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from pathlib import Path

import msgspec

from harness import devices, environment, memory, registry
from harness.artifact import Artifact, TensorSpec
from harness.cases import blank_case
from harness.compiling import Compiled, Compiler
from harness.conversion import Calibration, ensure_converted
from harness.engines import EngineStore
from harness.environments.preparing import Interpreters, prepare
from harness.errors import ExportError, HarnessError, OutOfMemory, StoreError, UnsupportedError, UsageError
from harness.evaluation import Evaluation, answers_folder
from harness.export import Recipe, ensure_artifact, is_exported
from harness.launcher import Launcher
from harness.ledger import Ledger, Page
from harness.measuring import Measuring
from harness.modelspec import BATCH
from harness.pinning import aside
from harness.plan import Variant
from harness.precisions import Source, is_converted
from harness.progress import Narrator, brief
from harness.records import REUSED, Case, Failure, ModelInfo, Run, Settings, Workload
from harness.rounds import describe
from harness.store import RunFolder
from harness.workloads import dynamic_ranges

WEIGHTS = "weights.safetensors"
STOPPING_S = 0.2


class Comparison:
    """A run in the making. `run` is always complete up to the last finished step."""

    def __init__(self, run: Run, variants: list[Variant], folder: RunFolder, narrator: Narrator) -> None:
        self._ledger = Ledger(run, folder)
        self._settings = run.settings
        self._variants = variants
        self._say = narrator
        self._dynamic: dict[str, Artifact | HarnessError] = {}
        self._converted: dict[tuple[Path, str, Source], Artifact | HarnessError] = {}
        self._failed: dict[Path, Case] = {}
        self._evaluations: dict[str, Evaluation] = {}
        self._interpreters: Interpreters = {}
        self._path = folder.path
        self._launcher = Launcher(
            logs=folder.logs,
            threads=run.settings.threads,
            memory_limit_bytes=run.settings.memory_limit_bytes,
            timeout_s=run.settings.timeout_s,
            cpus=frozenset(run.settings.cpu_set),
        )

    @property
    def run(self) -> Run:
        """Return the run as it stands."""
        return self._ledger.run

    def execute(self) -> Run:
        """Carry the comparison to its end, from wherever the run stands, and return it.

        All models are exported first: what is wrong with one of them then shows before hours are spent on the others.

        Raises:
            KeyboardInterrupt: The user stopped it. `run` holds what was finished, and so does the disk.
            StoreError: Results cannot be written. `run` holds them.
            UsageError: What was asked for does not fit a model.
        """
        # The lock first: a run that another process measures is not to be touched.
        with self._launcher, EngineStore(self.run.id) as engines, aside(self._launcher.cpus):
            try:
                self._ledger.update(state="running")
                self._interpreters = self._prepare()
                pages = [self._ledger.page(index) for index in range(len(self.run.workloads))]
                artifacts = [self._export(page) for page in pages]
                work = [(page, artifact) for page, artifact in zip(pages, artifacts, strict=True) if artifact]
                if self._settings.parallel:
                    self._side_by_side(work, engines)
                else:
                    self._one_by_one(work, engines)
                self._ledger.update(state="finished")
            except BaseException:  # Ctrl-C, a full disk or a defect of ours: the run stays resumable in any case
                with suppress(StoreError):  # the first error is the one to show
                    self._ledger.update(state="interrupted")
                raise
        return self.run

    def _prepare(self) -> Interpreters:
        return prepare(self._variants, self._settings, self.run.id, self._launcher.logs, self._say)

    def _one_by_one(self, work: Sequence[tuple[Page, Artifact]], engines: EngineStore) -> None:
        for number, (page, artifact) in enumerate(work, 1):
            if len(self.run.workloads) > 1:
                self._say.done(f"{page.workload.key} ({number}/{len(work)})")
            self._compare(page, artifact, engines)

    def _side_by_side(self, work: Sequence[tuple[Page, Artifact]], engines: EngineStore) -> None:
        """Carry out the workloads of each device in a thread of its own, one after another within the thread."""
        lanes: dict[str, list[tuple[Page, Artifact]]] = {}
        for page, artifact in work:
            lanes.setdefault(page.workload.device, []).append((page, artifact))
        with ThreadPoolExecutor(max_workers=max(1, len(lanes))) as pool:
            running = [pool.submit(self._one_by_one, lane, engines) for lane in lanes.values()]
            try:
                for lane in as_completed(running):
                    lane.result()
            except BaseException:  # Ctrl-C, a full disk or a defect of ours ends all lanes, and goes on up
                self._ledger.stop()
                while any(not lane.done() for lane in running):  # a lane may have been about to start the next worker
                    self._launcher.kill_all()
                    wait(running, timeout=STOPPING_S)
                self._ledger.go_on()
                raise

    def _compare(self, page: Page, artifact: Artifact, engines: EngineStore) -> None:
        compiled = self._compile(page, artifact, engines)
        self._work(page, artifact, compiled)
        self._tidy(page, engines)

    def _work(self, page: Page, artifact: Artifact, compiled: dict[str, Compiled]) -> None:
        """Do with the engines what they were compiled for."""
        Measuring(page, artifact, self._settings, self._launcher, self._say).measure(compiled)
        evaluation = self._evaluations.get(page.workload.key)
        if evaluation is not None:
            evaluation.run(compiled)

    def _tidy(self, page: Page, engines: EngineStore) -> None:
        """Keep engines that run, the newest of each kind."""
        for case in page.workload.cases:
            sound = case.failure is None or case.status == "drifted"
            for folder in [build.engine for build in case.builds] or [case.engine or ""]:
                if folder and sound:
                    engines.prune(Path(folder).parent)
                elif folder:  # it was built, and did not run: it is no engine for a later run to start from
                    engines.forget(Path(folder).parent)

    # ---- export

    def _export(self, page: Page) -> Artifact | None:
        workload = page.workload
        recipe = self._recipe(workload)
        if not is_exported(recipe) and (reason := self._too_large(workload)):
            hint = "a larger --memory-limit, a smaller model, or a smaller --batch"
            self._end(page, "out_of_memory", Failure(stage="plan", message=reason, hint=hint))
            return None
        if lacking := _lacking(workload):
            self._end(page, "unavailable", lacking)
            return None
        self._say.doing(f"exporting {workload.key}")
        try:
            artifact, cached = ensure_artifact(recipe, self._launcher, on_progress=self._say.detail, say=self._say.done)
        except (ExportError, OutOfMemory) as exc:
            failure = describe(exc, "export", Path(exc.log) if exc.log else None)
            self._end(page, exc.status, failure)
            return None
        manifest = artifact.manifest
        source = "from the cache" if cached else f"{manifest.export_s:.1f} s"
        self._say.done(f"exported {workload.key}: {source}, {manifest.parameters:,} parameters")
        for note in manifest.notes:
            page.note(note)
        if workload.failure is not None:  # of the first try of a resumed run
            page.change(failure=None, cases=[])
        page.update(dims=manifest.dims, batch=manifest.dims.get(BATCH, 1), info=_model_info(artifact, cached=cached))
        self._convert_all(page, artifact)
        if self._settings.dataset is not None and not workload.target:
            self._evaluations[workload.key] = Evaluation(
                page, artifact, self._settings, self._launcher, self._say, answers_folder(self._path, workload.key)
            )
        return artifact

    def _recipe(self, workload: Workload) -> Recipe:
        return recipe_of(workload, self._settings)

    def _dynamic_artifact(self, workload: Workload, static: Artifact) -> Artifact:
        """Return the export that leaves the dimensions of the sweep free, made once for all of its points.

        Raises:
            ExportError: The model cannot be exported so, or is another model at each size.
        """
        swept = dynamic_ranges(workload, self._settings)
        dims = workload.asked | {name: high for name, (_, high) in swept.items()}
        recipe = msgspec.structs.replace(self._recipe(workload), dims=dims, shapes={}, inputs=None, dynamic=swept)
        key = recipe.key()
        if key not in self._dynamic:
            self._say.doing(f"exporting {workload.model.label} with free dimensions")
            try:
                self._dynamic[key] = ensure_artifact(
                    recipe, self._launcher, on_progress=self._say.detail, say=self._say.done
                )[0]
            except (ExportError, OutOfMemory) as exc:
                self._dynamic[key] = exc
            except UsageError as exc:  # such as a graph whose batch is fixed: a row, since the static engines go on
                self._dynamic[key] = ExportError(exc.message, hint=exc.hint)
        made = self._dynamic[key]
        if isinstance(made, HarnessError):
            raise made
        if made.manifest.files.get(WEIGHTS) != static.manifest.files.get(WEIGHTS):
            raise ExportError(
                f"the weights of {workload.model.label} depend on the sizes of its inputs: no engine fits them all",
                hint="draw the weights before the example inputs, or leave out --dynamic",
            )
        return made

    def _in_precision(self, page: Page, graph: Artifact, precision: str, source: Source) -> Artifact:
        """Return an artifact's graph or module in another precision, made once.

        Raises:
            UnsupportedError: The graph cannot be had in it.
            ExportError: The conversion failed.
        """
        key = (graph.folder, precision, source)
        what = page.workload.key if source == "onnx" else f"{page.workload.key}'s {source} module"
        if key not in self._converted:
            settings = self._settings
            self._say.doing(f"converting {what} to {precision}")
            calibration = Calibration(
                source=settings.calibration, samples=settings.calibration_samples, method=settings.calibration_method
            )
            try:
                converted, cached = ensure_converted(
                    graph,
                    precision,
                    calibration,
                    self._launcher,
                    weights=self._recipe(page.workload).weights,
                    on_progress=self._say.detail,
                    source=source,
                )
                self._converted[key] = converted
                took = "from the cache" if cached else f"{converted.manifest.export_s:.1f} s"
                self._say.done(f"converted {what} to {precision}: {took}")
            except (ExportError, OutOfMemory, UnsupportedError) as exc:
                self._converted[key] = exc
        made = self._converted[key]
        if isinstance(made, HarnessError):
            raise made
        for note in made.manifest.notes:
            page.note(note)
        return made

    def _convert_all(self, page: Page, artifact: Artifact) -> None:
        """Make the converted graphs that some case will want: what is wrong with calibration inputs shows early."""
        for variant in self._variants:
            kind = registry.backend(variant.backend)
            case = blank_case(self._settings, page.workload, variant)
            offered = case.precision in kind.capabilities.precisions_on(devices.kind(case.device))
            source = kind.capabilities.source
            wanted = is_converted(case.precision, source) and offered
            if wanted and not variant.parsed().dynamic:
                with suppress(ExportError, OutOfMemory, UnsupportedError):  # it becomes the row of the case
                    self._in_precision(page, artifact, case.precision, source)

    def _too_large(self, workload: Workload) -> str | None:
        needed = memory.to_export(workload.model, workload.dims)
        room = min(self._settings.memory_limit_bytes, environment.memory_bytes())
        if needed is None or needed <= room:
            return None
        return (
            f"exporting it takes at least {needed / 2**30:.1f} GiB of memory, and a worker may take "
            f"{room / 2**30:.1f} GiB here: not tried"
        )

    def _end(self, page: Page, status: str, failure: Failure) -> None:
        """End a workload before its first case: one reason, and a row for every case.

        What a resumed run has measured already is kept.
        """
        if page.workload.launches:
            page.note(f"it cannot be measured further: {failure.message.splitlines()[0]}")
            page.update()
            return
        short = msgspec.structs.replace(failure, log_tail="")
        cases = [
            msgspec.structs.replace(blank_case(self._settings, page.workload, variant), status=status, failure=short)
            for variant in self._variants
        ]
        self._say.done(f"{page.workload.key}: {status.replace('_', ' ')}: {brief(failure.message)}")
        page.update(failure=failure, cases=cases)

    # ---- compile

    def _compile(self, page: Page, artifact: Artifact, engines: EngineStore) -> dict[str, Compiled]:
        compiler = Compiler(
            artifact,
            page.workload,
            self._settings,
            self._launcher,
            engines,
            self._say.detail,
            dynamic=lambda: self._dynamic_artifact(page.workload, artifact),
            converted=lambda *asked: self._in_precision(page, *asked),
            failed=self._failed,
            interpreters=self._interpreters,
        )
        done = {case.id: case for case in page.workload.cases}
        order = [variant.id for variant in self._variants]
        compiled: dict[str, Compiled] = {}
        for index, variant in enumerate(self._variants):
            before = done.get(variant.id)
            result = self._kept(compiler, variant, before) if before is not None else None
            if result is None:
                self._say.doing(f"compiling {variant.id} ({index + 1}/{len(self._variants)})")
                result = compiler.compile(variant)
                self._say.done(f"shared {variant.id}" if result.shared else _compile_line(result.case))
                if before is None or before.engine_created != result.case.engine_created:
                    self._forget(page, variant.id)
                self._warn_of_another_device(page, result.case)
            compiled[variant.id] = result
            page.replace_case(result.case, order)
        return compiled

    @staticmethod
    def _kept(compiler: Compiler, variant: Variant, before: Case) -> Compiled | None:
        if (before.failure is not None and before.status != "drifted") or before.status == "compiled":
            return Compiled(case=before)
        return compiler.resumed(variant, before)

    def _warn_of_another_device(self, page: Page, case: Case) -> None:
        wanted = page.workload.device
        if case.failure is None and case.status != "compiled" and case.device != wanted:
            page.note(f"{case.id} runs on {case.device}, not on {wanted}: its ratio compares the devices too")

    @staticmethod
    def _forget(page: Page, case_id: str) -> None:
        # A case that was compiled again is another engine: samples of the old one say nothing about it.
        if any(sitting.case == case_id for launch in page.workload.launches for sitting in launch.sittings):
            page.note(f"the engine of {case_id} was gone and was compiled again, so all launches were measured again")
            page.change(launches=[], measure_s=0.0)


def recipe_of(workload: Workload, settings: Settings) -> Recipe:
    """Return what a workload's artifact is made from."""
    own = workload.model.kind != "reference"
    return Recipe(
        model=workload.model,
        dims=workload.asked,
        shapes=settings.shapes if own else {},
        weights=settings.weights or registry.default_weights(workload.model),
        inputs=settings.inputs,
        input_sets=settings.input_sets,
        seed=settings.seed,
        opset=settings.opset,
    )


def _compile_line(case: Case) -> str:
    if case.failure is not None:
        return f"{case.id}: {case.status} ({case.failure.stage}): {brief(case.failure.message)}"
    if when := case.facts.get(REUSED):
        return f"reused {case.id}: its engine was compiled at {when} in {case.stages['compile']:.1f} s"
    return f"compiled {case.id}: {case.stages['compile']:.1f} s"


def _lacking(workload: Workload) -> Failure | None:
    """Return what must be installed before a reference model can be built, if anything."""
    if workload.model.kind != "reference":
        return None
    model = registry.model_class(workload.model.name)
    for module in model.requires:
        if importlib.util.find_spec(module) is None:
            return Failure(stage="plan", message=f"{model.name} needs {module}, not installed", hint=model.install)
    return None


def _model_info(artifact: Artifact, *, cached: bool) -> ModelInfo:
    manifest = artifact.manifest

    def text(spec: TensorSpec) -> str:
        return f"{spec.name} {spec.dtype}{list(spec.shape)}".replace(" [", "[")

    return ModelInfo(
        weights=manifest.weights,
        weights_sha256=manifest.weights_sha256,
        parameters=manifest.parameters,
        gflop=manifest.gflop,
        least_bytes=manifest.least_bytes,
        task=manifest.task,
        artifact=artifact.hash,
        reference=manifest.reference,
        opset=manifest.opset,
        inputs=[text(spec) for spec in manifest.inputs],
        input_sets=manifest.input_sets,
        deterministic=manifest.deterministic,
        golden=manifest.golden,
        export_s=manifest.export_s,
        export_cached=cached,
    )
