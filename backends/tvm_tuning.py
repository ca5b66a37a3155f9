"""MetaSchedule tuning for the TVM backend: a resumable database, a budget, and a loop that leaves no task bare.

TVM's own task schedulers commit a task's records only when it is visited again, and its local builder
starts fresh processes for every batch. This loop drives the search of each task itself: it measures a few
candidates of every task first (untuned code has no schedule at all, so one bare task ruins a model), then
goes where most time is left to win. Every record is on disk as soon as it is measured.

The clock here bounds the tuner's budget. It is not a latency that anyone reports.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

Progress = Callable[[str, "int | None", "int | None"], None]

LEDGER = "ledger.json"
RECORDS = "database_tuning_record.json"
WORKLOADS = "database_workload.json"

SWEEP_TRIALS = 4
"""Candidates of every task in the first pass."""
BATCH_TRIALS = 8
"""Candidates a visit after that, and what one search step proposes."""
STEP_TIMEOUT_S = 20.0
"""Longest time one candidate may take to build, and to measure."""
MEASURE_MS = 10
"""A candidate is repeated until it ran this long."""
IMPROVEMENT = 0.98
"""A visit that does not bring a task's time below this share of its best was in vain."""


class TunerBroken(Exception):
    """The tuner does not work with the installed libraries; the message says how it failed."""


class Ledger(msgspec.Struct, kw_only=True):
    """What was spent on a database so far, over all compiles."""

    seconds: float = 0.0
    trials: int = 0
    failed_trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be spent on a database in all, earlier compiles included."""

    seconds: float
    trials: int | None = None

    def exhausted_by(self, ledger: Ledger) -> bool:
        """Say whether nothing is left to spend."""
        return ledger.seconds >= self.seconds or (self.trials is not None and ledger.trials >= self.trials)


@dataclass(kw_only=True)
class Task:
    """One kernel of the model that can be scheduled, and what its search has found."""

    name: str
    module: Any
    target: Any
    calls: int
    """How often the model calls it."""
    flop: float
    best_s: float | None = None
    trials: int = 0
    vain_visits: int = 0
    finished: bool = False
    """The search proposes nothing new."""
    context: Any = None
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


class Store:
    """A tuning database in a folder, with its ledger. Use `open_store()`, which holds the lock."""

    def __init__(self, folder: Path) -> None:
        from tvm.s_tir import meta_schedule as ms

        self.folder = folder
        repair(folder)
        self.database: Any = ms.database.JSONDatabase(work_dir=str(folder))
        self.ledger = _read_ledger(folder)

    def __len__(self) -> int:
        return len(self.database)

    def save_ledger(self) -> None:
        """Write the ledger so that a kill at any time leaves the old one or the new one."""
        _replace(self.folder / LEDGER, msgspec.json.encode(self.ledger))

    def survey(self, task: Task) -> None:
        """Fill in what the database already knows about a task."""
        workload = self.database.commit_workload(task.module)
        records = self.database.get_top_k(workload, 1 << 20)
        task.trials = len(records)
        task.best_s = min((_mean(record.run_secs) for record in records), default=None)

    def add(self, task: Task, candidate: Any, run_s: list[float]) -> None:
        """Commit one measured candidate to disk."""
        self.database.commit_tuning_record(_record(self.database, task, candidate, run_s))


@contextmanager
def open_store(folder: Path, waiting: Callable[[], None]) -> Iterator[Store]:
    """Open a database for this process alone; `waiting` is called when another process holds it."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield Store(folder)
    finally:
        lock.release()


def repair(folder: Path) -> None:
    """Drop what a kill left half-written, so that the database opens.

    Records name their workload by line number: the workload table is cut at its first damaged line, and
    records that point beyond it go too.
    """
    workloads: list[bytes] = []
    for line in _lines(folder / WORKLOADS):
        if _parsed(line) is None:
            break
        workloads.append(line)
    records = []
    for line in _lines(folder / RECORDS):
        record = _parsed(line)
        if isinstance(record, list) and len(record) == 2 and 0 <= int(record[0]) < len(workloads):
            records.append(line)
    for name, kept in ((WORKLOADS, workloads), (RECORDS, records)):
        path = folder / name
        if path.exists() and path.read_bytes() != (text := b"".join(line + b"\n" for line in kept)):
            _replace(path, text)


