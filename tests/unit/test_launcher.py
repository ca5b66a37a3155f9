"""Workers seen from the parent: what it understands, what it notices, and that nothing survives the end.

Most workers here are impostors: scripts in the interpreter's place that misbehave in one way.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import protocol
from harness.errors import (
    CompileError,
    HarnessError,
    OutOfMemory,
    RunError,
    StepTimeout,
    UnavailableError,
    WorkerCrashed,
)
from harness.launcher import Launcher, Worker
from harness.logs import LOG_TAIL_BYTES, log_tail
from harness.surroundings import MARK, THREAD_VARIABLES

Impostor = Callable[[str], Worker]
ASK = protocol.RunOnce()
LONG_S = 60.0
PRELUDE = """\
#!{python} -S
import os, subprocess, sys, time
requests, replies = int(sys.argv[2]), int(sys.argv[3])
DONE = b'{{"is":"done","value":{{"seconds":1.5}}}}\\n'
def ask():
    line = b""
    while not line.endswith(b"\\n"):
        piece = os.read(requests, 1)
        if not piece:
            sys.exit(0)
        line += piece
    return line
def say(text):
    while text:
        text = text[os.write(replies, text):]
"""


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    """Start a script in a worker's place."""
    started: list[Worker] = []

    def start(body: str, *, limit: int = 8 << 30) -> Worker:
        script = tmp_path / f"impostor-{len(started)}"
        script.write_text(PRELUDE.format(python=sys.executable) + textwrap.dedent(body))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        worker = Worker(
            python=str(script), log=tmp_path / f"log-{len(started)}", environment={}, threads=3,
            memory_limit_bytes=limit,
        )  # fmt: skip
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close(kindly=False)


def ask(worker: Worker, timeout_s: float = LONG_S) -> float:
    return worker.call(ASK, protocol.Took, timeout_s=timeout_s).seconds


def marked(worker: Worker) -> list[psutil.Process]:
    """Return the living processes that carry the worker's mark."""
    psutil.process_iter.cache_clear()  # its objects refuse a process whose number belonged to an earlier one
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == worker._mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_until(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.02)
    return False


# ---- what the parent understands


def test_line_in_pieces_is_one_message(impostor: Impostor) -> None:
    worker = impostor("ask()\nfor byte in DONE:\n    say(bytes([byte]))\n    time.sleep(0.002)\nask()")
    assert ask(worker) == 1.5


def test_messages_in_one_write_are_told_apart(impostor: Impostor) -> None:
    worker = impostor('ask()\nsay(b\'{"is":"progress","text":"a"}\\n\' * 3 + DONE + DONE)\nask()\nask()')
    heard: list[str] = []
    took = worker.call(ASK, protocol.Took, timeout_s=LONG_S, on_progress=lambda progress: heard.append(progress.text))
    assert (took.seconds, heard) == (1.5, ["a", "a", "a"])
    assert ask(worker) == 1.5, "what came too early waits for its question"


def test_answer_larger_than_a_pipe(impostor: Impostor) -> None:
    worker = impostor(
        'ask()\nsay(b\'{"is":"done","value":{"durations_ns":[\' + b\'7,\' * 400000 + b\'7]}}\\n\')\nask()'
    )
    assert worker.call(protocol.WarmUp(), protocol.Samples, timeout_s=LONG_S).durations_ns == [7] * 400001


def test_output_of_libraries_is_not_the_protocol(impostor: Impostor) -> None:
    worker = impostor(
        'ask()\nprint(\'{"is":"done","value":null}\', flush=True)\nos.write(2, b\'warn\')\nsay(DONE)\nask()'
    )
    assert ask(worker) == 1.5
    assert '"value":null' in worker.log_tail() and "warn" in worker.log_tail()


@pytest.mark.parametrize(
    ("status", "kind"),
    [("compile_failed", CompileError), ("unavailable", UnavailableError), ("out_of_memory", OutOfMemory),
     ("of the future", RunError)],
)  # fmt: skip
def test_reported_failure_has_its_kind_and_the_worker_lives_on(
    status: str, kind: type[HarnessError], impostor: Impostor
) -> None:
    failed = f'{{"is":"failed","status":"{status}","message":"why","hint":"do","traceback":"where"}}'
    worker = impostor(f"ask()\nsay(b'{failed}\\n')\nask()\nsay(DONE)\nask()")
    with pytest.raises(kind) as caught:
        ask(worker)
    assert (caught.value.message, caught.value.hint, caught.value.worker_traceback) == ("why", "do", "where")
    assert not worker.closed
    assert ask(worker) == 1.5


@pytest.mark.parametrize(
    "line",
    ["garbage", "{}", "null", '{"is":"done"}', '{"is":"done","value":{"second":1}}', '{"is":"unknown"}', "\\xff\\xfe",
     ""],
)  # fmt: skip
def test_what_is_not_the_protocol_ends_the_worker(line: str, impostor: Impostor) -> None:
    worker = impostor(f"ask()\nsay(b'{line}\\n')\ntime.sleep(600)")
    with pytest.raises(WorkerCrashed, match="not the protocol"):
        ask(worker)
    assert worker.closed
    assert not marked(worker)


