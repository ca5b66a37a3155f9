"""The TVM backend's tuner: its database after kills, its budget, its cost model, and real tuning of two kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from backends import tvm_measure
from backends.tvm import TVM, Options
from backends.tvm_cost_model import TileModel, cpu_features
from backends.tvm_session import HEADER, Header
from backends.tvm_store import LEDGER, RECORDS, WORKLOADS, Budget, Ledger, Store, open_store, repair
from backends.tvm_tuning import Outcome, Task, Tuner, TunerBroken, extract_tasks
from harness.api import CompileRequest
from harness.artifact import Artifact
from harness.errors import RunError, UsageError
from tests.support import ROOT


def write_lines(path: Path, *lines: str) -> None:
    path.write_text("".join(lines))


def never() -> None:
    raise AssertionError("nobody else holds this database")


# The database's files


def test_repair_drops_a_record_that_a_kill_cut(tmp_path: Path) -> None:
    write_lines(tmp_path / WORKLOADS, '["hash", "module"]\n')
    write_lines(tmp_path / RECORDS, "[0, [1]]\n", "[0, [2]]\n", '[0, [[["GetSB')
    repair(tmp_path)
    assert (tmp_path / RECORDS).read_text() == "[0, [1]]\n[0, [2]]\n"
    assert (tmp_path / WORKLOADS).read_text() == '["hash", "module"]\n'


def test_repair_drops_records_of_a_workload_that_a_kill_cut(tmp_path: Path) -> None:
    write_lines(tmp_path / WORKLOADS, '["a", "module"]\n', '["b", "mod')
    write_lines(tmp_path / RECORDS, "[0, [1]]\n", "[1, [2]]\n")
    repair(tmp_path)
    assert (tmp_path / WORKLOADS).read_text() == '["a", "module"]\n'
    assert (tmp_path / RECORDS).read_text() == "[0, [1]]\n"


def test_repair_ends_a_whole_last_line(tmp_path: Path) -> None:
    # Otherwise the next record would be written onto the same line.
    write_lines(tmp_path / WORKLOADS, '["a", "module"]\n')
    write_lines(tmp_path / RECORDS, "[0, [1]]")
    repair(tmp_path)
    assert (tmp_path / RECORDS).read_text() == "[0, [1]]\n"


def test_repair_leaves_sound_files_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / WORKLOADS, '["a", "module"]\n')
    write_lines(tmp_path / RECORDS, "[0, [1]]\n")
    before = [(tmp_path / name).stat().st_ino for name in (WORKLOADS, RECORDS)]
    repair(tmp_path)
    assert [(tmp_path / name).stat().st_ino for name in (WORKLOADS, RECORDS)] == before


def test_repair_of_an_empty_folder_makes_nothing(tmp_path: Path) -> None:
    repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


# The budget


@pytest.mark.parametrize(
    ("budget", "spent", "exhausted"),
    [
        (Budget(seconds=10), Ledger(), False),
        (Budget(seconds=10), Ledger(seconds=9.9, trials=10**6), False),
        (Budget(seconds=10), Ledger(seconds=10), True),
        (Budget(seconds=0), Ledger(), True),
        (Budget(seconds=10, trials=5), Ledger(trials=4), False),
        (Budget(seconds=10, trials=5), Ledger(trials=5), True),
        (Budget(seconds=10, trials=0), Ledger(), True),
    ],
)
def test_a_budget_counts_what_was_ever_spent(budget: Budget, spent: Ledger, exhausted: bool) -> None:
    assert budget.exhausted_by(spent) is exhausted


@pytest.mark.parametrize("values", [{"trials": 8}, {"tuning_seconds": 5.0}, {"trials": 0}])
def test_tuner_none_refuses_a_budget(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        TVM.check(Options(tuner="none", **values))
    TVM.check(Options(**values))
    TVM.check(Options(tuner="none"))
    TVM.check(Options(dynamic=True, **values))  # the sibling of a tuned case has its budget too, and a note says more


# The cost model


def test_every_feature_is_one_bin_of_a_question() -> None:
    rows = [cpu_features(d) for d in ([], [[1, 7, 2, 1], [16, 2, 32, 1], [256, 1], 1], [3, -2])]
    assert {row.sum() for row in rows} == {7.0}
    assert {row.size for row in rows} == {rows[0].size}


def test_the_model_learns_from_one_kernel_what_it_says_of_another() -> None:
    model = TileModel()
    short, long = [[1, 1, 1, 1], [8, 8, 1, 2], [64, 1]], [[1, 1, 1, 1], [8, 1, 1, 16], [64, 1]]
    assert model.score(short) == model.score(long) == 1.0
    for kernel, scale in (("a", 1.0), ("b", 1e-3)):
        for _ in range(4):
            model.learn(kernel, short, 8e-3 * scale)
            model.learn(kernel, long, 1e-3 * scale)
    model.refit()
    assert model.score(long) > 2 * model.score(short) > 0


# Real tuning


def small_module(target: Any) -> Any:
    """Return two matrix products with a ReLU between, lowered to kernels."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((32, 48), "float32"))
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal(s, dtype=np.float32) for s in ((48, 64), (64, 16)))
    with builder.function("main", [x]):
        with builder.dataflow():
            hidden = builder.emit(relax.op.nn.relu(relax.op.matmul(x, relax.const(first))))
            result = builder.emit_output(relax.op.matmul(hidden, relax.const(second)))
        builder.emit_func_output(result)
    with target:
        return tvm.transform.Sequential([relax.get_pipeline("zero")])(builder.get())


