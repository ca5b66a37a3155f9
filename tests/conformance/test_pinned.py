"""`--cpus` for real: no thread of a worker ever runs on another CPU, whatever its library thinks best.

With more threads than the one CPU, so that the library's own pool is there; from the worker's first moment on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from harness import protocol, registry
from harness.artifact import Artifact
from harness.launcher import Launcher
from harness.topology import parse_list

LOOK_EVERY_S = 0.01
TIMEOUT_S = 120.0


class Seen:
    """The CPUs on which threads of a process tree may run and did run, and how many threads there were."""

    def __init__(self) -> None:
        self.allowed: set[int] = set()
        self.ran: set[int] = set()
        self.threads: set[int] = set()

    def look(self, root: int) -> None:
        """Add what the kernel says now."""
        try:
            family = [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
        except psutil.Error:
            return
        for process in family:
            for task in Path(f"/proc/{process}/task").glob("*"):
                try:
                    status, stat = (task / "status").read_text(), (task / "stat").read_text()
                except OSError:
                    continue  # it has ended
                line = next(each for each in status.splitlines() if each.startswith("Cpus_allowed_list"))
                self.allowed |= parse_list(line.partition(":")[2])
                self.ran.add(int(stat.rpartition(")")[2].split()[36]))
                self.threads.add(int(task.name))


@contextmanager
def watching(root: int) -> Iterator[Seen]:
    """Look at a process tree again and again while the block runs."""
    seen, done = Seen(), threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY_S):
            seen.look(root)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_no_thread_of_a_worker_runs_elsewhere(name: str, tiny: Artifact, tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    assert len(ours) > 1, "this needs a second CPU to see whether anything runs on it"
    kind = registry.backend(name)
    case = protocol.CaseSpec(
        backend=name,
        options={},
        artifact=str(tiny.folder),
        device="cpu",
        precision="fp32",
        threads=2,
        engine_dir=str(tmp_path / "engine"),
        cache_dir=str(tmp_path / "cache"),
    )
    for one in (min(ours), max(ours)):
        launcher = Launcher(
            logs=tmp_path, threads=2, memory_limit_bytes=8 << 30, timeout_s=TIMEOUT_S, cpus=frozenset({one})
        )
        with launcher, launcher.start(f"{name}-{one}", kind.environment(kind.Options(), tmp_path, 2)) as worker:
            with watching(worker._process.pid) as seen:
                worker.call(protocol.Import(backend=name), protocol.Imported, timeout_s=TIMEOUT_S)
                worker.call(protocol.Compile(case=case), protocol.Opened, timeout_s=TIMEOUT_S)
                worker.call(protocol.RunOnce(), protocol.Took, timeout_s=TIMEOUT_S)
                worker.call(protocol.WarmUp(), protocol.Samples, timeout_s=TIMEOUT_S)
            worker.check_cpus()
        assert len(seen.threads) > 1, "its pool was there"
        assert (seen.allowed, seen.ran) == ({one}, {one})
        if name == "eager":
            break  # torch takes seconds to import; one CPU of the two says it


def test_the_check_of_an_export_keeps_to_it_too(tiny: Artifact, tmp_path: Path) -> None:
    # Without a number of threads its runtime ties each of them to a CPU of its own choice.
    ours = os.sched_getaffinity(0)
    launcher = Launcher(
        logs=tmp_path, threads=2, memory_limit_bytes=8 << 30, timeout_s=TIMEOUT_S, cpus=frozenset({min(ours)})
    )
    check = protocol.Check(folder=str(tiny.folder), input_sets=1, threads=2)
    with launcher, launcher.start("check") as worker, watching(worker._process.pid) as seen:
        for _ in range(50):  # its pool lives for milliseconds: a look may miss it
            worker.call(check, protocol.Checked, timeout_s=TIMEOUT_S)
            worker.check_cpus()
            if len(seen.threads) > 1:
                break
    assert len(seen.threads) > 1
    assert seen.allowed == {min(ours)}
