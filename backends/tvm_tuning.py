"""The tuner of the TVM backend: spends a budget on the kernels of one model with MetaSchedule.

TVM's own task schedulers commit a task's records only when it is visited again, and its local builder
starts fresh processes for every batch. This loop drives the search of each task itself: it measures a few
candidates of every task first (untuned code has no schedule at all, so one bare task ruins a model), then
goes where most time is left to win. Where kernels have a default schedule, as on a GPU, that is measured first:
a search then only has to find what is faster, and no kernel gets slower by tuning.

The clock here bounds the budget. It is not a latency that anyone reports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from backends.tvm_cost_model import TileModel, cost_model, cpu_features, decisions_of, gpu_features
from backends.tvm_measure import Candidate, TunerBroken, Workers, tune_context
from backends.tvm_store import Budget, Ledger, Store, mean, open_store
from harness.api import Scalar

__all__ = ["Budget", "Outcome", "Task", "Tuner", "TunerBroken", "extract_tasks", "open_store"]

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

Progress = Callable[[str, "int | None", "int | None"], None]
Default = Callable[[Any, Any], Any]
"""Module of a kernel, target -> its schedule without tuning, or None where there is none."""

SWEEP_TRIALS = 4
"""Candidates of every task in the first pass."""
BATCH_TRIALS = 8
"""Candidates a visit after that, and what one search step proposes."""
DEFAULTS_BATCH = 16
"""Kernels that are measured together on their default schedules: enough for all workers to build at once."""
IMPROVEMENT = 0.98
"""A visit that does not bring a task's time below this share of its best was in vain."""
SLACK = 0.1
"""Share of a task's time that a search may always hope to win, however fast the task is."""


