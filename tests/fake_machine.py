"""Made-up machines: file trees that say what /sys and /proc of a real one would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.topology import as_list

PACKAGES, CORES = 2, 4
FIRST = tuple(range(8))
"""Where Linux puts the first thread of each core of the server: package 0, then package 1; the siblings follow."""


def write(root: Path, files: Mapping[str, object]) -> Path:
    """Write files below a root, each with a last newline, as the kernel does."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def server(root: Path, *, smt: bool = True, offline: Iterable[int] = (), older: bool = False) -> Path:
    """Write two packages of four cores, a NUMA node each; core numbers start anew in every package.

    With `smt`, CPU 8 shares its core with 0, 9 with 1 and so on. `older` has the names of kernels before 5.
    """
    count = len(FIRST) * (2 if smt else 1)
    off = set(offline)
    on = [number for number in range(count) if number not in off]
    files: dict[str, object] = {
        "sys/devices/system/cpu/online": as_list(on),
        "sys/devices/system/cpu/present": f"0-{count - 1}",
    }
    for number in on:  # the kernel takes the folder of one that is off away
        place = number % len(FIRST)
        shared = [each for each in on if each % len(FIRST) == place]
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        files |= {
            f"{folder}/physical_package_id": place // CORES,
            f"{folder}/core_id": place % CORES,
            f"{folder}/{'thread_siblings_list' if older else 'core_cpus_list'}": as_list(shared),
        }
    for node in range(PACKAGES):
        there = [number for number in on if number % len(FIRST) // CORES == node]
        files[f"sys/devices/system/node/node{node}/cpulist"] = as_list(there)
    return write(root, files)


def hybrid(root: Path, *, named: bool = True) -> Path:
    """Write a desktop of two fast cores with two threads each, CPUs 0-3, and four slow ones, CPUs 4-7.

    `named` as Intel shows it; else by capacities only, in which fast cores differ a little from one another.
    """
    files: dict[str, object] = {"sys/devices/system/cpu/online": "0-7", "sys/devices/system/cpu/present": "0-7"}
    for number in range(8):
        pair = as_list({number, number ^ 1}) if number < 4 else str(number)
        folder = f"sys/devices/system/cpu/cpu{number}"
        files |= {
            f"{folder}/topology/core_cpus_list": pair,
            f"{folder}/topology/physical_package_id": 0,
            f"{folder}/cpu_capacity": 1024 if named or number < 2 else 1009 if number < 4 else 520,
        }
    if named:
        files |= {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"}
    return write(root, files | {"sys/devices/system/node/node0/cpulist": "0-7"})


def powercap(root: Path, packages: Mapping[int, int], *, range_uj: int = 262_143_328_850) -> Path:
    """Write the energy counters of packages, with the domains beside them that must not be counted as well."""
    files: dict[str, object] = {"sys/class/powercap/intel-rapl/enabled": 1}
    domains = {f"intel-rapl:{number}": (f"package-{number}", energy) for number, energy in packages.items()}
    domains |= {f"intel-rapl:{number}:0": ("core", energy // 2) for number, energy in packages.items()}
    domains |= {"intel-rapl:7": ("psys", 10**12), "intel-rapl-mmio:0": ("package-0", 10**11)}
    for folder, (name, energy) in domains.items():
        files |= {
            f"sys/class/powercap/{folder}/name": name,
            f"sys/class/powercap/{folder}/energy_uj": energy,
            f"sys/class/powercap/{folder}/max_energy_range_uj": range_uj,
        }
    return write(root, files)
