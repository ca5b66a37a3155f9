"""One comparison from plan to record: export once, compile each case, measure them side by side, judge, save.

Every finished step is saved at once, so that nothing is lost to an interruption and a run can be resumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from harness import drift, environment
from harness.artifact import Artifact, TensorSpec, read_tensors, sha256
from harness.compiling import REUSED, Compiled, Compiler, reproduce
from harness.engines import EngineStore
from harness.errors import ExportError, StoreError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.measure import now_ns
from harness.plan import Variant
from harness.progress import Narrator
from harness.records import CONTROL, Case, Failure, ModelInfo, OutputDrift, Run, Sitting
from harness.rounds import Conducted, Schedule, Seat, conduct, describe, plan_groups
from harness.store import RunFolder
from harness.summarize import precise

LAUNCHES_AT_MOST = 2
"""Times the launches asked for: how far a noisy run may go on for the sake of precision, budget permitting."""
MEMORY_FOR_ENGINES = 0.8


class Comparison:
    """A run in the making. `run` is always complete up to the last finished step."""

    def __init__(self, run: Run, variants: list[Variant], folder: RunFolder, narrator: Narrator) -> None:
        self.run = run
        self._variants = variants
        self._folder = folder
        self._say = narrator
        self._started_ns = now_ns()
        self._wall_before = run.wall_s
        settings = run.settings
        self._launcher = Launcher(
            logs=folder.logs,
            threads=settings.threads,
            memory_limit_bytes=settings.memory_limit_bytes,
            timeout_s=settings.timeout_s,
        )

    def execute(self) -> Run:
        """Carry the comparison to its end, from wherever the run stands, and return it.

        Raises:
            KeyboardInterrupt: The user stopped it. `run` holds what was finished, and so does the disk.
            StoreError: Results cannot be written. `run` holds them.
        """
        # The lock first: a run that another process measures is not to be touched.
        with self._launcher, EngineStore(self.run.id) as engines:
            try:
                self._update(state="running")
                artifact = self._export()
                if artifact is not None:
                    self._measure(artifact, self._compile(artifact, engines))
                    self._prune(engines)
                self._update(state="finished")
            except BaseException:  # Ctrl-C, a full disk or a defect of ours: the run stays resumable in any case
                self.run = msgspec.structs.replace(self.run, state="interrupted")
                with suppress(StoreError):  # the first error is the one to show
                    self._folder.save(self.run)
                raise
        return self.run

    def _update(self, **changes: object) -> None:
        wall_s = self._wall_before + (now_ns() - self._started_ns) / 1e9
        self.run = msgspec.structs.replace(self.run, wall_s=wall_s, **changes)
        self._folder.save(self.run)

    def _note(self, sentence: str) -> None:
        if sentence not in self.run.notes:
            self.run = msgspec.structs.replace(self.run, notes=[*self.run.notes, sentence])

    # ---- export

    def _export(self) -> Artifact | None:
        settings = self.run.settings
        recipe = Recipe(model=settings.model, batch=settings.batch, seed=settings.seed, opset=settings.opset)
        self._say.doing(f"exporting {settings.model}")
        try:
            artifact, cached = ensure_artifact(recipe, self._launcher, on_progress=self._say.detail, say=self._say.done)
        except ExportError as exc:
            failure = describe(exc, "export", Path(exc.log) if exc.log else None)
            self._update(failure=failure, cases=[self._unexported(variant, failure) for variant in self._variants])
            return None
        manifest = artifact.manifest
        source = "from the cache" if cached else f"{manifest.export_s:.1f} s"
        self._say.done(f"exported {settings.model}: {source}, {manifest.parameters / 1e6:.1f} M parameters")
        self._update(model=_model_info(artifact, cached=cached))
        return artifact

    def _unexported(self, variant: Variant, failure: Failure) -> Case:
        settings = self.run.settings
        return Case(
            id=variant.id,
            backend=variant.backend,
            options=variant.options,
            device=settings.device,
            precision=settings.precision,
            batch=settings.batch,
            threads=settings.threads,
            status="export_failed",
            failure=msgspec.structs.replace(failure, log_tail=""),
            reproduce=reproduce(settings, variant),
        )

    # ---- compile

    def _compile(self, artifact: Artifact, engines: EngineStore) -> dict[str, Compiled]:
        compiler = Compiler(artifact, self.run.settings, self._launcher, engines, self._say.detail)
        done = {case.id: case for case in self.run.cases}
        compiled: dict[str, Compiled] = {}
        for index, variant in enumerate(self._variants):
            before = done.get(variant.id)
            result = self._kept(compiler, variant, before) if before is not None else None
            if result is None:
                self._say.doing(f"compiling {variant.id} ({index + 1}/{len(self._variants)})")
                result = compiler.compile(variant)
                self._say.done(_compile_line(result.case))
                self._forget(variant.id)
                self._warn_of_another_device(result.case)
            compiled[variant.id] = result
            self._replace_case(result.case)
        return compiled

    @staticmethod
    def _kept(compiler: Compiler, variant: Variant, before: Case) -> Compiled | None:
        if (before.failure is not None and before.status != "drifted") or before.status == "compiled":
            return Compiled(case=before)
        return compiler.resumed(variant, before)

    def _warn_of_another_device(self, case: Case) -> None:
        wanted = self.run.settings.device
        if case.failure is None and case.status != "compiled" and case.device != wanted:
            self._note(f"{case.id} runs on {case.device}, not on {wanted}: its ratio compares the devices too")

    def _forget(self, case_id: str) -> None:
        # A case that was compiled again is another engine: samples of the old one say nothing about it.
        if any(sitting.case == case_id for launch in self.run.launches for sitting in launch.sittings):
            self._note(f"the engine of {case_id} was gone and was compiled again, so all launches were measured again")
            self.run = msgspec.structs.replace(self.run, launches=[], measure_s=0.0)

    def _replace_case(self, case: Case) -> None:
        order = {variant.id: index for index, variant in enumerate(self._variants)}
        cases = [*(known for known in self.run.cases if known.id != case.id), case]
        self._update(cases=sorted(cases, key=lambda each: order.get(each.id, len(order))))

    # ---- measure

    def _measure(self, artifact: Artifact, compiled: dict[str, Compiled]) -> None:
        settings = self.run.settings
        ready = {id_: one for id_, one in compiled.items() if one.seat is not None}
        if not ready:
            return
        baseline = self._baseline(list(ready))
        needs = {id_: one.resident_bytes for id_, one in ready.items()}
        room = min(psutil.virtual_memory().available, environment.memory_bytes())
        groups = plan_groups(baseline, needs, int(MEMORY_FOR_ENGINES * room))
        if len(groups) > 1:
            self._note(f"not all engines fit in memory together: measured in {len(groups)} groups")
        schedule = Schedule(rounds=settings.rounds, slice_s=settings.slice_s, input_sets=artifact.manifest.input_sets)
        kept = [launch for launch in self.run.launches if launch.complete]
        self._update(launches=kept)
        index = max((launch.index + 1 for launch in kept), default=0)
        longest_s = 0.0
        while self._goes_on(index, longest_s):
            start = now_ns()
            for group, members in enumerate(groups):
                self._launch(index, group, [baseline, *members], ready, schedule, artifact)
            took_s = (now_ns() - start) / 1e9
            longest_s = max(longest_s, took_s)
            self._update(measure_s=self.run.measure_s + took_s)
            index += 1
            left = [id_ for id_ in ready if id_ in self._alive()]
            if index == 1 and left and baseline not in left:
                baseline, index = self._baseline(left), 0  # nothing is lost: there was nothing to compare with
                groups = plan_groups(baseline, {id_: needs[id_] for id_ in left}, int(MEMORY_FOR_ENGINES * room))
                self._update(launches=[])
        self._say.done(f"measured {len(ready)} cases in {index} launches, {self.run.measure_s:.0f} s")

    def _goes_on(self, launches: int, longest_s: float) -> bool:
        settings = self.run.settings
        if not self._alive():
            return False
        if launches == 0:
            return True
        if self.run.measure_s + longest_s > settings.budget_s:
            if launches < settings.launches:
                self._note(
                    f"the budget of {settings.budget_s:g} s ended the measuring after {launches} of "
                    f"{settings.launches} launches; --budget SECONDS allows more"
                )
            return False
        if launches < settings.launches:
            return True
        # Beyond what was asked for only for precision, never because a difference shows.
        return not settings.quick and launches < LAUNCHES_AT_MOST * settings.launches and not precise(self.run)

    def _alive(self) -> set[str]:
        """Return the cases that can be measured: compiled for this machine, and not failed so far."""
        return {
            case.id
            for case in self.run.cases
            if case.status == "drifted" or (case.failure is None and case.status != "compiled")
        }

    def _baseline(self, ready: list[str]) -> str:
        wanted = self.run.settings.baseline
        if wanted in ready:
            return wanted
        self._note(f"the baseline {wanted} has no result; everything is compared with {ready[0]} instead")
        self.run = msgspec.structs.replace(
            self.run, settings=msgspec.structs.replace(self.run.settings, baseline=ready[0])
        )
        return ready[0]

    def _launch(
        self,
        index: int,
        group: int,
        members: list[str],
        ready: dict[str, Compiled],
        schedule: Schedule,
        artifact: Artifact,
    ) -> None:
        alive = self._alive()
        seats = [seat for id_ in members if id_ in alive and (seat := ready[id_].seat) is not None]
        if not seats:
            return
        if seats[0].case == members[0]:
            seats.insert(1, _control(seats[0]))
        scratch = Path(tempfile.mkdtemp(prefix="harness-outputs-"))
        try:
            conducted = conduct(
                seats,
                schedule,
                self._launcher,
                index=index,
                group=group,
                outputs=scratch,
                seed=self.run.settings.seed,
                say=self._say.doing,
            )
            self._take(conducted, artifact)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if conducted.interrupted:
            raise KeyboardInterrupt

    def _take(self, conducted: Conducted, artifact: Artifact) -> None:
        # A launch and what it says of its cases are saved in one step: an interruption falls before or after both.
        if not any(sitting.windows or sitting.failure for sitting in conducted.launch.sittings):
            return
        sittings = {sitting.case: sitting for sitting in conducted.launch.sittings}
        cases = []
        for case in self.run.cases:
            sitting = sittings.get(case.id)
            if sitting is None:
                cases.append(case)
            elif sitting.failure is not None:
                status = conducted.errors[case.id].status
                cases.append(msgspec.structs.replace(case, status=status, failure=sitting.failure))
            elif conducted.interrupted:
                cases.append(case)  # its outputs were not collected: a resumed run measures and judges it
            else:
                outputs = conducted.outputs.get(case.id, {})
                cases.append(self._judged(_warm(case, sitting), outputs, artifact))
        self._update(launches=[*self.run.launches, conducted.launch], cases=cases)

    # ---- judge

    def _judged(self, case: Case, outputs: dict[int, Path], artifact: Artifact) -> Case:
        if not outputs:
            return case
        known = case.outputs_sha256
        digest = _digest(outputs)
        if known == digest:
            return case  # bit for bit what was judged in an earlier launch
        rows: list[OutputDrift] = []
        for index, path in sorted(outputs.items()):
            rows += drift.judge(
                read_tensors(path),
                reference=artifact.reference(index),
                golden=artifact.golden(index),
                input_set=index,
                precision=case.precision,
                task=artifact.manifest.task,
            )
        if known is not None and all(row.passed for row in rows) and not all(row.passed for row in case.drift):
            return case  # one launch that drifted is enough
        bad = next((row for row in rows if not row.passed), None)
        if bad is None:
            return msgspec.structs.replace(case, status="ok", drift=rows, outputs_sha256=digest)
        return msgspec.structs.replace(
            case,
            status="drifted",
            drift=rows,
            outputs_sha256=digest,
            failure=Failure(stage="judge", message=f"output '{bad.output}', input set {bad.input_set}: {bad.reason}"),
        )

    def _prune(self, engines: EngineStore) -> None:
        for case in self.run.cases:
            if case.engine:
                engines.prune(Path(case.engine).parent)


def _digest(outputs: dict[int, Path]) -> str:
    return hashlib.sha256("".join(sha256(path) for _, path in sorted(outputs.items())).encode()).hexdigest()[:16]


def _warm(case: Case, sitting: Sitting) -> Case:
    # Of the first launch, in which nothing was warm but the engine.
    if "warm_load" in case.stages:
        return case
    warm = {
        "warm_import": sitting.import_s,
        "warm_load": sitting.load_s,
        "warm_first_run": sitting.first_run_s,
    }
    notes = [*case.notes, *(note for note in sitting.notes if note not in case.notes)]
    return msgspec.structs.replace(case, stages=case.stages | warm, notes=notes)


def _control(seat: Seat) -> Seat:
    return dataclasses.replace(seat, case=seat.case + CONTROL)


def _compile_line(case: Case) -> str:
    if case.failure is not None:
        return f"{case.id}: {case.status} ({case.failure.stage}): {case.failure.message.splitlines()[0][:160]}"
    if when := case.facts.get(REUSED):
        return f"reused {case.id}: its engine was compiled at {when} in {case.stages['compile']:.1f} s"
    return f"compiled {case.id}: {case.stages['compile']:.1f} s"


def _model_info(artifact: Artifact, *, cached: bool) -> ModelInfo:
    manifest = artifact.manifest

    def text(spec: TensorSpec) -> str:
        return f"{spec.name} {spec.dtype}{list(spec.shape)}".replace(" [", "[")

    return ModelInfo(
        name=manifest.model,
        weights=manifest.weights,
        seed=manifest.seed,
        batch=manifest.batch,
        precision=manifest.precision,
        parameters=manifest.parameters,
        task=manifest.task,
        artifact=artifact.hash,
        opset=manifest.opset,
        inputs=[text(spec) for spec in manifest.inputs],
        input_sets=manifest.input_sets,
        deterministic=manifest.deterministic,
        golden=manifest.golden,
        export_s=manifest.export_s,
        export_cached=cached,
    )
