"""The tuner of the TVM backend: spends a budget on the kernels of one model with MetaSchedule.

TVM's own task schedulers commit a task's records only when it is visited again, and its local builder
starts fresh processes for every batch. This loop drives the search of each task itself: it measures a few
candidates of every task first (untuned code has no schedule at all, so one bare task ruins a model), then
goes where most time is left to win.

The clock here bounds the budget. It is not a latency that anyone reports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from backends.tvm_cost_model import TileModel, cost_model, decisions_of
from backends.tvm_measure import Candidate, TunerBroken, Workers, tune_context
from backends.tvm_store import Budget, Ledger, Store, mean, open_store

__all__ = ["Budget", "Outcome", "Task", "Tuner", "TunerBroken", "extract_tasks", "open_store"]

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

Progress = Callable[[str, "int | None", "int | None"], None]

SWEEP_TRIALS = 4
"""Candidates of every task in the first pass."""
BATCH_TRIALS = 8
"""Candidates a visit after that, and what one search step proposes."""
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
    vain_visits: int = 0
    finished: bool = False
    """The search proposes nothing new."""
    search: Any = None
    queue: list[Any] = field(default_factory=list)


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
        self, store: Store, tasks: list[Task], target: Any, budget: Budget, *, threads: int, progress: Progress
    ) -> None:
        # One line a search step would drown the worker's log.
        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
        self._store = store
        self._tasks = tasks
        self._target = target
        self._budget = budget
        self._threads = threads
        self._progress = progress
        self._model = TileModel()
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
        for task in self._tasks:
            if task.best_s is None and not self._visit(task, SWEEP_TRIALS):
                return
        while (promising := self._most_promising()) and self._visit(promising, BATCH_TRIALS):
            pass

    def fill_gaps(self) -> tuple[Any, Outcome]:
        """Give every task without a record a schedule that was never measured. Comes after `run()`.

        Returns:
            A database that answers for all tasks, and what to say about the tuning.
        """
        from tvm.s_tir import meta_schedule as ms

        spare = ms.database.MemoryDatabase()
        filled = 0
        for task in self._tasks:
            if task.best_s is None and (candidates := self._propose(task, 1)):
                spare.commit_tuning_record(self._record(spare, task, candidates[0], [1.0]))
                filled += 1
        outcome = Outcome(
            ledger=msgspec.structs.replace(self._store.ledger),
            tasks=len(self._tasks),
            tasks_tuned=sum(task.best_s is not None for task in self._tasks),
            tasks_unmeasured=filled,
            records=len(self._store),
            records_before=self._records_before,
            finished=all(task.finished for task in self._tasks),
        )
        return ms.database.OrderedUnionDatabase(self._store.database, spare), outcome

    def _start(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self._threads)
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
        self._model.refit()

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
