"""The text that a whole run shares: what it was, how to read its tables, the machine, the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.environment import LIBRARIES
from harness.interpreter import Interpreter
from harness.records import EnergySource, Environment, Run, Settings
from harness.summary import RunSummary, WorkloadSummary
from harness.topology import as_list
from reports import details
from reports.blocks import Line
from reports.formatting import clean, counted, duration, listed, shorten, significant, size
from reports.table import NAME_CHARACTERS

NAMED = 3
"""Models that the title names; of more it gives the number."""
MENTIONED = 6
"""Workloads that a banner names; of more it gives the number."""


def title(summary: RunSummary) -> str:
    """Return what was compared, on what, under which settings."""
    run, settings = summary.run, summary.run.settings
    if len(summary.workloads) == 1:
        return details.heading(summary.workloads[0], summary)
    models = list(dict.fromkeys(one.workload.model.label for one in summary.workloads)) or list(settings.models)
    named = listed(models) if 0 < len(models) <= NAMED else f"{len(models)} models"
    what = f"suite {settings.suite}" if settings.suite else named
    count = counted(len(run.workloads), "workload", "workloads")
    threads = counted(settings.threads, "thread", "threads")
    places = listed(list(dict.fromkeys(details.place(one) for one in run.workloads)) or ["on cpu"])
    return clean(f"{what} {places}: {count}, {', '.join(settings.precisions)}, {threads}")


def banners(summary: RunSummary) -> Iterator[Line]:
    """Yield what the reader must know before any number."""
    run = summary.run
    if run.state != "finished":
        what = "was interrupted" if run.state == "interrupted" else "has not finished"
        yield Line(label="INTERRUPTED", text=f"this run {what}; what follows is what it got to", emphasis="bad")
    if run.settings.quick:
        yield Line(
            label="QUICK",
            text="a quick run takes few samples: good for seeing that things work, not for choosing a backend",
            emphasis="bad",
        )
    if len(summary.workloads) == 1:
        yield from details.banners(summary.workloads[0])
        return
    yield from _of_some(summary, "NOT DETERMINISTIC", _wavers, "the reference gave different outputs when run twice")
    yield from _of_some(summary, "SUSPICIOUS", _doubted, "two identical workers of the baseline differ")
    yield from _of_some(summary, "WITHOUT A RESULT", _failed, "see its failures below")


def legend(summary: RunSummary) -> Iterator[str]:
    """Yield how to read the columns of a table of cases."""
    measured = [one for one in summary.workloads if any(row.compute for row in one.rows)]
    if any(one.workload.target for one in summary.workloads):
        yield (
            "compile is the whole way from the exported model to a finished engine, cold unless a note says otherwise; "
            "engine = all that the backend saved, with the weights or without; peak = largest resident memory of the "
            "compiling process tree. Nothing was run."
        )
    if not measured:
        return
    baselines = {one.baseline for one in measured}
    baseline = shorten(clean((len(baselines) == 1 and baselines.pop()) or "the baseline"), NAME_CHARACTERS)
    yield (
        f"vs {baseline} = time over {baseline}'s time, below 1 is faster; [low, high] is its 99 % interval. FASTER and "
        "SLOWER need the interval clear of 1 and at least 1 % of effect, SAME needs it within 1 %, else UNDECIDED; "
        "(noisy) = the interval is wider than asked for."
    )
    yield (
        "p50, p95, p99, throughput and the ratio are of the boundary compute: inputs bound, execute and synchronize. "
        "host-to-host adds copying inputs in and outputs out."
    )
    yield (
        "compile is the whole way from the exported model to a session that can run, cold unless a note says "
        "otherwise; warm load is the same from the saved engine in a fresh process. engine = all that the backend "
        f"saved, with the weights or without. {_distances(measured)} A dash = not measured, or too few samples for "
        "that percentile."
    )
    rows = [row for one in measured for row in one.rows]
    if any(row.device_memory for row in rows):
        yield (
            "device memory = the most that a measuring worker took of the GPU's, its CUDA context included; peak is of "
            "the host's."
        )
    if sources := {row.energy.by for row in rows if row.energy}:
        yield f"energy = of one inference, the whole card's, its idle power included; {_energy_from(sources)}."
    yield from _of_limit(measured)


def _of_limit(measured: list[WorkloadSummary]) -> Iterator[str]:
    if any(row.limit_share is not None for one in measured for row in one.rows):
        yield (
            "of limit = the least time that the device needs, over p50: for the operations (bound by compute) or "
            "for moving its weights, inputs and outputs once (bound by memory). Above 100 % something is wrong."
        )


def closing(summary: RunSummary) -> str:
    """Return the sentence that a person would say."""
    return clean(summary.closing)


def settings(summary: RunSummary) -> Iterator[Line]:
    """Yield how all workloads were measured, and how long that took."""
    run, asked = summary.run, summary.run.settings
    parts = [f"threads {asked.threads}", *_cpus(asked)]
    if len(summary.workloads) == 1:
        parts.append(f"batch {summary.workloads[0].workload.batch}")
        if info := summary.workloads[0].workload.info:
            parts.append(counted(info.input_sets, "input set", "input sets"))
    if asked.lock_clocks is not None:
        clock = "their base clock" if asked.lock_clocks == "base" else f"{asked.lock_clocks} MHz"
        parts.append(f"SM clocks locked to {clock}")
    yield Line(label="settings", text=clean(", ".join([*parts, "boundary compute"])))
    measuring = sum(one.workload.measure_s for one in summary.workloads)
    yield Line(label="took", text=f"{duration(run.wall_s)}, of which measuring {duration(measuring)}")


def environment(run: Run) -> Iterator[Line]:
    """Yield the machine and its software."""
    machine = run.environment
    cores = f"{counted(machine.cores, 'core', 'cores')}, {machine.logical_cores} logical"
    state = [f"governor {machine.governor or 'unknown'}", *_cpu_state(machine)]
    yield Line(label="cpu", text=clean(f"{machine.cpu}, {cores}, {', '.join(state)}"))
    load = significant(machine.load_average, 2)
    yield Line(label="memory", text=f"{size(machine.memory_bytes)}, load average {load}")
    for gpu in machine.gpus:
        yield Line(label="gpu", text=clean(", ".join(f"{key} {value}" for key, value in gpu.items())))
    container = f", in {machine.container}" if machine.container else ""
    yield Line(label="system", text=clean(f"{machine.os}, kernel {machine.kernel}, Python {machine.python}{container}"))
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(machine.libraries.items()))
    if libraries:
        yield Line(label="libraries", text=clean(libraries))
    yield from _interpreters(run)
    commit = f", commit {machine.git_commit[:12]}" if machine.git_commit else ""
    yield Line(label="harness", text=clean(f"{run.harness}{commit}, run {run.id}, {run.created}"))
    yield Line(label="command", text=clean(run.command))


def _interpreters(run: Run) -> Iterator[Line]:
    """Yield what is installed where cases run in another interpreter than that of harness."""
    seen: dict[str, Interpreter] = {}
    for case in (case for workload in run.workloads for case in workload.cases):
        if case.interpreter is not None:
            name = case.backend if case.release is None else f"{case.backend}@{case.release}"
            seen.setdefault(name, case.interpreter)
    for name, interpreter in seen.items():
        shown = {one: version for one, version in interpreter.packages.items() if one in LIBRARIES}
        parts = [f"{package} {version}" for package, version in sorted(shown.items())]
        if more := len(interpreter.packages) - len(shown):
            parts.append(f"{counted(more, 'package', 'packages')} more")
        limit = f", dependencies until {interpreter.until[:10]}" if interpreter.until else ""
        yield Line(label=clean(name), text=clean(f"Python {interpreter.version}{limit}: {', '.join(parts)}"))


def _cpus(asked: Settings) -> Iterator[str]:
    if asked.cpus:
        numbers = as_list(asked.cpu_set)
        yield f"cpus {numbers}" + (f" ({asked.cpus})" if asked.cpus != numbers else "")


def _cpu_state(machine: Environment) -> Iterator[str]:
    if machine.numa_nodes is not None:
        yield counted(machine.numa_nodes, "NUMA node", "NUMA nodes")
    for name, on in (("SMT", machine.smt), ("turbo", machine.turbo)):
        if on is not None:
            yield f"{name} {'on' if on else 'off'}"
    if machine.min_mhz is not None and machine.max_mhz is not None:
        yield f"{machine.min_mhz:.0f} to {machine.max_mhz:.0f} MHz"
    if machine.microcode:
        yield f"microcode {machine.microcode}"


def advice(run: Run) -> Iterator[Line]:
    """Yield what makes numbers noisy on this machine."""
    return (Line(text=clean(text)) for text in run.environment.advice)


def notes(run: Run) -> Iterator[Line]:
    """Yield what is worth knowing about the whole run."""
    return (Line(text=clean(note)) for note in run.notes)


def _of_some(summary: RunSummary, label: str, applies: Callable[[WorkloadSummary], bool], what: str) -> Iterator[Line]:
    keys = [clean(one.workload.key) for one in summary.workloads if applies(one)]
    if keys:
        yield Line(label=label, text=f"{listed(keys, most=MENTIONED)}: {what}", emphasis="bad")


def _wavers(workload: WorkloadSummary) -> bool:
    return workload.workload.info is not None and not workload.workload.info.deterministic


def _doubted(workload: WorkloadSummary) -> bool:
    return workload.suspicious


def _failed(workload: WorkloadSummary) -> bool:
    if workload.workload.target:
        return not any(row.case.status == "compiled" for row in workload.rows)
    return not any(row.compute for row in workload.rows)


def _energy_from(sources: set[EnergySource]) -> str:
    """Return how far to trust energies: readings of the power lag behind what they are of."""
    if sources == {"counter"}:
        return "from its energy counter"
    readings = "from readings of its power, which lag behind it"
    return readings if sources == {"power"} else f"from its energy counter, or where that was too coarse {readings}"


def _distances(measured: list[WorkloadSummary]) -> str:
    said = []
    if any(one.seeded for one in measured):
        said.append(
            "Agreement is the distance from the reference of the output farthest from it; with seeded weights it shows "
            "whether the arithmetic is right, not what accuracy a trained model would lose."
        )
    if not all(one.seeded for one in measured):
        said.append("Drift is of the output farthest from the reference.")
    return " ".join(said)
