"""Locked clocks come back, whatever ends the run: real processes, and a fake NVML that writes down what it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # values of a fake card

import pytest

from harness import clocks
from harness.errors import UsageError
from tests import fake_nvml
from tests.fake_nvml import CONSTANTS, FakeCard, FakeNvml
from tests.support import ROOT

UUID = FakeCard().uuid
TDP = CONSTANTS["NVML_CLOCK_LIMIT_ID_TDP"]
HOLDER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from harness import clocks
with clocks.locked({{rate!r}}, ["cuda:0"], print):
    print("holding", flush=True)
    {{body}}
"""


@dataclass(frozen=True)
class Machine:
    """A machine with a card for child processes: its environment, and what was done to the card."""

    environment: dict[str, str]
    log: Path

    def done(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make a card that this process and all that it starts see."""

    def make(**values: Any) -> Machine:
        shutil.copy(fake_nvml.__file__, tmp_path / "pynvml.py")
        (tmp_path / "cards.json").write_text(json.dumps([{"mig": None, "ecc": None, **values}]))
        names = {
            "PYTHONPATH": str(tmp_path),
            "FAKE_NVML": str(tmp_path / "cards.json"),
            "FAKE_NVML_LOG": str(tmp_path / "log"),
        }
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        FakeNvml([FakeCard(**values)], log=names["FAKE_NVML_LOG"]).install(monkeypatch)
        return Machine(environment={**os.environ}, log=tmp_path / "log")

    return make


def take_signals() -> None:
    """Take back what a background job ignores: children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def hold(machine: Machine, body: str, rate: object = 1800) -> subprocess.Popen[str]:
    code = HOLDER.format(rate=rate, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=machine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=take_signals,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "holding" not in line:
        pass
    assert line, "it never came to hold the clocks"
    return process


def wait_for(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.02)
    return False


BOTH = [f"lock {UUID} 1800 1800", f"reset {UUID}"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_clocks_come_back_when_the_run_is_ended_by_a_signal(
    number: signal.Signals, machine: Callable[..., Machine]
) -> None:
    here = machine()
    process = hold(here, "time.sleep(300)")
    assert here.done() == BOTH[:1]
    os.killpg(process.pid, number)  # as Ctrl-C does: the whole group
    process.wait(20)
    assert wait_for(lambda: here.done() == BOTH)


@pytest.mark.parametrize("body", ["pass", "raise RuntimeError", "sys.exit(3)", "import os; os._exit(4)"])
def test_clocks_come_back_when_the_run_ends_by_itself(body: str, machine: Callable[..., Machine]) -> None:
    here = machine()
    hold(here, body).wait(20)
    assert wait_for(lambda: here.done() == BOTH)


def test_clocks_come_back_when_the_guardian_was_killed(machine: Callable[..., Machine]) -> None:
    here = machine()
    said: list[str] = []
    started: list[int] = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
        with clocks.locked(1800, ["cuda:0"], said.append):
            os.kill(started[0], signal.SIGKILL)
    assert here.done() == BOTH
    assert said == ["locked the SM clocks of cuda:0 to 1800 MHz"]


def test_the_guardian_itself_ignores_what_ends_other_programs(machine: Callable[..., Machine]) -> None:
    here = machine()
    code = [sys.executable, str(clocks.GUARDIAN), "1800", UUID]
    with subprocess.Popen(code, env=here.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guardian:
        assert guardian.stdout is not None and guardian.stdin is not None
        assert guardian.stdout.readline() == b"locked\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            guardian.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            guardian.wait(0.2)
        assert here.done() == BOTH[:1]
        guardian.stdin.close()
        assert guardian.wait(20) == 0
    assert here.done() == BOTH


def test_base_is_the_clock_that_the_card_holds_at_its_rated_power(machine: Callable[..., Machine]) -> None:
    here = machine()
    with clocks.locked("base", ["cuda:0"], lambda _: None):
        assert here.done() == [f"lock {UUID} {TDP} {TDP}"]
    assert here.done()[1:] == [f"reset {UUID}"]


@pytest.mark.parametrize("rate", [None])
def test_without_the_option_nothing_is_started(rate: None, machine: Callable[..., Machine]) -> None:
    here = machine()
    with clocks.locked(rate, ["cuda:0", "cpu"], lambda _: None):
        pass
    assert here.done() == []


@pytest.mark.parametrize(
    ("values", "rate", "device", "message", "hint"),
    [
        ({"lock": {"error": 4}}, 1800, "cuda:0", "cannot be locked to 1800 MHz: Insufficient Permissions", "as root"),
        ({"lock": {"error": 3}}, "base", "cuda:0", "to their base clock: Not Supported", "leave out --lock-clocks"),
        ({}, 4000, "cuda:0", "the SM clock of cuda:0 goes up to 3105 MHz", None),
        ({}, 1800, "cuda:1", "no device 'cuda:1' on this machine", "leave out --lock-clocks"),
        ({}, 1800, "cpu", "is for GPUs, and this run is on cpu", "leave out --lock-clocks"),
    ],
)
def test_clocks_that_cannot_be_locked_are_an_error_and_stay_as_they_are(
    values: dict[str, Any], rate: Any, device: str, message: str, hint: str | None, machine: Callable[..., Machine]
) -> None:
    here = machine(**values)
    with pytest.raises(UsageError, match=message) as caught, clocks.locked(rate, [device], lambda _: None):
        pytest.fail("it must not come so far")
    assert (hint or "") in (caught.value.hint or "")
    locks, resets = ([line for line in here.done() if line.startswith(word)] for word in ("lock", "reset"))
    assert len(locks) == len(resets), "a call that failed may have changed something all the same"


def test_without_a_driver_there_is_nothing_to_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([], broken=12).install(monkeypatch)
    with pytest.raises(UsageError, match="NVML Shared Library Not Found"), clocks.locked("base", ["cuda"], print):
        pytest.fail("it must not come so far")
