"""What must be equal for two cases to be compared over time, and what may change and is then the suspect.

| record | if it differs |
|---|---|
| `Key` | it is another series: nothing can be said |
| `Subject` | the series goes on, but the model is another one: nothing can be said |
| `Circumstances` | that is what is being tracked: the change is reported beside the figures |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from harness.gpu import name_of
from harness.records import Case, Environment, Record, Run, Scalar, Workload
from harness.topology import as_list


class Key(Record, frozen=True, kw_only=True):
    """What a user asks for when asking for the same case again, and on what kind of machine. Known without an export.

    Fields are texts, so that a difference can be shown as it is.
    """

    model: str
    """As in the table: a name without a path, so that two checkouts of a project share their series."""
    dims: str
    """Sizes of free dimensions as they were asked for."""
    precision: str
    backend: str
    options: str
    device: str
    """Its kind: `cpu`, `cuda`."""
    threads: str
    machine: str
    """Processor and cores; for a GPU also its name."""
    release: str = ""
    """The version, where one was asked for: then it is part of the question. Where not, it is what is tracked."""
    target: str = ""
    """What it was built for without being run, such as `sm_89`."""
    copy: str = ""
    """`2` for the second of two cases that were asked for in the same words."""

    @property
    def series(self) -> str:
        """Return the name of the series: equal keys, equal names."""
        # Empty fields are left out, so that a field which a later harness adds leaves the old names as they are.
        filled = {name: value for name, value in msgspec.structs.asdict(self).items() if value}
        return hashlib.sha256(msgspec.json.encode(filled)).hexdigest()[:20]


class Place(NamedTuple):
    """A workload on one kind of machine, in the words of a `Key`."""

    model: str
    dims: str
    device: str
    target: str
    machine: str


class Subject(Record, frozen=True, kw_only=True):
    """What the export says of the model. None where there was no export.

    The hash of the exported files is no part of it: a new exporter writes another file of the same model.
    """

    weights: str | None = None
    """Where they came from, such as `seeded`."""
    parameters: str | None = None
    inputs: str | None = None


class Circumstances(Record, frozen=True, kw_only=True):
    """All else that a number may depend on. Of a run but for the case's own version and libraries."""

    version: str | None = None
    """Of the backend."""
    libraries: dict[str, str] = msgspec.field(default_factory=dict)
    """Those that the backend itself names."""
    others: dict[str, str] = msgspec.field(default_factory=dict)
    """Those of the environment."""
    artifact: str | None = None
    """Content hash of the export."""
    weights_sha256: str | None = None
    driver: str = ""
    card: str = ""
    """How the GPUs are set up: power limit, error correction, partitions."""
    clocks: str = ""
    """At which the GPUs' clocks were held."""
    kernel: str = ""
    os: str = ""
    python: str = ""
    governor: str = ""
    turbo: str = ""
    microcode: str = ""
    cpus: str = ""
    """Those that the workers were held to."""
    container: str = ""
    hostname: str = ""
    harness: str = ""
    opset: str = ""
    commit: str = ""
    """Of the user's project; `+` after it where files differed."""


_OF_A_CARD = ("power.limit", "ecc", "mig")
_ANYWHERE = ("artifact", "driver", "card", "clocks")
_OF_ONE_MACHINE = ("kernel", "os", "governor", "turbo", "microcode", "cpus", "container")


def key_of(case: Case, workload: Workload, environment: Environment) -> Key:
    """Return what makes a case comparable with those of other runs."""
    _, numbered, copy = case.id.rpartition("#")
    device = case.device.partition(":")[0]
    return Key(
        model=workload.model.label,
        dims=_listed(workload.asked),
        precision=case.precision,
        backend=case.backend,
        release=case.release or "",
        options=_listed(case.options),
        device=device,
        threads=str(case.threads),
        machine=machine_of(environment, case.device),
        target=case.target or "",
        copy=copy if numbered and copy.isdecimal() else "",
    )


def place_of(key: Key) -> Place:
    """Return which workload a case is of."""
    return Place(key.model, key.dims, key.device, key.target, key.machine)


