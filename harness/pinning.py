"""Which CPUs the workers run on, and that nothing else of ours does. The grammar of `--cpus` is defined here.

    spec  = term ("," term)*
    term  = number | number "-" number | name [":" count]
    name  = "physical" | "performance" | "node" number

`physical` is one logical CPU of every physical core, `performance` the same without slow cores where cores are of
several kinds, `node0` one of every physical core of a NUMA node; `:4` takes the first four of them. Names stand for
what this process may use; a CPU that is named by its number must be one of those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.topology import Cpu, Topology, as_list, parse_list

EXAMPLES = "--cpus 0-3, physical, physical:4, performance or node0"
OWN_WILL = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables by which a thread pool places itself, whatever its process may use."""


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """The CPUs of the workers; none: wherever the kernel puts them."""

    cpus: frozenset[int] = frozenset()
    cores: int | None = None
    """On how many physical cores they are."""
    note: str | None = None
    """What the report must say of it."""

    def refuse_more(self, threads: Mapping[str, int]) -> None:
        """Refuse cases with more threads than CPUs: they would take turns.

        Raises:
            UsageError: Which case has how many.
        """
        for case, count in threads.items():
            if self.cpus and count > len(self.cpus):
                raise UsageError(
                    f"{case} has {count} threads, and --cpus {as_list(self.cpus)} is {len(self.cpus)} CPU(s)",
                    hint=f"give it at most {len(self.cpus)} (one a physical core: {self.cores}), or more --cpus",
                )


def choose(spec: str | None) -> Pinned:
    """Return the CPUs of this machine that the value of `--cpus` stands for.

    Raises:
        UsageError: As `resolve()`.
    """
    if spec is None:
        return Pinned()
    topology = Topology.read()
    cpus = resolve(spec, topology)
    return Pinned(cpus=cpus, cores=topology.cores(cpus), note=left_for_us(cpus, topology)[1])


def resolve(spec: str, topology: Topology) -> frozenset[int]:
    """Return the CPUs that the value of `--cpus` stands for.

    Raises:
        UsageError: It is not of the grammar, or asks for a CPU that is not there, is offline or may not be used.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--cpus: this system cannot tie processes to CPUs; Linux can")
    chosen: set[int] = set()
    for term in (part.strip() for part in spec.split(",")):
        if re.fullmatch(r"\d{1,6}(-\d{1,6})?", term):
            low, _, high = term.partition("-")
            if int(high or low) < int(low):
                raise UsageError(f"--cpus {term}: the range is empty", hint=f"{high}-{low}?")
            chosen |= _usable(term, int(low), int(high or low), topology)
        else:
            chosen |= {cpu.number for cpu in _named(term, topology)}
    return frozenset(chosen)


def _usable(term: str, low: int, high: int, topology: Topology) -> set[int]:
    online = {cpu.number for cpu in topology.cpus}
    known = online | topology.offline
    if low not in known or high not in known:
        wrong = low if low not in known else high
        raise UsageError(f"--cpus {term}: there is no CPU {wrong}; this machine has {as_list(known)}", hint=EXAMPLES)
    wanted = set(range(low, high + 1))
    if off := wanted - online:
        one = min(off)
        on = f"echo 1 | sudo tee /sys/devices/system/cpu/cpu{one}/online"
        raise UsageError(f"--cpus {term}: CPU {as_list(off)} is offline", hint=f"leave it out, or: {on}")
    if forbidden := wanted - topology.allowed:
        raise UsageError(
            f"--cpus {term}: this process may not run on CPU {as_list(forbidden)}, only on {as_list(topology.allowed)}",
            hint="its affinity (taskset) or the cpuset of its container says so",
        )
    return wanted


def _named(term: str, topology: Topology) -> list[Cpu]:
    name, colon, count = term.partition(":")
    node = re.fullmatch(r"node(\d{1,6})", name)
    if not (node or name in ("physical", "performance")) or (colon and not re.fullmatch(r"\d{1,6}", count)):
        raise UsageError(f"--cpus '{term}': neither the number of a CPU nor a group of CPUs", hint=EXAMPLES)
    if not topology.shows_cores:
        raise UsageError(
            f"--cpus {term}: this machine does not show which CPUs share a core",
            hint=f"name them: --cpus {as_list(topology.allowed)}",
        )
    cores = topology.one_a_core()
    if node:
        there = sorted({cpu.node for cpu in topology.cpus})
        if int(node[1]) not in there:
            raise UsageError(
                f"--cpus {term}: there is no NUMA node {node[1]} with CPUs; this machine has {as_list(there)}"
            )
        cores = [cpu for cpu in cores if cpu.node == int(node[1])]
    elif name == "performance":
        cores = [cpu for cpu in cores if not cpu.slow]
    wanted = int(count) if colon else len(cores)
    if not cores or not 1 <= wanted <= len(cores):
        where = f", on CPUs {as_list(cpu.number for cpu in cores)}" if cores else ""
        raise UsageError(f"--cpus {term}: {name} has {len(cores)} physical core(s) that this process may use{where}")
    return cores[:wanted]


def left_for_us(cpus: Iterable[int], topology: Topology) -> tuple[frozenset[int], str | None]:
    """Return the CPUs on which this process may go on beside workers that own `cpus`, and a note where that disturbs.

    Cores that no worker is on, else what is free on the workers' cores; empty where nothing is left.
    """
    taken = frozenset(cpus)
    if free := topology.allowed - topology.sharing(taken):
        return free, None
    if free := topology.allowed - taken:
        return free, (
            f"harness itself ran on CPUs {as_list(free)}, which share their cores with --cpus: no core is left for it"
        )
    return frozenset(), "harness itself ran on the CPUs of --cpus too: it may use no other; leave one out for it"


@contextmanager
def aside(cpus: frozenset[int]) -> Iterator[None]:
    """Keep all threads of this process off `cpus`, as far as there are others, and let them back at the end."""
    if not cpus:
        yield
        return
    free, _ = left_for_us(cpus, Topology.read())
    before = {thread: os.sched_getaffinity(thread) for thread in _threads(os.getpid())} if free else {}
    for thread in before:
        _place(thread, free)  # threads that start later inherit it
    try:
        yield
    finally:
        usual = before.get(os.getpid(), set())
        for thread in _threads(os.getpid()) if before else []:
            _place(thread, before.get(thread, usual))


@contextmanager
def inherited(cpus: frozenset[int]) -> Iterator[None]:
    """Have whatever this thread starts within the block begin its life on `cpus`, before its first instruction."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def strayed(processes: Iterable[int], cpus: frozenset[int]) -> frozenset[int]:
    """Return the CPUs outside `cpus` that some thread of these processes may run on."""
    outside: frozenset[int] = frozenset()
    for process in processes:
        for thread in _threads(process):
            with suppress(OSError):  # it has ended
                status = Path(f"/proc/{process}/task/{thread}/status").read_text()
                (line,) = (each for each in status.splitlines() if each.startswith("Cpus_allowed_list:"))
                outside |= parse_list(line.partition(":")[2]) - cpus
    return outside


def _place(thread: int, cpus: Iterable[int]) -> None:
    with suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, cpus)


def _threads(process: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []  # it has ended
