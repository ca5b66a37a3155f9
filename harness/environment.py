"""The machine and its software, as far as they change numbers."""

from __future__ import annotations

import math
import os
import platform
import socket
import subprocess
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

import psutil

from harness import nvml
from harness.errors import UnavailableError
from harness.gpu import DEVICE
from harness.records import Environment, Project
from harness.topology import Topology, cpu_quota

LIBRARIES = (
    "torch", "triton", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "apache-tvm", "apache-tvm-ffi",
    "tensorrt", "tensorrt-rtx", "transformers", "diffusers", "numpy", "scipy",
)  # fmt: skip
CPU_FOLDER = Path("/sys/devices/system/cpu")
TURBO_SWITCHES = {"intel_pstate/no_turbo": "0", "cpufreq/boost": "1"}
"""Files below `CPU_FOLDER` that hold the switch, and what stands in them while turbo is on."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def describe(advice: list[str]) -> Environment:
    """Return the fingerprint of this machine; `advice` is what `harness.doctor` found."""
    layout = Topology.read()
    clocks = _limits_mhz("min"), _limits_mhz("max")
    switch = turbo_switch()
    return Environment(
        cpu=cpu_model(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        logical_cores=usable_cores(),
        memory_bytes=memory_bytes(),
        kernel=f"{platform.system()} {platform.release()}",
        os=_os_name(),
        python=platform.python_version(),
        governor=governor(),
        load_average=os.getloadavg()[0],
        gpus=gpus(),
        libraries=library_versions(LIBRARIES),
        git_commit=_git_commit(),
        hostname=socket.gethostname(),
        container=container(),
        advice=advice,
        numa_nodes=len({cpu.node for cpu in layout.cpus}) if layout.shows_cores else None,
        smt=layout.smt if layout.shows_cores else None,
        turbo=switch[1] if switch else None,
        min_mhz=min(clocks[0], default=None),
        max_mhz=max(clocks[1], default=None),
        microcode=_cpu_info("microcode"),
    )


def cpu_model() -> str:
    """Return the processor's marketing name."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(cores: int | None = None) -> int:
    """Return one thread a physical core, no more than this process may use: of CPUs, and of their time.

    `cores` is their number where the CPUs were chosen.
    """
    cores = cores or min(psutil.cpu_count(logical=False) or 1, usable_cores())
    return max(1, int(min(cores, cpu_quota() or math.inf)))


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return total  # no container, or `max`


def default_memory_limit() -> int:
    """Return the bytes that one worker may take unless the user says otherwise: 85 % of the memory there is."""
    return int(0.85 * memory_bytes())


def governor() -> str | None:
    """Return the frequency governors in use, or None where the kernel does not show them."""
    found = set()
    for path in CPU_FOLDER.glob("cpu*/cpufreq/scaling_governor"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue
    return ", ".join(sorted(found)) or None


def turbo_switch() -> tuple[Path, bool, str] | None:
    """Return the file that switches turbo, whether it is on, and what would switch it off; None where there is none."""
    for name, on in TURBO_SWITCHES.items():
        path = CPU_FOLDER / name
        try:
            return path, path.read_text().strip() == on, str(1 - int(on))
        except OSError:
            continue
    return None


def _limits_mhz(which: Literal["min", "max"]) -> list[float]:
    found = []
    for path in CPU_FOLDER.glob(f"cpu*/cpufreq/scaling_{which}_freq"):
        try:
            found.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return found


def _cpu_info(field: str) -> str | None:
    """Return a field of the first processor in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None  # not Linux
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def container() -> str | None:
    """Return what kind of container or virtual machine this is, as far as it can be told."""
    if Path("/.dockerenv").exists():
        return "docker"
    try:
        text = Path("/proc/1/cgroup").read_text()
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    for word in ("kubepods", "docker", "lxc", "podman"):
        if word in text:
            return word
    return "virtual machine" if " hypervisor" in cpu else None


def gpus() -> list[dict[str, str]]:
    """Return name, driver, memory, clocks, power limit and link of every NVIDIA GPU that the driver reports.

    Under `DEVICE` is what `cuda:N` it is to our workers; a card that CUDA_VISIBLE_DEVICES hides is none.
    """
    seen = {card.uuid: {DEVICE: f"cuda:{number}"} for number, card in enumerate(nvml.visible_devices()) if card.uuid}
    return [{**card.facts(), **seen.get(card.uuid or "", {})} for card in nvml.every_device()]


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that workers see, `cuda:0` first."""
    return [card.facts().get("name", "a GPU") for card in nvml.visible_devices()]


def gpu_identity(device: str) -> str:
    """Return what an engine for `cuda:N` depends on beside its compute capability: the card's name and the driver."""
    try:
        facts = nvml.device(device).facts()
    except UnavailableError:
        return "no GPU"
    # A card that has just fallen off the bus may still be listed, and says nothing more.
    return f"{facts.get('name', 'a GPU')}, driver {facts.get('driver_version', 'unknown')}"


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each distribution that is installed."""
    wanted = set(names)
    found: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in wanted and name not in found:
            found[name] = distribution.version
    return dict(sorted(found.items()))


def project(root: Path) -> Project | None:
    """Return the commit of the git repository that a folder is in; None where there is none, or no commit yet."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    heads = dict(line[2:].split(" ", 1) for line in done.stdout.splitlines() if line.startswith("# branch."))
    commit, branch = heads.get("branch.oid", "(initial)"), heads.get("branch.head")
    if commit == "(initial)":
        return None
    changed = any(not line.startswith("#") for line in done.stdout.splitlines())
    return Project(commit=commit, branch=None if branch == "(detached)" else branch, dirty=changed)


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.platform()


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None  # installed, not a checkout
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