def extract_tasks(module: Any, target: Any) -> list[Task]:
    """List the kernels of a prepared Relax module, the costliest first."""
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.analysis import estimate_tir_flops

    tasks = [
        Task(
            name=str(found.task_name),
            module=found.dispatched[0],
            target=target,
            calls=int(found.weight),
            flop=float(estimate_tir_flops(found.dispatched[0])),
        )
        for found in ms.relax_integration.extract_tasks(module, target, {})
    ]
    return sorted(tasks, key=lambda task: -task.flop * task.calls)


class Tuner:
    """Spends a budget on the tasks of one model."""

    def __init__(self, store: Store, tasks: list[Task], budget: Budget, *, threads: int, progress: Progress) -> None:
        from tvm.s_tir import meta_schedule as ms

        # One line a search step would drown the worker's log.
        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
        self._store = store
        self._tasks = tasks
        self._budget = budget
        self._threads = threads
        self._progress = progress
        self._cost_model: Any = ms.cost_model.CostModel.create(
            os.environ.get("CM", "random"), **({"num_tuning_cores": threads, "tree_method": "auto"} if os.environ.get("CM", "random") == "xgb" else {})
        )
        self._measurer: Measurer | None = None
        self._trial_s = 0.3
        self._records_before = len(store)
        for task in tasks:
            store.survey(task)

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._measurer:
            self._measurer.close()

    def run(self) -> None:
        """Tune until the budget is spent or no search proposes anything new.

        Raises:
            TunerBroken: The tuner does not work here.
        """
        if not self._tasks or self._budget.exhausted_by(self._store.ledger):
            return
        for task in self._tasks:
            if task.best_s is None and not self._visit(task, SWEEP_TRIALS):
                return
        while (promising := self._most_promising()) and self._visit(promising, BATCH_TRIALS):
            pass

    def fill_gaps(self) -> tuple[Any, Outcome]:
        """Return a database in which every task has a schedule, measured or not, and the outcome."""
        from tvm.s_tir import meta_schedule as ms

        spare = ms.database.MemoryDatabase()
        filled = 0
        for task in self._tasks:
            if task.best_s is None and (candidates := self._propose(task, 1)):
                spare.commit_tuning_record(_record(spare, task, candidates[0], [1.0]))
                filled += 1
        return ms.database.OrderedUnionDatabase(self._store.database, spare), self._outcome(filled)

    def _workers(self) -> Measurer:
        if self._measurer is None:
            self._measurer = Measurer(self._threads)
            self._measurer.verify(self._tasks[0], self._threads)
        return self._measurer

    def _outcome(self, unmeasured: int) -> Outcome:
        return Outcome(
            ledger=msgspec.structs.replace(self._store.ledger),
            tasks=len(self._tasks),
            tasks_tuned=sum(task.best_s is not None for task in self._tasks),
            tasks_unmeasured=unmeasured,
            records=len(self._store),
            records_before=self._records_before,
            finished=all(task.finished for task in self._tasks),
        )

    def _most_promising(self) -> Task | None:
        open_tasks = [task for task in self._tasks if not task.finished]
        rates = [task.flop / task.best_s for task in self._tasks if task.best_s]
        fastest = max(rates, default=0.0)

        def to_win(task: Task) -> float:
            # Time that the model would save if this task ran at the best rate that any task has reached,
            # halved for each visit that brought nothing: a task bound by memory never gets there.
            if task.best_s is None:
                return float("inf") if not task.vain_visits else 0.0
            return task.calls * max(task.best_s - task.flop / fastest, 0.1 * task.best_s) * 0.5**task.vain_visits

        return max(open_tasks, key=to_win, default=None)

    def _visit(self, task: Task, size: int) -> bool:
        """Measure up to `size` candidates of a task; return False when the budget has no room for one."""
        ledger = self._store.ledger
        room = int((self._budget.seconds - ledger.seconds) / self._trial_s)
        if self._budget.trials is not None:
            room = min(room, self._budget.trials - ledger.trials)
        if room < 1:
            return False
        began = time.monotonic()
        self._report(task)
        candidates = self._propose(task, min(size, room))
        results = self._workers().measure([(c.sch.mod, task.target, c.args_info) for c in candidates])
        self._learn(task, candidates, results)
        spent = time.monotonic() - began
        ledger.seconds += spent
        self._store.save_ledger()
        if candidates:
            self._trial_s = 0.7 * self._trial_s + 0.3 * spent / len(candidates)
        return True

    def _propose(self, task: Task, size: int) -> list[Any]:
        self._workers()  # has verified that a context can be made
        if task.context is None:
            task.context = _context(task, self._threads)
            task.context.pre_tuning(1 << 20, BATCH_TRIALS, None, self._store.database, self._cost_model)
        if not task.queue:
            task.queue = list(task.context.generate_measure_candidates() or [])
            task.finished = not task.queue
        taken, task.queue = task.queue[:size], task.queue[size:]
        return taken

    def _learn(self, task: Task, candidates: list[Any], results: list[list[float] | str]) -> None:
        from tvm.s_tir.meta_schedule.runner import RunnerResult

        best_before = task.best_s
        for candidate, result in zip(candidates, results, strict=True):
            if isinstance(result, str):
                self._store.ledger.failed_trials += 1
                continue
            self._store.add(task, candidate, result)
            task.best_s = min(_mean(result), task.best_s or float("inf"))
        self._store.ledger.trials += len(candidates)
        task.trials += len(candidates)
        improved = task.best_s is not None and (best_before is None or task.best_s < IMPROVEMENT * best_before)
        task.vain_visits = 0 if improved else task.vain_visits + 1
        if candidates:
            told = [RunnerResult(None, r) if isinstance(r, str) else RunnerResult(r, None) for r in results]
            task.context.notify_runner_results(candidates, told)
            self._cost_model.update(task.context, candidates, told)

    def _report(self, task: Task) -> None:
        covered = sum(other.best_s is not None for other in self._tasks)
        ledger = self._store.ledger
        message = f"tuning {task.name} {covered}/{len(self._tasks)}, {ledger.trials} trials"
        self._progress(message, int(ledger.seconds), int(self._budget.seconds))