@dataclass(kw_only=True)
class Task:
    """One kernel of the model that can be scheduled, and what its search has found."""

    name: str
    module: Any
    calls: int
    """How often the model calls it."""
    flop: float
    best_s: float | None = None
    default_s: float | None = None
    """On its default schedule, where it has one that was measured. Never below `best_s`."""
    vain_visits: int = 0
    finished: bool = False
    """The search proposes nothing new."""
    search: Any = None
    queue: list[Any] = field(default_factory=list)

    @property
    def tuned(self) -> bool:
        """Whether a search has found something that is worth using."""
        return self.best_s is not None and (self.default_s is None or self.best_s < self.default_s)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A schedule that no search proposed, in the form of MetaSchedule's candidates."""

    sch: Any
    args_info: Any


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a compile may say about its tuning."""

    ledger: Ledger
    tasks: int
    tasks_tuned: int
    tasks_unmeasured: int
    """Tasks that run on a schedule which nobody measured."""
    records: int
    records_before: int
    finished: bool
    """Every search ended by itself before the budget did."""
    last_failure: str = ""
    """How the last trial failed that did, in this compile."""

    def facts(self) -> dict[str, Scalar]:
        """Return what the report shows of it."""
        return {
            "tuner": "meta-schedule",
            "trials": self.ledger.trials,
            "failed_trials": self.ledger.failed_trials,
            "tasks": self.tasks,
            "tasks_tuned": self.tasks_tuned,
            "tuning_s_total": round(self.ledger.seconds, 1),
            "database_records": self.records,
            "database_records_before": self.records_before,
        }

    def warm_note(self) -> str:
        """Return what the report must say where the database was not empty."""
        return (
            f"compiling started from {self.records_before} kernels that earlier runs had measured: not cold; tuning "
            f"took {self.ledger.seconds:.0f} s in all (harness cache clear --backends forgets them)"
        )


def extract_tasks(module: Any, target: Any) -> list[Task]:
    """List the kernels of a prepared Relax module, the costliest first."""
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.analysis import estimate_tir_flops

    tasks = [
        Task(
            name=str(found.task_name),
            module=found.dispatched[0],
            calls=int(found.weight),
            flop=float(estimate_tir_flops(found.dispatched[0])),
        )
        for found in ms.relax_integration.extract_tasks(module, target, {})
    ]
    return sorted(tasks, key=lambda task: -task.flop * task.calls)


class Tuner:
    """One compile's use of the budget. Use as a context manager: it ends its worker processes."""

    def __init__(
        self,
        store: Store,
        tasks: list[Task],
        target: Any,
        budget: Budget,
        *,
        threads: int,
        progress: Progress,
        device: str = "cpu",
        default: Default | None = None,
    ) -> None:
        """Take what to tune, and where it runs: on `device`, and on the schedule of `default` unless that is None."""
        # One line a search step would drown the worker's log.
        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
        self._store = store
        self._tasks = tasks
        self._target = target
        self._budget = budget
        self._threads = threads
        self._progress = progress
        self._device = device
        self._default = default
        self._last_failure = ""
        self._model = TileModel(cpu_features if device == "cpu" else gpu_features)
        self._cost_model = cost_model(self._model)
        self._workers: Workers | None = None
        self._trial_s = 0.3  # a running mean; this is where it starts
        self._records_before = 0

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers:
            self._workers.close()

    def run(self) -> None:
        """Tune until the budget is spent or no search proposes anything new.

        Raises:
            TunerBroken: The tuner does not work with the installed libraries.
        """
        began = time.monotonic()
        self._survey()
        if not self._tasks or self._budget.exhausted_by(self._store.ledger):
            return
        self._start()
        self._spend(time.monotonic() - began)
        self._measure_defaults()
        for task in self._tasks:
            if task.best_s is None and not self._visit(task, SWEEP_TRIALS):
                return
        while (promising := self._most_promising()) and self._visit(promising, BATCH_TRIALS):
            pass

    def fill_gaps(self) -> tuple[Any, Outcome]:
        """Give every task without a record a schedule that was never measured, unless it has a default one.

        Comes after `run()`.

        Returns:
            A database that answers for all tasks, and what to say about the tuning.
        """
        from tvm.s_tir import meta_schedule as ms

        spare = ms.database.MemoryDatabase()
        filled = 0
        for task in self._tasks if self._default is None else ():
            if task.best_s is None and (candidates := self._propose(task, 1)):
                spare.commit_tuning_record(self._record(spare, task, candidates[0], [1.0]))
                filled += 1
        outcome = Outcome(
            ledger=msgspec.structs.replace(self._store.ledger),
            tasks=len(self._tasks),
            tasks_tuned=sum(task.tuned for task in self._tasks),
            tasks_unmeasured=filled,
            records=len(self._store),
            records_before=self._records_before,
            finished=all(task.finished for task in self._tasks),
            last_failure=self._last_failure,
        )
        if self._default is not None:
            return ms.database.UnionDatabase(self._store.database, self._store.defaults), outcome
        return ms.database.OrderedUnionDatabase(self._store.database, spare), outcome

    def _start(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self._threads, self._device)
            self._workers.start(self._target)
        return self._workers

    def _survey(self) -> None:
        # Learn what the database already knows, once it is known that touching it kills nobody.
        if not self._store.trusted:
            self._start()
            self._store.trust()
        self._records_before = len(self._store)
        for task in self._tasks:
            for record in self._store.records(task.module):
                task.best_s = min(mean(record.run_secs), task.best_s or float("inf"))
                self._model.learn(task.name, decisions_of(record.trace), mean(record.run_secs))
            if self._default is not None and (record := self._store.default(task.module)) is not None:
                self._note_default(task, mean(record.run_secs))
        self._model.refit()

    def _measure_defaults(self) -> None:
        """Measure what kernels take without tuning, those that earlier compiles have not measured."""
        waiting = [task for task in self._tasks if task.default_s is None] if self._default else []
        while waiting and not self._budget.exhausted_by(self._store.ledger):
            began = time.monotonic()
            batch, waiting = waiting[:DEFAULTS_BATCH], waiting[DEFAULTS_BATCH:]
            self._progress(f"measuring kernels as they are without tuning, {len(waiting)} left after these", None, None)
            found = [(task, self._proposal(task)) for task in batch]
            proposals = [(task, proposal) for task, proposal in found if proposal is not None]
            results = self._start().measure([self._candidate(proposal) for _, proposal in proposals])
            for (task, proposal), result in zip(proposals, results, strict=True):
                if isinstance(result, str):
                    self._last_failure = _last_line(result)
                    continue
                defaults = self._store.defaults
                defaults.commit_tuning_record(self._record(defaults, task, proposal, result))
                self._note_default(task, mean(result))
            self._spend(time.monotonic() - began)

    def _proposal(self, task: Task) -> Proposal | None:
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        schedule = self._default(task.module, self._target) if self._default else None
        if schedule is None:
            return None
        return Proposal(sch=schedule, args_info=ArgInfo.from_entry_func(task.module, remove_preproc=True))

    @staticmethod
    def _note_default(task: Task, seconds: float) -> None:
        task.default_s = seconds
        task.best_s = min(seconds, task.best_s or float("inf"))

    def _most_promising(self) -> Task | None:
        fastest = max((task.flop / task.best_s for task in self._tasks if task.best_s), default=0.0)

        def to_win(task: Task) -> float:
            # Time that the model would save if this task ran at the best rate that any task has reached,
            # halved for each visit that brought nothing: a task bound by memory never gets there.
            if task.best_s is None:
                return float("inf") if task.vain_visits < 2 else 0.0
            seconds = max(task.best_s - task.flop / fastest, SLACK * task.best_s) if fastest else task.best_s
            return task.calls * seconds * 0.5**task.vain_visits

        return max((task for task in self._tasks if not task.finished), key=to_win, default=None)

    def _visit(self, task: Task, size: int) -> bool:
        """Measure up to `size` candidates of a task; return False when the budget has no room for one."""
        room = self._room()
        if room < 1:
            return False
        began = time.monotonic()
        self._report(task)
        candidates = self._propose(task, min(size, room))
        results = self._start().measure([self._candidate(proposed) for proposed in candidates])
        self._learn(task, candidates, results)
        spent = time.monotonic() - began
        if candidates:
            self._trial_s = 0.7 * self._trial_s + 0.3 * spent / len(candidates)
        self._spend(spent)
        return True

    def _room(self) -> int:
        ledger = self._store.ledger
        room = round((self._budget.seconds - ledger.seconds) / self._trial_s)
        return room if self._budget.trials is None else min(room, self._budget.trials - ledger.trials)

    def _spend(self, seconds: float) -> None:
        self._store.ledger.seconds += seconds
        self._store.save_ledger()

    def _propose(self, task: Task, size: int) -> list[Any]:
        if task.search is None:
            task.search = tune_context(task.module, self._target, self._threads)
            task.search.pre_tuning(1 << 20, BATCH_TRIALS, None, self._store.database, self._cost_model)
        if not task.queue:
            task.queue = list(task.search.generate_measure_candidates() or [])
            task.finished = not task.queue
        taken, task.queue = task.queue[:size], task.queue[size:]
        return taken

    def _candidate(self, proposed: Any) -> Candidate:
        arguments = [argument.as_json() for argument in proposed.args_info]
        return Candidate(module=proposed.sch.mod, target=self._target, arguments=arguments)

    def _learn(self, task: Task, proposed: list[Any], results: list[list[float] | str]) -> None:
        from tvm.s_tir.meta_schedule.runner import RunnerResult

        database, ledger = self._store.database, self._store.ledger
        before = task.best_s
        for candidate, result in zip(proposed, results, strict=True):
            ledger.trials += 1
            if isinstance(result, str):
                ledger.failed_trials += 1
                self._last_failure = _last_line(result)
                continue
            database.commit_tuning_record(self._record(database, task, candidate, result))
            task.best_s = min(mean(result), task.best_s or float("inf"))
            self._model.learn(task.name, decisions_of(candidate.sch.trace), mean(result))
        self._model.refit()
        improved = task.best_s is not None and (before is None or task.best_s < IMPROVEMENT * before)
        task.vain_visits = 0 if improved else task.vain_visits + 1
        if proposed:
            told = [RunnerResult(None, r) if isinstance(r, str) else RunnerResult(r, None) for r in results]
            task.search.notify_runner_results(proposed, told)

    def _record(self, database: Any, task: Task, proposed: Any, run_s: list[float]) -> Any:
        from tvm.s_tir import meta_schedule as ms

        workload = database.commit_workload(task.module)
        return ms.database.TuningRecord(proposed.sch.trace, workload, run_s, self._target, proposed.args_info)

    def _report(self, task: Task) -> None:
        covered = sum(other.best_s is not None for other in self._tasks)
        ledger = self._store.ledger
        message = f"tuning {task.name} {covered}/{len(self._tasks)}, {ledger.trials} trials"
        self._progress(message, int(ledger.seconds), int(self._budget.seconds))


def _last_line(failure: str) -> str:
    # What a worker process raised comes with the stack over there.
    return failure.strip().rpartition("\n")[2]
