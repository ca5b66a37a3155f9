"""From engines to samples to verdict-ready records: the launches of one workload, and the judging of its outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil

from harness import drift, environment, nvml
from harness.agreement import TaskJudge
from harness.artifact import Artifact, read_tensors, sha256
from harness.compiling import Compiled
from harness.grouping import Memory, control_is_the_trouble, plan_groups
from harness.launcher import Launcher
from harness.ledger import Page
from harness.measure import now_ns
from harness.progress import Narrator
from harness.records import CONTROL, Case, Failure, OutputDrift, Settings, Sitting
from harness.rounds import Conducted, Schedule, Seat, conduct
from harness.summarize import precise
from harness.telemetry import Telemetry

LAUNCHES_AT_MOST = 2
"""Times the launches asked for: how far a noisy run may go on for the sake of precision, budget permitting."""
MEMORY_FOR_ENGINES = 0.8
DEVICE_MEMORY_FOR_ENGINES = 0.95
"""Of what is free on a card: what a running engine takes there hardly changes after its first runs."""


class Measuring:
    """The launches of one workload."""

    def __init__(
        self, page: Page, artifact: Artifact, settings: Settings, launcher: Launcher, narrator: Narrator
    ) -> None:
        self._page = page
        self._artifact = artifact
        self._settings = settings
        self._launcher = launcher
        self._say = narrator
        self._telemetry = Telemetry(owns=launcher.owns)
        self._controlled = True

    def measure(self, compiled: dict[str, Compiled]) -> None:
        """Measure what was compiled, launch by launch, until it is precise enough or the budget is spent.

        Raises:
            KeyboardInterrupt: The user stopped it. What was sampled is saved.
            StoreError: Results cannot be written.
        """
        settings, artifact = self._settings, self._artifact
        ready = {id_: one for id_, one in compiled.items() if one.seats}
        if not ready:
            return
        baseline = self._baseline(list(ready))
        needs = {id_: one.memory for id_, one in ready.items()}
        capacity = self._room()
        self._controlled = self._has_room_for_control(baseline, needs, capacity)
        groups = plan_groups(baseline, needs, capacity, copies=1 + self._controlled)
        if len(groups) > 1:
            self._page.note(f"not all engines fit in memory together: measured in {len(groups)} groups")
        schedule = Schedule(rounds=settings.rounds, slice_s=settings.slice_s, input_sets=artifact.manifest.input_sets)
        kept = [launch for launch in self._page.workload.launches if launch.complete]
        self._page.update(launches=kept)
        index = max((launch.index + 1 for launch in kept), default=0)
        # A launch is as many records as there are groups.
        walls = [sum(each.wall_s for each in kept if each.index == number) for number in range(index)]
        longest_s = max(walls, default=0.0)
        while self._goes_on(index, longest_s):
            start = now_ns()
            for group, members in enumerate(groups):
                self._launch(index, group, [baseline, *members], ready, schedule)
            took_s = (now_ns() - start) / 1e9
            longest_s = max(longest_s, took_s)
            self._page.update(measure_s=self._page.workload.measure_s + took_s)
            index += 1
            left = [id_ for id_ in ready if id_ in self._alive()]
            if index == 1 and left and baseline not in left:
                baseline, index = self._baseline(left), 0  # nothing is lost: there was nothing to compare with
                groups = plan_groups(baseline, {id_: needs[id_] for id_ in left}, capacity, copies=1 + self._controlled)
                self._page.update(launches=[])
        self._say.done(f"measured {len(ready)} cases in {index} launches, {self._page.workload.measure_s:.0f} s")

    def _room(self) -> Memory:
        """Return the memory that there is for engines, on the host and on the workload's card."""
        host = min(psutil.virtual_memory().available, environment.memory_bytes())
        card = nvml.card(self._page.workload.device)
        free = card.free_bytes if card else None
        return Memory(
            host_bytes=int(MEMORY_FOR_ENGINES * host),
            device_bytes=int(DEVICE_MEMORY_FOR_ENGINES * free) if free is not None else sys.maxsize,
        )

    def _has_room_for_control(self, baseline: str, needs: dict[str, Memory], capacity: Memory) -> bool:
        if not control_is_the_trouble(baseline, needs, capacity):
            return True
        own, room = needs[baseline], [f"{capacity.host_bytes / 2**30:.1f} GiB of memory"]
        if own.device_bytes:
            room.append(f"{capacity.device_bytes / 2**30:.1f} GiB on the card")
        self._page.note(
            f"no A/A control: two workers of {baseline} ({own.host_bytes / 2**30:.1f} GiB, "
            f"{own.device_bytes / 2**30:.1f} GiB on the card) and the largest candidate do not fit into "
            f"{' and '.join(room)} that are there for engines"
        )
        return False

    def _goes_on(self, launches: int, longest_s: float) -> bool:
        settings = self._settings
        if not self._alive():
            return False
        if launches == 0:
            return True
        if self._page.workload.measure_s + longest_s > settings.budget_s:
            if launches < settings.launches:
                self._page.note(
                    f"the budget of {settings.budget_s:g} s ended the measuring after {launches} of "
                    f"{settings.launches} launches; --budget SECONDS allows more"
                )
            return False
        if launches < settings.launches:
            return True
        # Beyond what was asked for only for precision, never because a difference shows.
        return (
            not settings.quick
            and launches < LAUNCHES_AT_MOST * settings.launches
            and not precise(self._page.workload, settings.precise_to)
        )

    def _alive(self) -> set[str]:
        """Return the cases that can be measured: compiled for this machine, and not failed so far."""
        return {
            case.id
            for case in self._page.workload.cases
            if case.status == "drifted" or (case.failure is None and case.status != "compiled")
        }

    def _baseline(self, ready: list[str]) -> str:
        wanted = self._page.workload.baseline
        if wanted in ready:
            return wanted
        self._page.note(f"the baseline {wanted} has no result; everything is compared with {ready[0]} instead")
        self._page.change(baseline=ready[0])
        return ready[0]

    def _launch(
        self,
        index: int,
        group: int,
        members: list[str],
        ready: dict[str, Compiled],
        schedule: Schedule,
    ) -> None:
        alive = self._alive()
        # Independent builds take turns: how they differ is then part of what the launches differ by.
        seats = [ready[id_].seats[index % len(ready[id_].seats)] for id_ in members if id_ in alive]
        if not seats:
            return
        if seats[0].case == members[0] and self._controlled:
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
                seed=self._settings.seed,
                say=self._say.doing,
                telemetry=self._telemetry,
            )
            for note in self._telemetry.notes:
                self._page.note(note)
            self._take(conducted)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if conducted.interrupted:
            raise KeyboardInterrupt

    def _take(self, conducted: Conducted) -> None:
        # A launch and what it says of its cases are saved in one step: an interruption falls before or after both.
        if not any(sitting.windows or sitting.failure for sitting in conducted.launch.sittings):
            return
        sittings = {sitting.case: sitting for sitting in conducted.launch.sittings}
        cases = []
        for case in self._page.workload.cases:
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
                cases.append(self._judged(_warm(case, sitting), outputs))
        self._page.update(launches=[*self._page.workload.launches, conducted.launch], cases=cases)

    def _judged(self, case: Case, outputs: dict[int, Path]) -> Case:
        artifact = self._artifact
        if not outputs:
            return case
        known = case.outputs_sha256
        digest = _digest(outputs)
        if known == digest:
            return case  # bit for bit what was judged in an earlier launch
        rows: list[OutputDrift] = []
        task = TaskJudge(artifact.manifest.task)
        for index, path in sorted(outputs.items()):
            candidate, reference = read_tensors(path), artifact.reference(index)
            task.add(candidate, reference)
            rows += drift.judge(
                candidate,
                reference=reference,
                golden=artifact.golden(index),
                input_set=index,
                precision=case.precision,
                task=artifact.manifest.task,
            )
        if known is not None and all(row.passed for row in rows) and not all(row.passed for row in case.drift):
            return case  # one launch that drifted is enough
        bad = next((row for row in rows if not row.passed), None)
        case = msgspec.structs.replace(case, drift=rows, agreement=task.agreements(), outputs_sha256=digest)
        if task.lacks:
            self._page.note(task.lacks)
        if bad is None:
            return msgspec.structs.replace(case, status="ok")
        return msgspec.structs.replace(
            case,
            status="drifted",
            failure=Failure(stage="judge", message=f"output '{bad.output}', input set {bad.input_set}: {bad.reason}"),
        )


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
