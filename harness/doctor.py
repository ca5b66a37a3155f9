"""What on this machine makes numbers noisy: findings with figures and advice."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable

import psutil

from harness import doctor_cpu, environment, nvml
from harness.finding import Finding
from harness.gpu import SLOWDOWNS
from harness.measure import now_ns
from harness.paths import cache_root

BUSY_LOAD_PER_CORE = 0.1
FREE_MEMORY_BYTES = 4 << 30
FREE_DISK_BYTES = 5 << 30
STEAL_SHARE = 0.01
FAR_BELOW_MAX = 0.75
"""Of a GPU's highest SM clock: a working card that is below is held down by something."""
SPIN_SECONDS = 0.5
SPIN_SPREAD = 0.05


def examine(*, spin: bool = True, cpus: frozenset[int] = frozenset()) -> list[Finding]:
    """Look at everything that disturbs measurements; `spin` adds half a second of measuring the clock itself.

    `cpus` are those that workers will be tied to, if any.
    """
    checks: list[Callable[[], Finding | None]] = [
        _memory, _swap, _steal, _container, _battery, _disk, _gpus, _gpu_clocks, _gpu_processes, doctor_cpu.energy,
    ]  # fmt: skip
    if spin:
        checks.append(_spin)
    seen = [_load(), *doctor_cpu.clock(), *doctor_cpu.placement(cpus)]
    return seen + [finding for check in checks if (finding := check()) is not None]


def advice(findings: list[Finding]) -> list[str]:
    """Return the findings that call for action, a line each."""
    return [f"{f.what}: {f.figure}. {f.advice}" for f in findings if f.level == "warn"]


def _load() -> Finding:
    load, cores = os.getloadavg()[0], environment.usable_cores()
    busy = load > BUSY_LOAD_PER_CORE * cores
    return Finding(
        what="load",
        level="warn" if busy else "good",
        figure=f"{load:.2f} runnable processes on {cores} cores (1-minute average)",
        advice="Stop other programs before measuring." if busy else "",
    )


def _memory() -> Finding:
    free = int(psutil.virtual_memory().available)
    low = free < FREE_MEMORY_BYTES
    return Finding(
        what="memory",
        level="warn" if low else "good",
        figure=f"{free / 2**30:.1f} GiB available of {environment.memory_bytes() / 2**30:.1f} GiB",
        advice="Engines are held in memory side by side; free some, or they are measured in groups." if low else "",
    )


def _swap() -> Finding:
    used = int(psutil.swap_memory().used)
    return Finding(
        what="swap",
        level="warn" if used > 1 << 30 else "good",
        figure=f"{used / 2**30:.1f} GiB in use",
        advice="Pages that come back from disk show as spikes." if used > 1 << 30 else "",
    )


def _steal() -> Finding | None:
    times = psutil.cpu_times()
    steal = getattr(times, "steal", None)
    if steal is None:
        return None
    share = steal / max(1.0, sum(times))
    return Finding(
        what="steal",
        level="warn" if share > STEAL_SHARE else "good",
        figure=f"{share:.1%} of CPU time since boot went to other virtual machines",
        advice="Expect wide intervals; use a dedicated host for fine differences." if share > STEAL_SHARE else "",
    )


def _container() -> Finding:
    kind = environment.container()
    return Finding(
        what="virtualisation",
        level="warn" if kind else "good",
        figure=kind or "none seen",
        advice="Neighbours on the host are invisible from here; trust intervals, not single numbers." if kind else "",
    )


def _battery() -> Finding | None:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return None
    return Finding(
        what="power",
        level="good" if battery.power_plugged else "warn",
        figure="plugged in" if battery.power_plugged else f"on battery, {battery.percent:.0f} %",
        advice="" if battery.power_plugged else "Plug in: laptops lower their clocks on battery.",
    )


def _disk() -> Finding:
    folder = cache_root()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < FREE_DISK_BYTES
    return Finding(
        what="disk",
        level="warn" if low else "good",
        figure=f"{free / 2**30:.1f} GiB free for the cache in {cache_root()}",
        advice="harness cache clear, or set HARNESS_CACHE to a larger disk." if low else "",
    )


def _gpus() -> Finding:
    found = environment.gpus()
    if not found:
        return Finding(what="GPU", level="good", figure="no NVIDIA driver answers; everything runs on the CPU")
    lazy = [gpu for gpu in found if gpu.get("persistence_mode") == "Disabled"]
    return Finding(
        what="GPU",
        level="warn" if lazy else "good",
        figure="; ".join(f"{gpu.get('name', 'a GPU')}, driver {gpu.get('driver_version', 'unknown')}" for gpu in found),
        advice="sudo nvidia-smi -pm 1 keeps the driver loaded between processes." if lazy else "",
    )


def _gpu_clocks() -> Finding | None:
    """Look for clocks that something holds down: heat, power, or a setting that somebody forgot.

    A card without work lowers its clocks by itself, which says nothing of how it measures.
    """
    figures, low = [], False
    for index, card in enumerate(nvml.every_device()):
        mhz, highest, slowed = card.sm_mhz, card.max_sm_mhz, card.slowdowns()
        if mhz is None or highest is None:
            continue
        causes = [SLOWDOWNS[each] for each in sorted(slowed or ())]
        resting = " without work" if card.idle else ""
        held = card.idle is False and mhz < FAR_BELOW_MAX * highest
        figures.append(f"GPU {index}: SM {mhz} of {highest} MHz{resting}{''.join(f', {cause}' for cause in causes)}")
        low |= held or bool(causes)
    if not figures:
        return None
    return Finding(
        what="GPU clocks",
        level="warn" if low else "good",
        figure="; ".join(figures),
        advice="See nvidia-smi -q -d PERFORMANCE for the cause; sudo nvidia-smi -rgc unlocks clocks." if low else "",
    )


def _gpu_processes() -> Finding | None:
    listed = [(index, card.processes()) for index, card in enumerate(nvml.every_device())]
    known = [(index, found) for index, found in listed if found is not None]
    if not known:
        return None
    busy = [f"{len(found)} on GPU {index} ({', '.join(map(str, sorted(found)))})" for index, found in known if found]
    return Finding(
        what="GPU processes",
        level="warn" if busy else "good",
        figure="; ".join(busy) or "nobody else computes on a GPU",
        advice="Stop them: windows that are measured beside another process are dropped." if busy else "",
    )


def _spin() -> Finding:
    # The same arithmetic again and again: its spread is what this machine adds to any measurement.
    durations = []
    start = now_ns()
    while now_ns() - start < SPIN_SECONDS * 1e9:
        begin = now_ns()
        sum(range(20_000))
        durations.append(now_ns() - begin)
    quarter = statistics.quantiles(durations, n=4)
    spread = (quarter[2] - quarter[0]) / quarter[1]
    worst = max(durations) / quarter[1]
    noisy = spread > SPIN_SPREAD
    return Finding(
        what="jitter",
        level="warn" if noisy else "good",
        figure=f"a fixed loop varies by {spread:.1%} (interquartile), its slowest run took {worst:.1f}x the median",
        advice="Differences below this need many launches; raise --launches and --budget." if noisy else "",
    )
