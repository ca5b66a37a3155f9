"""Worker processes that build and run the tuner's candidates; what they execute is in this file too.

A candidate may crash or hang, so it never runs in the tuner's process. And a build beside a measurement
would disturb it: a batch is first built side by side, then run one by one. Workers live until they fail,
because each start imports TVM, which takes seconds.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backends import tvm_cubin, tvm_cuda, tvm_vnni

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

TIMEOUT_S = 20.0
"""Longest time that one candidate may take to build, and to run."""
MEASURE_MS = 10
"""A candidate is repeated until it ran this long."""
POPULATION = 48
"""Candidates that one step of the evolutionary search breeds from."""
GPU_WORKERS = 8
"""At most so many build for a GPU: each that has run a kernel holds some hundred MB of the device's memory."""


class TunerBroken(Exception):
    """The tuner does not work with the installed libraries; the message says how it failed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A scheduled kernel to measure."""

    module: Any
    target: Any
    arguments: list[Any]
    """`["TENSOR", dtype, shape]` of each."""


class DeviceLost(Exception):
    """A kernel left the process' context on the device unusable; the message says how it failed."""


class Workers:
    """A pool of worker processes, one for each core that may build."""

    def __init__(self, count: int, device: str = "cpu") -> None:
        from tvm.support.popen_pool import PopenWorker

        def enter(root: str, device: str) -> None:
            # Pickled by value, as every nested function is: it makes this module importable over there.
            sys.path.insert(0, root)
            import backends.tvm_measure

            backends.tvm_measure.run_on = device

        root = str(Path(__file__).resolve().parent.parent)
        count = count if device == "cpu" else min(count, GPU_WORKERS)
        self._workers = [PopenWorker(initializer=enter, initargs=(root, device)) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count)

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()

    def start(self, target: Any) -> None:
        """Start all workers at once and have them try the tuner, which some versions of apache-tvm-ffi crash.

        Raises:
            TunerBroken: It died, or it raised.
        """
        answers = list(self._threads.map(lambda worker: _ask(worker, try_tuner, target), self._workers))
        if any(answers):
            raise TunerBroken(f"a worker process that tried the tuner ended with {answers[0]}")

    def measure(self, candidates: list[Candidate]) -> list[list[float] | str]:
        """Build and run candidates; return for each the measured seconds a call, or what went wrong."""
        lanes = len(self._workers)

        def build_lane(lane: int) -> list[object]:
            slots = range(lane, len(candidates), lanes)
            return [
                _ask(self._workers[lane], build, slot, candidates[slot].module, candidates[slot].target)
                for slot in slots
            ]

        built = list(self._threads.map(build_lane, range(lanes)))
        results: list[list[float] | str] = []
        for slot, candidate in enumerate(candidates):
            worker = self._workers[slot % lanes]
            result = built[slot % lanes][slot // lanes]
            if result is None:
                result = _ask(worker, run, slot, candidate.arguments)
            if result is None:
                # Another candidate ended this worker after it had built this one: its successor builds it again.
                result = _ask(worker, build, slot, candidate.module, candidate.target)
                result = result or _ask(worker, run, slot, candidate.arguments)
            results.append([float(x) for x in result] if isinstance(result, list) else str(result))
        return results


def tune_context(module: Any, target: Any, threads: int) -> Any:
    """Return MetaSchedule's search for one kernel.

    With some versions of apache-tvm-ffi this is a segfault: `Workers.start()` finds out.
    """
    from tvm.s_tir import meta_schedule as ms

    # Rules that know the instruction are those that MetaSchedule finds from the target by itself.
    kind = "from-target" if tvm_vnni.of_dots(module) else str(target.kind.name)
    with _without_tensor_intrinsics():
        return ms.TuneContext(
            mod=module,
            target=target,
            space_generator=ms.space_generator.PostOrderApply(sch_rules=kind, postprocs=kind, mutator_probs=kind),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=POPULATION,
                init_measured_ratio=0.25,
                init_min_unmeasured=16,
                max_fail_count=5,
                genetic_num_iters=2,
                genetic_mutate_prob=0.85,
                genetic_max_fail_count=10,
                eps_greedy=0.15,
            ),
            num_threads=threads,
            rand_state=1,
        )


@contextmanager
def _without_tensor_intrinsics() -> Iterator[None]:
    # TuneContext imports every tensor intrinsic of every GPU, which parses for 20 s. A CPU uses one at most, which
    # `tvm_vnni` registers, and the rules for a GPU without tensor cores none.
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _ask(worker: Any, function: Callable[..., object], *arguments: object) -> object:
    try:
        worker.send(function, arguments, timeout=TIMEOUT_S)
        return worker.recv()
    except TimeoutError:
        return f"no answer within {TIMEOUT_S:g} s"
    except DeviceLost as exc:
        worker.kill()  # the next question starts another
        return str(exc)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


# What follows runs in a worker process.

run_on = "cpu"
"""The device that candidates are measured on: `cpu` or `cuda:N`."""
_built: dict[int, Any] = {}


def try_tuner(target: Any) -> None:
    """Make a tuning context and a database for a tiny kernel, and throw both away."""
    import tvm
    from tvm import te
    from tvm.s_tir import meta_schedule as ms

    source = te.placeholder((8, 8), name="source")
    kernel = te.create_prim_func([source, te.compute((8, 8), lambda i, j: source[i, j] + 1.0)])
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    tune_context(module, target, 1)
    with tempfile.TemporaryDirectory() as folder:
        ms.database.JSONDatabase(work_dir=folder).commit_workload(module)


def build(slot: int, module: Any, target: Any) -> None:
    """Build a scheduled module and keep it under `slot`."""
    from tvm.driver import build as compile_kernel
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    _built.pop(slot, None)
    if target.kind.name == "cuda":
        _compile_for_gpu(str(target.attrs["arch"]))
    library = compile_kernel(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)
    # Machine code is made on first look-up: do it here, not beside another's measurement.
    library.get_function("main")
    _built[slot] = library


@cache
def _compile_for_gpu(arch: str) -> None:
    tvm_cuda.load_runtime()
    tvm_cubin.Assembler(tvm_cuda.target_for(arch)).install()


def run(slot: int, arguments: list[Any]) -> list[float] | None:
    """Measure what `build()` kept; return seconds a call, or None where this process built nothing for the slot."""
    import numpy as np
    import tvm

    if slot not in _built:
        return None
    device = tvm.runtime.device(run_on)
    fill = tvm.get_global_func("tvm.contrib.random.random_fill_for_measure")
    tensors = []
    for _, dtype, shape in arguments:
        tensor = tvm.runtime.empty(tuple(int(extent) for extent in shape), str(dtype), device)
        if str(dtype).startswith("float"):
            fill(tensor)
        else:
            # Integers may be indices: zero is the one that is never out of range.
            tensor.copyfrom(np.zeros(tensor.shape, str(dtype)))
        tensors.append(tensor)
    evaluator = _built.pop(slot).time_evaluator("main", device, number=1, repeat=1, min_repeat_ms=MEASURE_MS)
    try:
        return [float(second) for second in evaluator(*tensors).results]
    except Exception as exc:
        try:
            device.sync()
        except Exception:  # a kernel that reads out of bounds makes everything fail that comes after it
            raise DeviceLost(f"{type(exc).__name__}: {exc}") from exc
        raise
