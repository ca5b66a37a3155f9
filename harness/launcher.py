"""Start workers, talk to them, watch them from outside, and end them with everything that they started."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
import psutil

from harness import pinning, protocol, surroundings
from harness.errors import (
    BY_STATUS,
    FallbackError,
    HarnessError,
    OutOfMemory,
    RunError,
    StepTimeout,
    StoreError,
    UsageError,
    WorkerCrashed,
)
from harness.logs import log_tail
from harness.paths import FREE_SPACE
from harness.surroundings import MARK
from harness.topology import as_list

Answer = TypeVar("Answer", bound=msgspec.Struct)
OnProgress = Callable[[protocol.Progress], None]

BOOT = Path(__file__).resolve().parent.parent / "_harness_boot.py"
WATCH_EVERY_S = 0.2
CLOSE_WITHIN_S = 10.0
KILLED_WITHIN_S = 1.0
KILL_LOOKS = 5


class Worker:
    """The parent's handle of one worker process. A context manager; leaving it ends the whole process tree."""

    def __init__(
        self,
        *,
        python: str,
        log: Path,
        environment: Mapping[str, str],
        threads: int,
        memory_limit_bytes: int,
        cpus: frozenset[int] = frozenset(),
    ) -> None:
        self.log = log
        self.peak_bytes = 0
        self.killed = False
        """Whether we ended it on purpose: that it died then is nobody's failure."""
        self._limit = memory_limit_bytes
        self._cpus = cpus
        self._mark = uuid.uuid4().hex
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = log.open("ab")
            self._scratch = Path(tempfile.mkdtemp(prefix="harness-worker-"))
        except OSError as exc:
            raise StoreError(f"{exc.filename or log} cannot be written: {exc.strerror}", hint=FREE_SPACE) from exc
        self._buffer = b""
        self._decoder: msgspec.json.Decoder[protocol.AnyMessage] = msgspec.json.Decoder(protocol.AnyMessage)
        self._closing = threading.RLock()
        requests_read, requests_write = os.pipe()
        self._requests: int | None = requests_write
        self._replies, replies_write = os.pipe()
        try:
            with sink, pinning.inherited(cpus):
                self._process = subprocess.Popen(
                    [python, str(BOOT), str(requests_read), str(replies_write)],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    cwd=self._scratch,
                    env=self._environment(environment, threads),
                    pass_fds=(requests_read, replies_write),
                    start_new_session=True,  # Ctrl-C reaches the parent only, and one signal reaches the whole group
                )
        except OSError as exc:
            os.close(requests_write)
            os.close(self._replies)
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise WorkerCrashed(f"cannot start {python}: {exc.strerror}") from exc
        finally:
            os.close(requests_read)
            os.close(replies_write)
        self._watched = psutil.Process(self._process.pid)
        self._closed = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kindly=kind is None)

    def _environment(self, extra: Mapping[str, str], threads: int) -> dict[str, str]:
        without = pinning.OWN_WILL if self._cpus else ()
        return surroundings.variables(
            extra, threads=threads, scratch=str(self._scratch), mark=self._mark, without=without
        )

    def call(
        self,
        request: protocol.AnyRequest,
        answer: type[Answer],
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
        watch: bool = True,
    ) -> Answer:
        """Send a request and wait for its answer.

        With `watch` the memory of the process tree is sampled meanwhile; without, the parent sleeps until the
        answer comes, so that it takes no CPU time from what is being measured.

        Raises:
            StepTimeout: No answer within `timeout_s`. The worker has been ended, as in the next two.
            OutOfMemory: The process tree grew past its limit.
            WorkerCrashed: The worker died or sent something that is not the protocol.
            HarnessError: The worker reported a failure; its kind follows the status. The worker lives on.
        """
        if self._requests is None:
            raise WorkerCrashed("the worker has been ended")
        try:
            os.write(self._requests, msgspec.json.encode(request) + b"\n")
        except OSError as exc:
            raise self._crashed() from exc
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._replies, selectors.EVENT_READ)
            watched = self._watch_exit(selector)
            try:
                while True:
                    message = self._receive(selector, deadline, timeout_s, watch)
                    if isinstance(message, protocol.Progress):
                        if on_progress is not None:
                            on_progress(message)
                        continue
                    if isinstance(message, protocol.Failed):
                        raise self._reported(message)
                    return msgspec.json.decode(message.value, type=answer)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                self.close(kindly=False)
                raise WorkerCrashed(f"the worker sent something that is not the protocol: {exc}") from exc
            finally:
                if watched is not None:
                    os.close(watched)

    def _watch_exit(self, selector: selectors.BaseSelector) -> int | None:
        # A forked grandchild may hold the reply pipe open: the end of the process itself must wake us too.
        if not hasattr(os, "pidfd_open"):
            return None
        descriptor = os.pidfd_open(self._process.pid)
        selector.register(descriptor, selectors.EVENT_READ)
        return descriptor

    def _receive(
        self, selector: selectors.BaseSelector, deadline: float, timeout_s: float, watch: bool
    ) -> protocol.AnyMessage:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close(kindly=False)
                raise StepTimeout(f"no answer within {timeout_s:g} s", hint="allow more with --timeout SECONDS")
            ready = {key.fd for key, _ in selector.select(min(left, WATCH_EVERY_S if watch else 1.0))}
            if watch:
                self.check_memory()
            if self._replies in ready:
                chunk = os.read(self._replies, 1 << 20)
                if not chunk:
                    raise self._crashed()
                self._buffer += chunk
            elif ready or self._process.poll() is not None:
                raise self._crashed()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return self._decoder.decode(line)

    def check_memory(self) -> None:
        """Note how much the process tree takes now; end it where that is too much.

        Raises:
            OutOfMemory: It grew past its limit.
        """
        used = self.resident_bytes()
        self.peak_bytes = max(self.peak_bytes, used)
        if used > self._limit:
            self.close(kindly=False)
            raise OutOfMemory(
                f"the worker and its children took {used / 2**30:.1f} GiB, the limit is {self._limit / 2**30:.1f} GiB",
                hint="raise it with --memory-limit GB",
            )

    def resident_bytes(self) -> int:
        """Return the resident memory of the worker and all processes below it."""
        total = 0
        try:
            for process in [self._watched, *self._watched.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # it ended while we looked
        except psutil.Error:
            return 0
        return total

    def check_cpus(self) -> None:
        """Make sure that the worker and all processes below it keep to the CPUs that they were given, if any.

        Raises:
            FallbackError: Some thread may run elsewhere: a library placed it by itself.
        """
        if not self._cpus:
            return
        with suppress(psutil.Error):  # it died; the next call says so
            family = [self._watched.pid, *(child.pid for child in self._watched.children(recursive=True))]
            if strays := pinning.strayed(family, self._cpus):
                raise FallbackError(
                    f"a thread of the worker may run on CPUs {as_list(strays)}, outside --cpus {as_list(self._cpus)}",
                    hint="a library places its threads by itself; leave out the option or variable that makes it do so",
                )

    def cpu_seconds(self) -> float:
        """Return the CPU time that the worker itself has used so far."""
        try:
            times = self._watched.cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def note_peak(self) -> None:
        """Take the peak that the kernel kept for the worker itself, which sampling may have missed."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)

    @property
    def pid(self) -> int:
        """The number of the worker's own process."""
        return self._process.pid

    @property
    def mark(self) -> str:
        """The value of `MARK` in the environment of every process below the worker."""
        return self._mark

    @property
    def closed(self) -> bool:
        """Whether the worker has been ended."""
        return self._closed

    def stop(self) -> None:
        """Stop the worker where it stands: an idle thread pool that spins would disturb who is being sampled."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped worker go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the worker's processes and nothing else: whoever waits for its answer hears that it died."""
        self.killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is not None:
            return  # it was waited for: its number may belong to somebody else by now
        with suppress(ProcessLookupError):  # it died; the next call says so
            os.killpg(self._process.pid, number)

    def close(self, *, kindly: bool = True) -> None:
        """End the worker and every process that it started.

        `kindly` lets the session free its memory first. Calling it again changes nothing.
        """
        with self._closing:  # the thread that loads a worker may end it while the main thread does
            if self._closed:
                return
            if self._requests is not None:
                os.close(self._requests)  # the worker reads the end of its requests and leaves
                self._requests = None
            if kindly:
                self.resume()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(CLOSE_WITHIN_S)
            self._kill_tree()
            os.close(self._replies)
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._closed = True  # last: a second Ctrl-C in the middle leaves it to be ended again

    def _kill_tree(self) -> None:
        try:
            below = self._watched.children(recursive=True)
        except psutil.Error:
            below = []
        self._signal(signal.SIGKILL)
        for _ in range(KILL_LOOKS):  # whoever was forked while we looked is found in the next look
            if not (found := [*below, *self._strays()]):
                break
            for process in found:
                with suppress(psutil.Error):  # it is gone already
                    process.kill()
            psutil.wait_procs(found, timeout=KILLED_WITHIN_S)
            below = []
        self._process.wait()

    def _strays(self) -> list[psutil.Process]:
        strays = []
        psutil.process_iter.cache_clear()  # a process id may have been used again since the last look
        for process in psutil.process_iter():
            try:
                if process.pid == self._process.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self._mark:
                    strays.append(process)
            except (psutil.Error, OSError):
                continue  # not ours to read, or gone
        return strays

    def _crashed(self) -> HarnessError:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        near_limit = self.peak_bytes > 0.5 * self._limit
        self.close(kindly=False)
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            if -code == signal.SIGKILL and near_limit:
                return OutOfMemory(
                    f"the worker was killed at {self.peak_bytes / 2**30:.1f} GiB, most likely for want of memory"
                )
            return WorkerCrashed(f"the worker died of {name}")
        if code is None:
            return WorkerCrashed("the worker closed its reply channel")
        return WorkerCrashed(f"the worker ended by itself with exit code {code}")

    @staticmethod
    def _reported(message: protocol.Failed) -> HarnessError:
        kind: type[HarnessError] = UsageError if message.usage else BY_STATUS.get(message.status, RunError)
        error = kind(message.message, hint=message.hint)
        error.worker_traceback = message.traceback
        return error

    def log_tail(self) -> str:
        """Return the last lines that the worker's libraries printed."""
        return log_tail(self.log)


class Launcher:
    """Starts workers with one interpreter, one thread count, one memory limit and one set of CPUs.

    A context manager: whatever ends the block, no worker that it started outlives it.
    """

    def __init__(
        self,
        *,
        logs: Path,
        threads: int,
        memory_limit_bytes: int,
        timeout_s: float,
        python: str | None = None,
        cpus: frozenset[int] = frozenset(),
    ) -> None:
        """Take what all workers share; no `cpus` means that they may run wherever this process may."""
        self.logs = logs
        self.threads = threads
        self.memory_limit_bytes = memory_limit_bytes
        self.timeout_s = timeout_s
        self.python = python or sys.executable
        self.cpus = cpus
        self._workers: list[Worker] = []
        self._starting = threading.Lock()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close(kindly=False)

    def start(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        *,
        threads: int | None = None,
        python: str | None = None,
    ) -> Worker:
        """Start a worker whose libraries' output goes to `<logs>/<name>.log`; `python` is another interpreter for it.

        Raises:
            WorkerCrashed: The interpreter cannot be started.
            StoreError: The log or the scratch folder cannot be written.
        """
        worker = Worker(
            python=python or self.python,
            log=self.logs / f"{name}.log",
            environment=environment or {},
            threads=threads or self.threads,
            memory_limit_bytes=self.memory_limit_bytes,
            cpus=self.cpus,
        )
        with self._starting:  # several devices may be measured at the same time
            self._workers = [known for known in self._workers if not known.closed]
            self._workers.append(worker)
        return worker

    def kill_all(self) -> None:
        """Kill every worker: whoever waits for an answer hears that it died."""
        with self._starting:
            for worker in self._workers:
                worker.kill()

    def owns(self, pid: int) -> bool:
        """Say whether a process is this one or below it, or was started by one of its living workers."""
        try:
            process = psutil.Process(pid)
            if os.getpid() in (pid, *(above.pid for above in process.parents())):
                return True
            with self._starting:
                marks = {worker.mark for worker in self._workers}
            return process.environ().get(MARK) in marks
        except (psutil.Error, OSError):  # it is gone, or somebody else's
            return False