class Measurer:
    """Worker processes that build candidates side by side and then run them one at a time.

    A candidate may crash or hang, so it never runs in this process; and a build beside a measurement would
    disturb it, so the two phases do not overlap. Workers live until they fail: each start imports TVM anew.
    """

    def __init__(self, workers: int) -> None:
        from tvm.support.popen_pool import PopenWorker

        def enter(root: str) -> None:
            # Pickled by value, as every nested function is: it makes this module importable over there.
            sys.path.insert(0, root)

        root = str(Path(__file__).resolve().parent.parent)
        self._workers = [PopenWorker(initializer=enter, initargs=(root,)) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers)

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()

    def verify(self, task: Task, threads: int) -> None:
        """Try the tuner in a worker process: with some versions of apache-tvm-ffi it dies of a segfault.

        Raises:
            TunerBroken: It died, or it raised.
        """

        def first_contact(lane: int) -> object:
            if lane:
                return _ask(self._workers[lane], os.getpid)
            return _ask(self._workers[lane], try_tuner, task.name, task.module, task.target, threads)

        # All start at once: each imports TVM, which takes seconds.
        answer = list(self._threads.map(first_contact, range(len(self._workers))))[0]
        if answer is not None:
            raise TunerBroken(f"a worker process that tried it ended with {answer}")

    def measure(self, candidates: list[tuple[Any, Any, Any]]) -> list[list[float] | str]:
        """Build and run candidates.

        Args:
            candidates: Scheduled module, target and argument specs of each.

        Returns:
            For each the measured seconds, or what went wrong.
        """
        lanes = len(self._workers)

        def build_lane(lane: int) -> list[object]:
            return [
                _ask(self._workers[lane], build_candidate, slot, *candidates[slot][:2])
                for slot in range(lane, len(candidates), lanes)
            ]

        built = list(self._threads.map(build_lane, range(lanes)))
        results: list[list[float] | str] = []
        for slot, (_, _, args_info) in enumerate(candidates):
            result = built[slot % lanes][slot // lanes]
            if result is None:
                arguments = [argument.as_json() for argument in args_info]
                result = _ask(self._workers[slot % lanes], run_candidate, slot, arguments)
            results.append([float(x) for x in result] if isinstance(result, list) else str(result))
        return results


_built: dict[int, Any] = {}


def try_tuner(name: str, module: Any, target: Any, threads: int) -> None:
    """Make a tuning context in a worker process."""
    _context(Task(name=name, module=module, target=target, calls=1, flop=0.0), threads)


def build_candidate(slot: int, module: Any, target: Any) -> None:
    """Build a scheduled module in a worker process and keep it there under `slot`."""
    from tvm.driver import build
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    _built.pop(slot, None)
    library = build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)
    library.get_function("main")  # machine code is made on first look-up: do it here, not beside a measurement
    _built[slot] = library