# ---- what the parent notices


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os._exit(3)", "ended by itself with exit code 3"),
        ("os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "died of SIGKILL"),
        ("os.close(replies)\ntime.sleep(600)", "closed its reply channel"),
        ("say(DONE[:10])\nos._exit(4)", "exit code 4"),
        ("subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], close_fds=False)\nos._exit(5)",
         "exit code 5"),
    ],
    ids=["exit", "segfault", "killed", "closed", "half a line", "a child holds the channel"],
)  # fmt: skip
def test_death_is_noticed_at_once(body: str, message: str, impostor: Impostor) -> None:
    worker = impostor(f"ask()\n{body}")
    with pytest.raises(WorkerCrashed, match=message):
        ask(worker, timeout_s=LONG_S)
    assert not marked(worker)


def test_timeout_ends_the_whole_tree(impostor: Impostor) -> None:
    worker = impostor(
        """
        child = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(child)
        subprocess.Popen(child, start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            time.sleep(600)
        ask()
        say(DONE)
        ask()
        time.sleep(600)
        """
    )
    ask(worker)
    # The one in the middle of the double fork may still be there.
    assert wait_until(lambda: len(marked(worker)) >= 4), marked(worker)
    with pytest.raises(StepTimeout, match=r"no answer within 0\.3 s") as caught:
        ask(worker, timeout_s=0.3)
    assert "--timeout" in (caught.value.hint or "")
    assert worker.closed
    assert wait_until(lambda: not marked(worker)), marked(worker)


def test_signs_of_life_do_not_extend_the_time_limit(impostor: Impostor) -> None:
    worker = impostor('ask()\nwhile True:\n    say(b\'{"is":"progress","text":"a"}\\n\')\n    time.sleep(0.01)')
    with pytest.raises(StepTimeout):
        ask(worker, timeout_s=0.5)


def test_peak_memory_counts_the_whole_tree(impostor: Impostor) -> None:
    worker = impostor(
        """
        ask()
        code = "import time; x = bytearray(b'x' * (100 << 20)); print(1, flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        own = bytearray(b'x' * (100 << 20))
        time.sleep(0.6)
        say(DONE)
        ask()
        """
    )
    ask(worker)
    assert worker.peak_bytes > 200 << 20


def test_note_peak_finds_what_sampling_missed(impostor: Impostor) -> None:
    worker = impostor("x = bytearray(b'x' * (100 << 20))\ndel x\nask()\nsay(DONE)\nask()")
    worker.call(ASK, protocol.Took, timeout_s=LONG_S, watch=False)
    before = worker.peak_bytes
    worker.note_peak()
    assert before < 100 << 20 < worker.peak_bytes


def test_memory_limit_ends_the_worker(impostor: Impostor) -> None:
    worker = impostor("ask()\nx = bytearray(b'x' * (200 << 20))\ntime.sleep(600)", limit=100 << 20)  # type: ignore[call-arg]
    with pytest.raises(OutOfMemory, match=r"the limit is 0\.1 GiB") as caught:
        ask(worker)
    assert "--memory-limit" in (caught.value.hint or "")
    assert not marked(worker)


def test_kill_by_the_kernel_near_the_limit_is_want_of_memory(impostor: Impostor) -> None:
    body = "ask()\nx = b'x' * (200 << 20)\ntime.sleep(0.6)\nos.kill(os.getpid(), 9)"
    worker = impostor(body, limit=300 << 20)  # type: ignore[call-arg]
    with pytest.raises(OutOfMemory, match="most likely for want of memory"):
        ask(worker)


# ---- stopping


SPINNER = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n"


def test_stopped_worker_uses_no_cpu_time(impostor: Impostor) -> None:
    worker = impostor(SPINNER + "while True:\n    ask()\n    say(DONE)")
    ask(worker)
    process = psutil.Process(worker._process.pid)
    running = worker.cpu_seconds()
    assert wait_until(lambda: worker.cpu_seconds() > running + 0.1), "it spins while it is not stopped"
    worker.stop()
    assert wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    stopped = worker.cpu_seconds()
    time.sleep(0.5)
    assert worker.cpu_seconds() == stopped
    worker.resume()
    assert ask(worker) == 1.5
    assert wait_until(lambda: worker.cpu_seconds() > stopped + 0.1)


def test_stopped_worker_can_be_closed(impostor: Impostor) -> None:
    worker = impostor("ask()")
    worker.stop()
    worker.close()
    assert not marked(worker)


def test_stop_and_resume_of_a_dead_worker_are_harmless(impostor: Impostor) -> None:
    worker = impostor("os._exit(0)")
    assert wait_until(lambda: worker._process.poll() is not None)
    worker.stop()
    worker.resume()
    with pytest.raises(WorkerCrashed):
        ask(worker)


# ---- beginning and end


