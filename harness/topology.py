"""Where a machine's CPUs sit: which share a core, a package, a memory node; and which of them we may use.

All of it is read from Linux' /sys and /proc below a root folder. Elsewhere, and in containers that hide it, every CPU
that may be used counts as a core of its own, and `shows_cores` says that this is not known.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
SLOW_BELOW = 0.8
"""A CPU with less than this share of the largest capacity is a slow one: cores of one kind differ by a few percent."""


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """One logical CPU that is online."""

    number: int
    core: int
    """The lowest number among the online CPUs of its physical core: unique in the machine, unlike the kernel's."""
    package: int = 0
    node: int = 0
    """Its NUMA node."""
    slow: bool = False
    """Of the weaker kind where cores are of several kinds, such as an efficiency core."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The CPUs of a machine, as far as it shows them."""

    cpus: tuple[Cpu, ...]
    """Those online, by number."""
    offline: frozenset[int] = frozenset()
    allowed: frozenset[int]
    """Those that this process may use: its affinity, within the cpuset of its container."""
    shows_cores: bool = True

    @classmethod
    def read(cls, root: Path = ROOT, allowed: Iterable[int] | None = None) -> Topology:
        """Return what `root`, a machine's file tree, says; `allowed` is this process' affinity unless given."""
        usable = affinity() if allowed is None else frozenset(allowed)
        folder = root / "sys/devices/system/cpu"
        numbers = sorted(online(root) or usable)
        cores = {number: _core(folder / f"cpu{number}/topology") for number in numbers}
        first: dict[tuple[int, ...], int] = {}
        for number in numbers:
            first.setdefault(cores[number] or (number,), number)
        nodes = _nodes(root)
        slow = _slow(root, frozenset(numbers))
        return cls(
            cpus=tuple(
                Cpu(
                    number=number,
                    core=first[cores[number] or (number,)],
                    package=_number(folder / f"cpu{number}/topology/physical_package_id"),
                    node=nodes.get(number, 0),
                    slow=number in slow,
                )
                for number in numbers
            ),
            offline=parse_list(_text(folder / "present")) - set(numbers),
            allowed=usable & set(numbers),
            shows_cores=all(cores.values()),
        )

    def of(self, numbers: Iterable[int]) -> list[Cpu]:
        """Return the CPUs with these numbers, those offline left out."""
        wanted = set(numbers)
        return [cpu for cpu in self.cpus if cpu.number in wanted]

    def cores(self, numbers: Iterable[int]) -> int:
        """Return on how many physical cores these CPUs are."""
        return len({cpu.core for cpu in self.of(numbers)})

    def nodes(self, numbers: Iterable[int]) -> dict[int, frozenset[int]]:
        """Return these CPUs by their NUMA node."""
        found: dict[int, set[int]] = {}
        for cpu in self.of(numbers):
            found.setdefault(cpu.node, set()).add(cpu.number)
        return {node: frozenset(found[node]) for node in sorted(found)}

    def sharing(self, numbers: Iterable[int]) -> frozenset[int]:
        """Return all CPUs on the physical cores of these, themselves included."""
        cores = {cpu.core for cpu in self.of(numbers)}
        return frozenset(cpu.number for cpu in self.cpus if cpu.core in cores)

    def one_a_core(self) -> list[Cpu]:
        """Return one allowed CPU for each physical core: fast cores first, then node by node, then by number."""
        first: dict[int, Cpu] = {}
        for cpu in self.of(self.allowed):
            first.setdefault(cpu.core, cpu)
        return sorted(first.values(), key=lambda cpu: (cpu.slow, cpu.node, cpu.number))

    @property
    def smt(self) -> bool:
        """Whether online CPUs share a physical core."""
        return self.cores(cpu.number for cpu in self.cpus) < len(self.cpus)


def online(root: Path = ROOT) -> frozenset[int]:
    """Return the CPUs that are switched on, whether we may use them or not; empty where the system does not say."""
    return parse_list(_text(root / "sys/devices/system/cpu/online"))


def affinity() -> frozenset[int]:
    """Return the CPUs that this thread may run on; where the system cannot say, as many as it has, from 0."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return how many CPUs' time the container may take, such as 1.5; None where nothing limits it.

    A quota leaves all CPUs visible and stops every thread, in the middle of whatever it does, once it is used up.
    """
    found: list[float] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):  # a limit of any ancestor holds
            if controllers == "":
                quota = (_text(root / "sys/fs/cgroup" / folder / "cpu.max") or "").split()
            elif "cpu" in controllers.split(","):
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota = [_text(root / "sys/fs/cgroup/cpu" / folder / name) or "" for name in names]
            else:
                continue
            if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():  # else `max`, -1, or not there
                found.append(int(quota[0]) / int(quota[1]))
    return min(found, default=None)


def parse_list(text: str | None) -> frozenset[int]:
    """Return the numbers of a list in the kernel's form, such as `0-3,8`."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        low, _, high = part.strip().partition("-")
        if low.isdecimal():
            numbers |= set(range(int(low), int(high or low) + 1))
    return frozenset(numbers)


def as_list(numbers: Iterable[int]) -> str:
    """Return numbers in the kernel's form: the inverse of `parse_list()`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _core(folder: Path) -> tuple[int, ...] | None:
    """Return what tells a CPU's physical core from all others, or None where the machine does not show it."""
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is what older kernels call it
        if siblings := parse_list(_text(folder / name)):
            return tuple(sorted(siblings))
    parts = [_text(folder / name) for name in ("physical_package_id", "die_id", "core_id")]
    # The kernel numbers cores anew in every package and die.
    return (-1, *(int(part or 0) for part in parts)) if parts[2] is not None else None


def _nodes(root: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        for number in parse_list(_text(folder / "cpulist")):
            found[number] = int(folder.name.removeprefix("node"))
    return found


def _slow(root: Path, numbers: frozenset[int]) -> frozenset[int]:
    # Intel names the two kinds of a hybrid processor; elsewhere the scheduler's capacities tell them apart.
    fast = parse_list(_text(root / "sys/devices/cpu_core/cpus"))
    if fast:
        return numbers - fast
    capacity = {number: _number(root / f"sys/devices/system/cpu/cpu{number}/cpu_capacity") for number in numbers}
    most = max(capacity.values(), default=0)
    return frozenset(number for number in numbers if capacity[number] < SLOW_BELOW * most)


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