def run_candidate(slot: int, arguments: list[Any]) -> list[float]:
    """Measure what `build_candidate()` kept; return seconds a call."""
    import tvm

    fill = tvm.get_global_func("tvm.contrib.random.random_fill_for_measure")
    tensors = []
    for _, dtype, shape in arguments:
        tensor = tvm.runtime.empty(tuple(int(extent) for extent in shape), str(dtype))
        fill(tensor)
        tensors.append(tensor)
    evaluator = _built.pop(slot).time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=MEASURE_MS)
    return [float(second) for second in evaluator(*tensors).results]


def _ask(worker: Any, function: Callable[..., object], *arguments: object) -> object:
    try:
        worker.send(function, arguments, timeout=STEP_TIMEOUT_S)
        return worker.recv()
    except TimeoutError:
        return f"no answer within {STEP_TIMEOUT_S:g} s"
    except Exception as exc:  # noqa: BLE001 - whatever a candidate raises over there is its result
        return f"{type(exc).__name__}: {exc}"


def _context(task: Task, threads: int) -> Any:
    from tvm.s_tir import meta_schedule as ms

    with _without_tensor_intrinsics():
        return ms.TuneContext(
            mod=task.module,
            target=task.target,
            space_generator=ms.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=int(os.environ.get("POP","64")),
                init_measured_ratio=0.25,
                init_min_unmeasured=16,
                max_fail_count=5,
                genetic_num_iters=2,
                genetic_mutate_prob=0.85,
                genetic_max_fail_count=10,
                eps_greedy=float(os.environ.get("EPS","0.1")),
            ),
            task_name=task.name,
            num_threads=threads,
            rand_state=1,
        )


@contextmanager
def _without_tensor_intrinsics() -> Iterator[None]:
    # TuneContext imports every tensor intrinsic of every GPU, which parses for 20 s; float32 code for a
    # CPU uses none of them.
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _record(database: Any, task: Task, candidate: Any, run_s: list[float]) -> Any:
    from tvm.s_tir import meta_schedule as ms

    workload = database.commit_workload(task.module)
    return ms.database.TuningRecord(candidate.sch.trace, workload, run_s, task.target, candidate.args_info)


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)  # type: ignore[no-any-return]
    except ValueError:
        return None


def _read_ledger(folder: Path) -> Ledger:
    try:
        return msgspec.json.decode((folder / LEDGER).read_bytes(), type=Ledger)
    except (OSError, msgspec.DecodeError):
        return Ledger()


def _replace(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
