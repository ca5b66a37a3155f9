"""Lock the SM clocks of GPUs while a run measures, and give them back whatever happens.

A child process does both, see `harness/guardian.py`: it resets the clocks when the pipe to this process closes, and
that happens however this process ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from harness import nvml
from harness.errors import UnavailableError, UsageError
from harness.nvml import NvmlDevice

Rate = int | Literal["base"]
"""MHz, or the highest clock that a card holds at its rated power."""

GUARDIAN = Path(__file__).resolve().parent / "guardian.py"
RESTORED_WITHIN_S = 10.0
WITHOUT = "leave out --lock-clocks: clocks are recorded all the same, and windows with unsteady ones are dropped"


@contextmanager
def locked(rate: Rate | None, devices: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Hold the SM clocks of `devices`, such as `cuda:0`, at `rate` while the block runs; None changes nothing.

    Clocks that the user had locked before are unlocked afterwards: the driver does not tell what they were.

    Raises:
        UsageError: There is no such GPU, it does not go so fast, or its clocks may not be locked. Nothing is changed.
    """
    if rate is None:
        yield
        return
    cards = [_card(device, rate) for device in devices]
    guardian = _started(rate, [card.uuid or "" for card in cards], list(devices))
    try:
        say(f"locked the SM clocks of {', '.join(devices)} to {_words(rate)}")
        yield
    finally:
        _release(guardian, cards, say)


def _card(device: str, rate: Rate) -> NvmlDevice:
    if device.partition(":")[0] != "cuda":
        raise UsageError(f"--lock-clocks is for GPUs, and this run is on {device}", hint="leave out --lock-clocks")
    try:
        card = nvml.device(device)
    except UnavailableError as exc:
        raise UsageError(f"--lock-clocks: {exc.message}", hint="leave out --lock-clocks") from exc
    highest = card.max_sm_mhz
    if isinstance(rate, int) and highest is not None and rate > highest:
        raise UsageError(f"--lock-clocks {rate}: the SM clock of {device} goes up to {highest} MHz")
    return card


def _started(rate: Rate, uuids: list[str], devices: list[str]) -> subprocess.Popen[str]:
    guardian = subprocess.Popen(
        [sys.executable, str(GUARDIAN), str(rate), *uuids],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process; the guardian must outlive it
    )
    assert guardian.stdout is not None
    answer = guardian.stdout.readline().strip()
    if answer == "locked":
        return guardian
    guardian.communicate()
    number, _, reason = answer.partition(" ")
    library = nvml.library()
    if number == str(library.NVML_ERROR_NO_PERMISSION):
        hint = f"run it as root, such as with sudo -E, or {WITHOUT}"
    else:
        hint = WITHOUT
    raise UsageError(
        f"the clocks of {', '.join(devices)} cannot be locked to {_words(rate)}: {reason or 'no answer'}", hint=hint
    )


def _release(guardian: subprocess.Popen[str], cards: list[NvmlDevice], say: Callable[[str], None]) -> None:
    assert guardian.stdin is not None
    with suppress(OSError):  # it is dead already
        guardian.stdin.close()
    try:
        if guardian.wait(RESTORED_WITHIN_S) == 0:
            return
    except subprocess.TimeoutExpired:
        pass  # it will come to it; to reset twice does no harm
    for card in cards:
        try:
            card.nvml.nvmlDeviceResetGpuLockedClocks(card.handle)
        except card.nvml.NVMLError as exc:
            say(f"the clocks could not be restored ({exc}): sudo nvidia-smi --reset-gpu-clocks")


def _words(rate: Rate) -> str:
    return "their base clock" if rate == "base" else f"{rate} MHz"