@pytest.fixture(scope="module")
def target() -> Any:
    tvm = pytest.importorskip("tvm")
    return tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": 1})


def tune(folder: Path, target: Any, budget: Budget) -> tuple[Outcome, list[str], list[Task]]:
    """Tune the small module; also return what was reported and the tasks."""
    reported: list[str] = []
    with open_store(folder, never) as store:
        tasks = extract_tasks(small_module(target), target)
        with Tuner(
            store, tasks, target, budget, threads=1, progress=lambda text, done, total: reported.append(text)
        ) as tuner:
            tuner.run()
            return tuner.fill_gaps()[1], reported, tasks


@pytest.fixture(scope="module")
def tuned(target: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("tuned")
    outcome, reported, tasks = tune(folder, target, Budget(seconds=120, trials=6))
    assert len(tasks) == 2
    assert "0/2, 0 trials" in reported[0]
    return folder, outcome


def test_a_trial_budget_is_kept_exactly(tuned: tuple[Path, Outcome]) -> None:
    folder, outcome = tuned
    assert outcome.ledger.trials == 6
    assert outcome.records == 6 - outcome.ledger.failed_trials
    assert (outcome.tasks, outcome.tasks_tuned, outcome.tasks_unmeasured) == (2, 2, 0)
    assert len((folder / RECORDS).read_text().splitlines()) == outcome.records
    assert msgspec.json.decode((folder / LEDGER).read_bytes(), type=Ledger) == outcome.ledger


def test_a_second_compile_within_the_budget_tunes_nothing(tuned: tuple[Path, Outcome], target: Any) -> None:
    folder, first = tuned
    outcome, reported, _ = tune(folder, target, Budget(seconds=120, trials=6))
    assert reported == []
    assert outcome.ledger == first.ledger
    assert (outcome.records_before, outcome.records) == (first.records, first.records)


def test_a_larger_budget_resumes_after_a_torn_write(tuned: tuple[Path, Outcome], target: Any) -> None:
    folder, first = tuned
    with (folder / RECORDS).open("a") as file:
        file.write('[0, [[["GetSBlock"')
    outcome, reported, _ = tune(folder, target, Budget(seconds=240, trials=9))
    assert reported
    assert outcome.ledger.trials == 9
    assert outcome.records_before == first.records
    assert outcome.records > first.records
    assert all(json.loads(line) for line in (folder / RECORDS).read_text().splitlines())


def test_without_a_budget_every_kernel_still_gets_a_schedule(tmp_path: Path, target: Any) -> None:
    import tvm
    from tvm import relax

    module = small_module(target)
    with open_store(tmp_path, never) as store:
        tasks = extract_tasks(module, target)
        with Tuner(store, tasks, target, Budget(seconds=0), threads=1, progress=lambda *_: None) as tuner:
            tuner.run()
            database, outcome = tuner.fill_gaps()
        assert (outcome.tasks_tuned, outcome.tasks_unmeasured, outcome.ledger.trials) == (0, 2, 0)
        with target, database:
            scheduled = relax.transform.MetaScheduleApplyDatabase()(module)
    kernels = [f for f in scheduled.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(kernels) == 2
    assert all(f.attrs["tirx.is_scheduled"] for f in kernels)
    x = np.ones((32, 48), np.float32)
    plain, fast = (
        relax.VirtualMachine(tvm.compile(m, target=target), tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
        for m in (module, scheduled)
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)


def test_a_kill_while_tuning_leaves_a_database_that_resumes(tmp_path: Path, target: Any) -> None:
    script = """
        from pathlib import Path
        import tvm
        from backends.tvm_store import Budget
        from tests.unit.test_tvm_tuning import tune
        target = tvm.target.Target(
            {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": 1}
        )
        tune(Path("store"), target, Budget(seconds=600))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment)
    records = tmp_path / "store" / RECORDS
    try:
        while process.poll() is None and not (records.exists() and records.stat().st_size):
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "workers must end when their parent does"
    kept = len(records.read_text().splitlines())
    with open_store(tmp_path / "store", never) as store:
        assert 1 <= len(store) <= kept
        assert store.ledger.seconds > 0


def test_a_tuner_that_segfaults_is_told_from_one_that_works(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def segfault(target: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(tvm_measure, "try_tuner", segfault)
    workers = tvm_measure.Workers(1)
    try:
        with pytest.raises(TunerBroken, match="ChildProcessError"):
            workers.start(target)
    finally:
        workers.close()


def test_a_candidate_that_crashes_its_worker_costs_no_other_its_measurement(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvm
    from tvm import te

    def fragile(slot: int, arguments: list[Any]) -> object:
        import backends.tvm_measure

        if not arguments:
            os.kill(os.getpid(), signal.SIGSEGV)
        return backends.tvm_measure.run(slot, arguments)

    monkeypatch.setattr(tvm_measure, "run", fragile)
    source = te.placeholder((8, 8), name="source")
    kernel = te.create_prim_func([source, te.compute((8, 8), lambda i, j: source[i, j] + 1.0)])
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    sound = tvm_measure.Candidate(module=module, target=target, arguments=[["TENSOR", "float32", [8, 8]]] * 2)
    crash = dataclasses.replace(sound, arguments=[])
    workers = tvm_measure.Workers(1)
    try:
        first, crashed, last = workers.measure([sound, crash, sound])
    finally:
        workers.close()
    assert isinstance(first, list) and isinstance(last, list)
    assert isinstance(crashed, str) and crashed.startswith("ChildProcessError")


def test_two_processes_do_not_share_a_database(tmp_path: Path, target: Any) -> None:
    waited = []

    class GaveUp(Exception):
        pass

    def waiting() -> None:
        waited.append(True)
        raise GaveUp

    with open_store(tmp_path, never), pytest.raises(GaveUp), open_store(tmp_path, waiting):
        pass
    assert waited
    with open_store(tmp_path, never) as store:
        assert isinstance(store, Store)


# The backend on the tiny model


@pytest.fixture
def request_for(tiny: Artifact, tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("tvm")

    def make(options: Options) -> CompileRequest:
        return CompileRequest(
            artifact=tiny,
            options=options,
            engine_dir=tmp_path / "engine",
            cache_dir=tmp_path / "cache",
            stage=lambda _: contextlib.nullcontext(),
            progress=lambda *_: None,
        )

    yield make


def test_an_engine_says_what_it_is_and_refuses_what_does_not_fit(request_for: Any, tiny: Artifact) -> None:
    request = request_for(Options(tuner="none"))
    session = TVM().compile(request)
    assert session.provider.endswith(", no schedule")
    assert session.notes()[0].startswith("no schedule")
    with pytest.raises(RunError, match="before the first"):
        session.outputs()
    for wrong in ({}, {"input": np.zeros((1, 3, 32, 31), np.float32)}, {"input": np.zeros((1, 3, 32, 32))}):
        with pytest.raises(RunError, match="input"):
            session.bind(wrong)
    session.bind(tiny.input_set(0))
    session.execute()
    got, expected = session.outputs(), tiny.reference(0)
    assert list(got) == [spec.name for spec in tiny.outputs]
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)
    session.save(request.engine_dir)
    loaded = TVM().load(request.engine_dir, request)
    assert (loaded.provider, loaded.facts(), loaded.notes()) == (session.provider, session.facts(), session.notes())
    loaded.bind(tiny.input_set(0))
    loaded.execute()
    for name, array in loaded.outputs().items():
        np.testing.assert_array_equal(array, got[name])


@pytest.mark.parametrize("change", [{"cpu": "i486"}, {"tvm": "0.1"}])
def test_an_engine_of_another_machine_is_refused(request_for: Any, tmp_path: Path, change: dict[str, str]) -> None:
    import tvm

    cpu = str(tvm.target.codegen.llvm_get_system_cpu())
    header = Header(tvm=tvm.__version__, provider="llvm", cpu=cpu, inputs=("input",), facts={}, notes=[])
    request = request_for(Options())
    request.engine_dir.mkdir()
    (request.engine_dir / HEADER).write_bytes(msgspec.json.encode(msgspec.structs.replace(header, **change)))
    with pytest.raises(RunError, match="is for TVM") as raised:
        TVM().load(request.engine_dir, request)
    assert next(iter(change.values())) in str(raised.value)


def test_an_unfinished_engine_is_refused(request_for: Any) -> None:
    request = request_for(Options())
    with pytest.raises(RunError, match="no finished engine"):
        TVM().load(request.engine_dir, request)
