"""Behind `harness import`, `sync`, `baseline`, and the parts of `harness history` that change something."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from tabulate import tabulate

from harness.errors import HarnessError, StoreError, UsageError
from harness.history import queries
from harness.history.keeping import send, waiting
from harness.history.location import Location, locate
from harness.history.store import PRUNED, History
from harness.paths import make_folder
from harness.records import Run
from harness.store import RunFolder, find_run, load_run


def opened(store: str | None, *, create: bool = False) -> History:
    """Open the history that the user means.

    Raises:
        UsageError: The user asked for none.
        StoreError: It is not there, or cannot be used.
    """
    return History(wanted(store), create=create)


def wanted(store: str | None) -> Location:
    """Return where the history is.

    Raises:
        UsageError: The user asked for none.
    """
    location = locate(store)
    if location is None:
        raise UsageError("there is no history: the store is switched off with 'none'", hint="give --store PATH or URL")
    return location


def resolve_run(history: History, name: str) -> queries.RunRow:
    """Return the run of the history that a name stands for.

    Raises:
        StoreError: There is none, or several.
    """
    with history.database.read() as connection:
        found = queries.find_run(connection, name)
        newest = queries.newest_runs(connection, 5)
    if found is None:
        hint = f"the newest are {', '.join(run.id for run in newest)}; or: {queries.LAST}" if newest else "it is empty"
        raise StoreError(f"no run '{name}' in the history {history.database.location.shown}", hint=hint)
    return found


def import_runs(names: Sequence[str], out: Path, store: str | None, labels: Sequence[str]) -> int:
    """Carry out `harness import`; return how many could not be imported."""
    runs: list[Run] = []
    bad = 0
    for name in names:
        try:
            run = load_run(find_run(name, out))
            runs.append(msgspec.structs.replace(run, labels=[*run.labels, *labels]))
        except StoreError as exc:
            bad += 1
            _complain(exc)
    if not runs:
        return bad
    history = opened(store, create=True)
    for run in runs:
        done = history.add(run)
        there = "is there already" if done == "unchanged" else done
        click.echo(f"{run.id}: {there}, {sum(len(workload.cases) for workload in run.workloads)} cases")
    return bad


def sync(store: str | None) -> int:
    """Carry out `harness sync`; return how many runs go on waiting."""
    location = wanted(store)
    sent, refused = send(location)
    for exc in refused:
        _complain(exc)
    left = len(waiting(location))
    click.echo(f"{sent} run(s) sent to {location.shown}; {left} wait" if sent or left else "no run waits")
    return left


def export_runs(names: Sequence[str], to: Path, store: str | None) -> None:
    """Carry out `harness history export`: each run as a folder with its `run.json`."""
    history = opened(store)
    ids = [resolve_run(history, name).id for name in names]
    for run in map(history.load, ids):
        folder = to / run.id
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} exists and is not empty", hint="choose another --to")
        make_folder(folder, "the folder", hint="choose another --to")
        RunFolder(folder).save(run)
        if PRUNED in run.notes:
            click.echo(f"warning: {run.id}: {PRUNED}", err=True)
        click.echo(str(folder))


def label_run(name: str, labels: Sequence[str], store: str | None, *, remove: bool) -> None:
    """Carry out `harness history label`."""
    history = opened(store)
    run = resolve_run(history, name).id
    history.label(run, labels, remove=remove)
    click.echo(f"{run}: {'no longer ' if remove else ''}{', '.join(labels)}")


def remove_runs(names: Sequence[str], store: str | None) -> None:
    """Carry out `harness history remove`."""
    history = opened(store)
    for run in [resolve_run(history, name).id for name in names]:
        history.remove(run)
        click.echo(f"removed {run}")


def keep_samples(days: int | None, store: str | None) -> None:
    """Carry out `harness history keep`. None days: say what holds."""
    history = opened(store)
    emptied = history.keep_samples(days or None) if days is not None else 0
    kept = history.kept_samples()
    click.echo(f"raw samples are kept {'for good' if kept is None else f'for {kept} days'}; figures are kept for good")
    if emptied:
        click.echo(f"removed the raw samples of {emptied} run(s)")


def set_baseline(name: str, store: str | None) -> None:
    """Carry out `harness baseline set`: each case of the run that has a result is what its series is held against."""
    history = opened(store)
    run = resolve_run(history, name)
    with history.database.read() as connection:
        points = queries.points_of_run(connection, run.id)
    usable = [point for point in points if point.status in ("ok", "compiled")]
    if not usable:
        raise UsageError(f"run {run.id} has no case that is ok: nothing can be held against it")
    history.set_baseline(usable)
    click.echo(f"baseline of {len(usable)} series: {run.id}")
    for point in points:
        if point not in usable:
            click.echo(f"  not {point.workload}, {point.case}: {point.status}")


def clear_baseline(store: str | None, model: str | None, backend: str | None) -> None:
    """Carry out `harness baseline clear`: of a model, of a backend or one of its cases, or all."""
    history = opened(store)
    with history.database.read() as connection:
        found = queries.baselines(connection)
    chosen = [
        series
        for series, point in found.items()
        if model in (None, point.key.model) and backend in (None, point.key.backend, point.case)
    ]
    if not chosen and (model, backend) != (None, None):
        known = sorted({f"{point.key.model}, {point.case}" for point in found.values()})
        wanted = " and ".join(
            f"{what} '{name}'" for what, name in (("model", model), ("backend", backend)) if name is not None
        )
        raise UsageError(f"no baseline of {wanted}", hint=f"there is one of: {'; '.join(known) or 'nothing'}")
    click.echo(f"cleared the baseline of {history.clear_baselines(chosen)} series")


def show_baseline(store: str | None, *, as_json: bool) -> None:
    """Carry out `harness baseline show`."""
    history = opened(store)
    with history.database.read() as connection:
        found = sorted(queries.baselines(connection).values(), key=lambda point: (point.key.model, point.case))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(point) for point in found], indent=2))
        return
    if not found:
        click.echo("no baseline; set one with: harness baseline set RUN")
        return
    rows = [
        (point.workload, point.case, point.circumstances.version or "-", point.key.machine, point.run)
        for point in found
    ]
    click.echo(tabulate(rows, headers=["workload", "case", "version", "machine", "run"]))


def _complain(exc: HarnessError) -> None:
    for line in exc.lines():
        click.echo(line, err=True)