def place_of_workload(workload: Workload, environment: Environment) -> Place:
    """Return the place of a workload, whether it has cases or not."""
    return Place(
        workload.model.label,
        _listed(workload.asked),
        workload.device.partition(":")[0],
        workload.target or "",
        machine_of(environment, workload.device),
    )


def machine_of(environment: Environment, device: str) -> str:
    """Return the class of a machine as far as a device's speed depends on it; not which one of its class it is."""
    cpu = f"{environment.cpu}, {environment.cores} cores, {environment.logical_cores} usable threads"
    kind = device.partition(":")[0]
    return cpu if kind == "cpu" else f"{name_of(device, environment.gpus) or kind}, {cpu}"


def subject_of(workload: Workload) -> Subject:
    """Return what the export says of the model."""
    info = workload.info
    if info is None:
        return Subject()
    return Subject(weights=info.weights, parameters=f"{info.parameters:,}", inputs=", ".join(info.inputs))


def circumstances_of(case: Case, workload: Workload, run: Run) -> Circumstances:
    """Return all else that a case's numbers may depend on."""
    environment, info, project = run.environment, workload.info, run.project
    return Circumstances(
        version=case.version,
        libraries=case.versions,
        others={name: version for name, version in _libraries(case, environment) if name not in case.versions},
        artifact=info.artifact if info else None,
        weights_sha256=info.weights_sha256 if info else None,
        driver=", ".join(sorted({gpu.get("driver_version", "") for gpu in environment.gpus} - {""})),
        card="; ".join(sorted({_set_up(gpu) for gpu in environment.gpus} - {""})),
        clocks=str(run.settings.lock_clocks or ""),
        kernel=environment.kernel,
        os=environment.os,
        python=case.interpreter.version if case.interpreter else environment.python,
        governor=environment.governor or "",
        turbo={True: "on", False: "off", None: ""}[environment.turbo],
        microcode=environment.microcode or "",
        cpus=as_list(run.settings.cpu_set) if run.settings.cpus else "all",
        container=environment.container or "",
        hostname=environment.hostname,
        harness=run.harness,
        opset=str(run.settings.opset),
        commit=f"{project.commit[:12]}{'+' if project.dirty else ''}" if project else "",
    )


def _libraries(case: Case, environment: Environment) -> Iterable[tuple[str, str]]:
    """Return what is installed where the case's workers run."""
    return (case.interpreter.packages if case.interpreter else environment.libraries).items()


def differing(one: Record, other: Record) -> dict[str, tuple[str, str]]:
    """Return the fields in which two records differ, as texts; one that is unknown on either side does not differ.

    Libraries are compared one by one.
    """
    a, b = _flat(one), _flat(other)
    return {
        name: (a[name], b[name])
        for name in dict.fromkeys([*a, *b])
        if a.get(name) and b.get(name) and a[name] != b[name]
    }


def own_causes(one: Circumstances, other: Circumstances) -> bool:
    """Say whether something of the case itself changed: its version, or a library that its backend names."""
    return one.version != other.version or one.libraries != other.libraries


def common_causes(one: Circumstances, other: Circumstances) -> dict[str, tuple[str, str]]:
    """Return what changed that may slow down all cases of a run together, other than another machine of the class.

    Between two machines a kernel's part cannot be told from that of the hardware; a driver's is taken to be its own.
    """
    changed = differing(one, other)
    causes = _ANYWHERE if "hostname" in changed else (*_ANYWHERE, *_OF_ONE_MACHINE)
    return {name: changed[name] for name in causes if name in changed}


def _flat(record: Record) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(record).items():
        if isinstance(value, dict):
            out.update(value)
        else:
            out[name] = value or ""
    return out


def _set_up(gpu: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {gpu[name]}" for name in _OF_A_CARD if gpu.get(name))


def _listed(values: Mapping[str, Scalar]) -> str:
    def text(value: Scalar) -> str:
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return " ".join(f"{name}={text(value)}" for name, value in sorted(values.items()))
