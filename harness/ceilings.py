"""What a device can do at most: measured once a device and precision, and kept; and what its maker says of it."""

from __future__ import annotations

import functools
import json
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec
from tabulate import tabulate

from harness import environment, protocol
from harness.devices import kind, parse_devices
from harness.errors import UsageError
from harness.gpu import name_of
from harness.launcher import Launcher
from harness.paths import cache_root, make_folder, write_atomically
from harness.precisions import parse_precisions
from harness.records import Ceiling, Environment, Run
from harness.store import now_utc

FILE = "ceilings.json"
DATASHEETS = Path(__file__).with_name("datasheets.json")
TIMEOUT_S = 600.0
OK, INTERRUPTED = 0, 130
BUSY = 0.3
"""Load average a logical core above which others are in the way."""
MEASURED = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "tf32", "fp16", "bf16", "int8")}
"""Precisions that are measured unless others are asked for. On a CPU torch multiplies float16 slower than it could."""


class Datasheet(msgspec.Struct, frozen=True, kw_only=True):
    """What a maker publishes."""

    name: str
    match: str
    """Regular expression that is found in the driver's name of the device."""
    memory: float
    """1e9 bytes a second."""
    matrix: dict[str, float]
    """Precision -> 1e12 operations a second, dense."""
    note: str = ""
    """What must be known of the figures."""
    source: str
    """The maker's document that they are from."""


class _Sheets(msgspec.Struct, frozen=True, kw_only=True):
    devices: list[Datasheet]


@functools.cache
def datasheets() -> tuple[Datasheet, ...]:
    """Return the table that comes with harness; the first that matches a name is the device's."""
    return tuple(msgspec.json.decode(DATASHEETS.read_bytes(), type=_Sheets).devices)


def datasheet(name: str) -> Datasheet | None:
    """Return what is published of a device, by the driver's name of it."""
    return next((one for one in datasheets() if re.search(one.match, name)), None)


def stored() -> list[Ceiling]:
    """Return what was measured before; a file that cannot be read counts as none."""
    try:
        return msgspec.json.decode((cache_root() / FILE).read_bytes(), type=list[Ceiling])
    except (OSError, msgspec.DecodeError):
        return []


def of_machine(machine: Environment, devices: Sequence[str], known: Sequence[Ceiling]) -> list[Ceiling]:
    """Return the ceilings of a run's devices: those measured here, for a GPU without any those of its datasheet."""
    found = []
    for device in devices:
        name = device_name(machine, device)
        own = [one for one in known if (one.device, one.name) == (device, name)]
        sheet = datasheet(name) if kind(device) != "cpu" else None
        if not own and sheet is not None:
            own = [published(device, name, sheet)]
        found += own
    return found


def with_ceilings(run: Run) -> Run:
    """Return a run with the ceilings of its devices where they became known on this machine only after it."""
    if run.ceilings or run.environment.hostname != socket.gethostname():
        return run
    devices = list(dict.fromkeys(workload.device for workload in run.workloads))
    return msgspec.structs.replace(run, ceilings=of_machine(run.environment, devices, stored()))


def published(device: str, name: str, sheet: Datasheet) -> Ceiling:
    """Return a datasheet as a ceiling."""
    return Ceiling(
        device=device,
        name=name,
        matrix={precision: rate * 1e12 for precision, rate in sheet.matrix.items()},
        memory=[(0, sheet.memory * 1e9)],
        source=f"the datasheet of the {sheet.name}, dense rates{f' ({sheet.note})' if sheet.note else ''}",
    )


def device_name(machine: Environment, device: str) -> str:
    """Return what a device is called: the processor's or the GPU's name."""
    if kind(device) == "cpu":
        return machine.cpu
    return name_of(device, machine.gpus) or ""


