"""The processor's part of `harness doctor`: where threads may run, how fast its clock is, what else it shows."""

from __future__ import annotations

from pathlib import Path

from harness import environment, rapl
from harness.finding import Finding
from harness.topology import ROOT, Topology, as_list, cpu_quota


def placement(cpus: frozenset[int], root: Path = ROOT) -> list[Finding]:
    """Look at where the threads of a worker may run: on `cpus`, or wherever this process may."""
    layout = Topology.read(root)
    used = cpus or layout.allowed
    found = [_quota(cpu_quota(root), len(used))]
    if layout.shows_cores:
        found += [_nodes(layout, used), _smt(layout, used), _kinds(layout, used)]
    return [finding for finding in found if finding is not None]


def clock() -> list[Finding]:
    """Look at what decides the clock of the processor."""
    return [finding for finding in (_governor(), _turbo(), _throttling()) if finding is not None]


def energy(root: Path = ROOT) -> Finding | None:
    """Look at whether the energy of the processor's packages can be read; None where it has no counters."""
    state = rapl.state(root)
    if state == "absent":
        return None
    if state == "readable":
        return Finding(what="package energy", level="good", figure="readable: CPU cases show it")
    return Finding(
        what="package energy",
        level="note",
        figure="the processor counts it, and only root may read it",
        advice="To see it, until the next boot: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj",
    )


def _quota(quota: float | None, cores: int) -> Finding | None:
    if quota is None:
        return None
    short = quota < cores
    return Finding(
        what="CPU quota",
        level="warn" if short else "good",
        figure=f"the time of {quota:g} CPUs on {cores}",
        advice="Once it is used up, all threads stand still in mid-iteration: give the container CPUs of its own "
        f"(--cpuset-cpus) instead of time, or keep to --threads {max(1, int(quota))}."
        if short
        else "",
    )


def _nodes(layout: Topology, used: frozenset[int]) -> Finding:
    nodes = layout.nodes(used)
    spread = len(nodes) > 1
    largest = max(nodes, key=lambda node: len(nodes[node]), default=0)
    return Finding(
        what="NUMA",
        level="warn" if spread else "good",
        figure="; ".join(f"node {node}: CPUs {as_list(numbers)}" for node, numbers in nodes.items()),
        advice="Threads spread over nodes and reach for each other's memory, differently in every process: "
        f"--cpus node{largest}"
        if spread
        else "",
    )


def _smt(layout: Topology, used: frozenset[int]) -> Finding:
    cores = layout.cores(used)
    shared = cores < len(used)
    if shared:
        figure = f"{len(used)} CPUs on {cores} physical cores: two threads may share a core while another is idle"
    else:
        figure = f"{len(used)} CPU(s), each on a physical core of its own" + ("" if layout.smt else "; off")
    return Finding(
        what="SMT",
        level="warn" if shared else "good",
        figure=figure,
        advice="One CPU of each core: --cpus physical" if shared else "",
    )


def _kinds(layout: Topology, used: frozenset[int]) -> Finding | None:
    slow = {cpu.number for cpu in layout.of(used) if cpu.slow}
    if not slow:
        return None
    mixed = slow != used
    return Finding(
        what="kinds of cores",
        level="warn" if mixed else "good",
        figure=f"fast: CPUs {as_list(used - slow) or '-'}; slow: CPUs {as_list(slow)}",
        advice="Work that is split evenly waits for the slow ones: --cpus performance" if mixed else "",
    )


def _governor() -> Finding | None:
    governor = environment.governor()
    if governor is None:
        return None
    good = governor == "performance"
    return Finding(
        what="CPU governor",
        level="good" if good else "warn",
        figure=governor,
        advice="" if good else "sudo cpupower frequency-set -g performance",
    )


def _turbo() -> Finding | None:
    switch = environment.turbo_switch()
    if switch is None:
        return None
    path, on, off = switch
    return Finding(
        what="turbo",
        level="warn" if on else "good",
        figure="on: the clock depends on temperature and on how many cores work" if on else "off",
        advice=f"For steady clocks: echo {off} | sudo tee {path}" if on else "",
    )


def _throttling() -> Finding | None:
    counts = []
    for path in environment.CPU_FOLDER.glob("cpu*/thermal_throttle/core_throttle_count"):
        try:
            counts.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    if not counts:
        return None
    return Finding(
        what="thermal throttling",
        level="warn" if sum(counts) else "good",
        figure=f"{sum(counts)} events since boot",
        advice="Check the cooling." if sum(counts) else "",
    )
