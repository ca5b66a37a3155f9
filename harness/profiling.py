"""Cases under their own profilers: compiled or found as for a comparison, then each in a worker of its own.

Nothing of this goes into a comparison: an iteration that a profiler watches is no latency.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness import protocol
from harness.artifact import Artifact
from harness.compare import Comparison
from harness.compiling import Compiled
from harness.engines import EngineStore
from harness.errors import HarnessError, StoreError
from harness.launcher import Launcher, Worker
from harness.ledger import Page
from harness.paths import write_atomically
from harness.plan import Variant
from harness.profiles import CaseProfile, ProfileRecord, WorkloadProfile
from harness.progress import Narrator, brief
from harness.records import REUSED, Case, Failure, Run
from harness.refusals import refuse_elsewhere
from harness.rounds import Seat, describe
from harness.store import RunFolder

PROFILE_FILE = "profile.json"
PLAIN_S = 0.1
"""At least so long is sampled before the profiler is turned on."""


class Unrecorded(RunFolder):
    """A folder in which no run is saved: what is profiled is no comparison, and `last` must not find it."""

    @property
    def logs(self) -> Path:
        """Beside those of the comparison, where the folder is that of one."""
        return self.path / "profile-logs"

    def save(self, run: Run) -> None:
        """Save nothing: the profile is the record."""


class Profiling(Comparison):
    """Compiles as a comparison does, and asks each backend's profiler in place of measuring."""

    def __init__(
        self, run: Run, variants: list[Variant], folder: RunFolder, narrator: Narrator, record: ProfileRecord
    ) -> None:
        super().__init__(run, variants, Unrecorded(folder.path), narrator)
        self.record = record
        self._target = folder.path / PROFILE_FILE

    def _work(self, page: Page, artifact: Artifact, compiled: dict[str, Compiled]) -> None:
        for case in page.workload.cases:
            found = self._profiled(case, compiled[case.id].seats)
            self._keep(page, [found])
            if found.profile:  # said once it is kept
                self._say.done(f"profiled {case.id}: {len(found.profile.operators)} operators")

    def _profiled(self, case: Case, seats: Sequence[Seat]) -> CaseProfile:
        blank = CaseProfile(
            id=case.id,
            backend=case.backend,
            status=case.status,
            failure=case.failure,
            version=case.version,
            provider=case.provider,
            device=case.device,
            precision=case.precision,
            threads=case.threads,
            engine_reused=REUSED in case.facts,
        )
        if not seats:
            return blank
        self._say.doing(f"profiling {case.id}")
        worker: Worker | None = None
        try:
            seat = seats[0]
            with self._launcher.start(
                f"{seat.slug}-profile", seat.environment, threads=seat.spec.threads, python=seat.python
            ) as worker:
                return ask(worker, seat, self._launcher, self.record.iterations, blank)
        except StoreError:
            raise
        except HarnessError as exc:  # a row says why; the others go on
            failure = describe(exc, "profile", worker.log if worker else None)
            self._say.done(f"{case.id}: {exc.status.replace('_', ' ')}: {brief(exc.message)}")
            return msgspec.structs.replace(blank, status=exc.status, failure=failure)

    def _tidy(self, page: Page, engines: EngineStore) -> None:
        for case in page.workload.cases:
            if case.engine is None or case.failure is not None:
                continue
            folder = Path(case.engine).parent
            if REUSED in case.facts:  # a second name of what another run has compiled, which goes on needing it
                shutil.rmtree(folder, ignore_errors=True)
            else:
                engines.prune(folder)

    def _keep(self, page: Page, cases: list[CaseProfile]) -> None:
        workload = page.workload
        known = {one.key: one for one in self.record.workloads}
        before = known.get(workload.key)
        known[workload.key] = WorkloadProfile(
            key=workload.key,
            model=workload.model.label,
            device=workload.device,
            dims=workload.dims,
            cases=[*(before.cases if before else []), *cases],
            notes=workload.notes,
        )
        self.record = msgspec.structs.replace(self.record, workloads=list(known.values()))
        self.save()

    def save(self, **changes: object) -> None:
        """Write the record with changes.

        Raises:
            StoreError: It cannot be written.
        """
        self.record = msgspec.structs.replace(self.record, **changes)
        write_atomically(self._target, msgspec.json.encode(self.record))

    def _end(self, page: Page, status: str, failure: Failure) -> None:
        super()._end(page, status, failure)
        self._keep(page, [self._profiled(case, ()) for case in page.workload.cases])


def ask(worker: Worker, seat: Seat, launcher: Launcher, iterations: int, blank: CaseProfile) -> CaseProfile:
    """Load an engine, time it without its profiler, then with it.

    Raises:
        HarnessError: The engine does not load or run, or there is no profiler for it.
    """
    limit = launcher.timeout_s
    worker.call(protocol.Import(backend=seat.spec.backend), protocol.Imported, timeout_s=limit)
    opened = worker.call(protocol.Load(case=seat.spec), protocol.Opened, timeout_s=limit)
    refuse_elsewhere(seat.spec, opened)
    worker.call(protocol.RunOnce(), protocol.Took, timeout_s=limit)
    worker.call(protocol.WarmUp(), protocol.Samples, timeout_s=limit)
    plain = protocol.Sample(boundary="compute", min_iterations=iterations, min_seconds=PLAIN_S)
    without = worker.call(plain, protocol.Samples, timeout_s=limit, watch=False)
    found = worker.call(protocol.Profile(iterations=iterations), protocol.Profiled, timeout_s=limit)
    return msgspec.structs.replace(
        blank,
        status="ok",
        provider=opened.provider,
        plain_ns=without.durations_ns,
        profiled_ns=found.durations_ns,
        profile=found.profile,
        nodes=found.nodes,
    )