def run_ceilings(
    device: str, threads: int | None, precision: str | None, *, refresh: bool, as_json: bool, quiet: bool
) -> int:
    """Carry out `harness ceilings` and return the exit code. A precision is kept as soon as it is measured."""
    machine = environment.describe([])
    devices = parse_devices(device, environment.visible_gpus())
    if len(devices) > 1:
        raise UsageError(f"harness ceilings takes one device, and there are {len(devices)}")
    (device,) = devices
    if kind(device) == "cuda" and not device_name(machine, device):
        raise UsageError(f"there is no device {device} here", hint="harness doctor")
    asked = parse_precisions(precision) if precision else MEASURED[kind(device)]
    count = threads or environment.default_threads()
    others = [one for one in stored() if not _same(one, device, count, machine)]
    known = next((one for one in stored() if _same(one, device, count, machine)), None)
    own = None if refresh else known
    refused: dict[str, str] = {}
    missing = [one for one in asked if own is None or one not in own.matrix]
    interrupted = False
    if missing:
        if not quiet:
            click.echo(f"measuring {device}: {', '.join(missing)}", err=True)
        busy = _busy(machine)
        try:
            for rated in _measured(device, count, missing):
                refused |= rated.refused
                own = Ceiling(
                    device=device,
                    name=device_name(machine, device),
                    threads=count if kind(device) == "cpu" else None,
                    matrix={**(own.matrix if own else {}), **rated.matrix},
                    memory=rated.memory or (own.memory if own else []),
                    source=f"measured with torch {rated.version} at {now_utc()}{busy}",
                )
                # What is to be measured again is not lost before it was.
                _keep([*others, msgspec.structs.replace(own, matrix={**(known.matrix if known else {}), **own.matrix})])
            assert own is not None
            _keep([*others, own])
        except KeyboardInterrupt:
            if own is None:
                raise
            interrupted = True
    assert own is not None
    _show(own, refused, as_json=as_json)
    if interrupted:
        left = [one for one in missing if one not in own.matrix and one not in refused]
        click.echo(f"interrupted; not measured: {', '.join(left)}. The same command goes on with them", err=True)
    return INTERRUPTED if interrupted else OK


def _keep(ceilings: Sequence[Ceiling]) -> None:
    make_folder(cache_root(), "the cache folder")
    write_atomically(cache_root() / FILE, msgspec.json.encode(ceilings))


def _same(one: Ceiling, device: str, threads: int, machine: Environment) -> bool:
    wanted = threads if kind(device) == "cpu" else None
    return (one.device, one.name, one.threads) == (device, device_name(machine, device), wanted)


def _measured(device: str, threads: int, precisions: Sequence[str]) -> Iterator[protocol.Rated]:
    """Yield what one worker measures, a precision at a time; memory comes with the first."""
    with tempfile.TemporaryDirectory(prefix="harness-ceilings-") as logs:
        launcher = Launcher(
            logs=Path(logs), threads=threads, memory_limit_bytes=environment.memory_bytes(), timeout_s=TIMEOUT_S
        )
        with launcher, launcher.start("ceilings", threads=threads) as worker:
            for index, one in enumerate(precisions):
                request = protocol.Rates(device=device, precisions=[one], threads=threads, memory=index == 0)
                yield worker.call(request, protocol.Rated, timeout_s=TIMEOUT_S)


def _busy(machine: Environment) -> str:
    """Return what must be said where others had the machine too: what was measured is then no ceiling."""
    if machine.load_average <= BUSY * machine.logical_cores:
        return ""
    load = f"load average {machine.load_average:.1f}"
    return f" on a busy machine ({load}), so it may be too low: harness ceilings --refresh"


def _show(own: Ceiling, refused: dict[str, str], *, as_json: bool) -> None:
    sheet = datasheet(own.name)
    if as_json:
        document = {**msgspec.to_builtins(own), "refused": refused, "datasheet": msgspec.to_builtins(sheet)}
        click.echo(json.dumps(document, indent=2))
        return
    threads = f", {own.threads} threads" if own.threads else ""
    click.echo(f"{own.device}: {own.name}{threads}, {own.source}\n")
    rows = [
        (precision, f"{rate / 1e9:.4g}", *_beside(rate, sheet.matrix.get(precision, 0) * 1e12 if sheet else 0))
        for precision, rate in own.matrix.items()
    ]
    click.echo(tabulate(rows, headers=["matrix products", "GFLOP/s", "datasheet", "reached"], disable_numparse=True))
    rows = [
        (f"{size / 2**20:g} MiB", f"{rate / 1e9:.4g}", *_beside(rate, sheet.memory * 1e9 if sheet else 0))
        for size, rate in own.memory
    ]
    click.echo("")
    click.echo(tabulate(rows, headers=["working set", "GB/s", "datasheet", "reached"], disable_numparse=True))
    for precision, why in refused.items():
        click.echo(f"\n{precision}: not measured: {why}")


def _beside(rate: float, of: float) -> tuple[str, str]:
    return (f"{of / 1e9:.4g}", f"{100 * rate / of:.0f} %") if of else ("-", "-")