def test_environment_of_a_worker_is_explicit(impostor: Impostor) -> None:
    names = [*THREAD_VARIABLES, "TMPDIR", MARK]
    worker = impostor(
        f"print([os.environ[name] for name in {names!r}], os.getcwd(), flush=True)\nask()\nsay(DONE)\nask()"
    )
    ask(worker)
    scratch = worker._scratch
    assert worker.log_tail() == f"{['3'] * len(THREAD_VARIABLES) + [str(scratch), worker._mark]} {scratch}"
    assert scratch.is_dir()
    worker.close()
    assert not scratch.exists(), "what a compiler leaves behind goes away with the worker"


def test_extra_variables_go_before_our_own(tmp_path: Path) -> None:
    script = tmp_path / "impostor"
    script.write_text(
        PRELUDE.format(python=sys.executable) + "print(os.environ['OMP_NUM_THREADS'], flush=True)\nask()\nsay(DONE)"
    )
    script.chmod(0o755)
    with Launcher(
        logs=tmp_path / "logs", threads=3, memory_limit_bytes=8 << 30, timeout_s=LONG_S, python=str(script)
    ) as launcher:
        first = launcher.start("one", {"OMP_NUM_THREADS": "7"})
        ask(first)
        second = launcher.start("one", threads=5)
        ask(second)
        assert second.log == tmp_path / "logs" / "one.log"
        assert second.log_tail() == "7\n5", "a log of the same name is added to"
    assert first.closed and second.closed


def test_launcher_ends_its_workers_whatever_happens(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Launcher(logs=tmp_path, threads=1, memory_limit_bytes=8 << 30, timeout_s=LONG_S) as launcher,
    ):
        worker = launcher.start("real")
        assert wait_until(lambda: bool(marked(worker)))
        raise KeyboardInterrupt
    assert worker.closed
    assert not marked(worker)


def test_interpreter_that_is_not_there(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    launcher = Launcher(logs=tmp_path, threads=1, memory_limit_bytes=1, timeout_s=1.0, python=str(tmp_path / "python9"))
    with pytest.raises(WorkerCrashed, match=r"cannot start .*python9: No such file or directory"):
        launcher.start("none")
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"


def test_no_descriptor_and_no_folder_is_left(impostor: Impostor) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        worker = impostor("ask()\nsay(DONE)\nask()")
        ask(worker)
        worker.close()
        worker.close()
        assert not worker._scratch.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_real_worker_answers_and_says_what_is_not_open(launcher: Launcher) -> None:
    with launcher.start("launcher-test") as worker:
        with pytest.raises(RunError, match="no engine is open") as caught:
            ask(worker)
        assert "Traceback" in caught.value.worker_traceback
        assert worker._requests is not None
        os.write(worker._requests, b"not a request\n")
        with pytest.raises(RunError, match="DecodeError"):
            ask(worker)
        with pytest.raises(RunError, match="no engine is open"):
            ask(worker)


def test_cards_are_counted_as_the_driver_counts_them(impostor: Impostor) -> None:
    worker = impostor("print(os.environ['CUDA_DEVICE_ORDER'], flush=True)\nask()\nsay(DONE)\nask()")
    ask(worker)
    assert worker.log_tail() == "PCI_BUS_ID"


def test_processes_below_a_worker_are_ours_and_others_are_not(tmp_path: Path) -> None:
    with Launcher(logs=tmp_path, threads=1, memory_limit_bytes=8 << 30, timeout_s=LONG_S) as launcher:
        worker = launcher.start("real")
        assert launcher.owns(worker.pid)
        assert launcher.owns(os.getpid())
        assert not launcher.owns(1)
        # One that has left the tree is known by its mark.
        code = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
        marked_ = {**os.environ, MARK: worker.mark}
        made = subprocess.Popen([sys.executable, "-S", "-c", code], env=marked_, stdout=subprocess.PIPE, text=True)
        assert made.stdout is not None
        stray = int(made.stdout.readline())
        made.wait()
        assert psutil.Process(stray).ppid() != made.pid
        assert launcher.owns(stray)
    assert wait_until(lambda: not psutil.pid_exists(stray) or psutil.Process(stray).status() == psutil.STATUS_ZOMBIE)
    assert not launcher.owns(2**22 + 1), "there is no such process"


# ---- logs


def test_log_tail_is_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_tail(log) == ""
    log.write_bytes(b"")
    assert log_tail(log) == ""
    log.write_bytes(b"\xff first\n" + b"x" * LOG_TAIL_BYTES + b"\nlast \xfe\n")
    tail = log_tail(log)
    assert tail.endswith("last \N{REPLACEMENT CHARACTER}")
    assert "first" not in tail
    assert len(tail) <= LOG_TAIL_BYTES


def test_stray_whose_number_belonged_to_another_process_is_ended_too(impostor: Impostor) -> None:
    worker = impostor(
        """
        stray = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(stray.pid, flush=True)
        ask()
        say(DONE)
        ask()
        os._exit(0)
        """
    )
    ask(worker)
    number = int(worker.log_tail())
    # What psutil remembers of an earlier process of this number, once the kernel has given numbers a second time.
    earlier: Any = psutil.Process(number)
    earlier._ident = (number, 1.0)
    list(psutil.process_iter())
    known: Any = psutil
    known._pmap[number] = earlier
    with pytest.raises(WorkerCrashed):
        ask(worker)
    left = marked(worker)
    for process in left:
        process.kill()
    assert not left
