"""What a finished comparison does with its run: into the history, or, if that fails, a way to do it later.

A result is never lost to the history: it is in the run's folder before anything here begins. Runs for a server that
does not answer wait in the user's data folder, each as a folder with its `run.json`, like any other run.
"""

from __future__ import annotations

import shutil

import click

from harness.errors import HarnessError, StoreError
from harness.history.location import Location, data_root
from harness.paths import make_folder
from harness.records import Run
from harness.store import RUN_FILE, RunFolder, load_run

WAITING = "waiting"


def keep(run: Run, folder: RunFolder, location: Location | None) -> None:
    """Put a run into the history. Whatever goes wrong is a warning on stderr."""
    if location is None or not any(workload.cases for workload in run.workloads):
        return
    try:
        _keep(run, folder, location)
    except HarnessError as exc:
        _warn(exc.message, exc.hint, folder)
    except Exception as exc:  # a defect of ours, or of a database: the measurement took minutes, and it is there
        _warn(f"the history {location.shown} failed: {type(exc).__name__}: {exc}", None, folder)


def _keep(run: Run, folder: RunFolder, location: Location) -> None:
    # Imported here, when everything is measured: they would take memory and time from what is being measured.
    from harness.history.database import UnreachableError
    from harness.history.store import History

    try:
        History(location, create=True).add(run)
    except UnreachableError as exc:
        wait(run, location)
        click.echo(f"warning: {exc.message}", err=True)
        click.echo("  hint: the run waits here; send it with: harness sync", err=True)
        return
    if waiting(location):
        click.echo(
            f"{len(waiting(location))} earlier run(s) wait for this history; send them with: harness sync", err=True
        )


def _warn(message: str, hint: str | None, folder: RunFolder) -> None:
    click.echo(f"warning: the run is not in the history: {message}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)
    click.echo(f"  later: harness import {folder.path}", err=True)


def wait(run: Run, location: Location) -> None:
    """Put a run beside those that wait for a server.

    Raises:
        StoreError: The user's data folder cannot be written.
    """
    place = make_folder(
        data_root() / WAITING / location.slug / run.id, "the folder of runs that wait", hint="see: harness import"
    )
    RunFolder(place).save(run)


def waiting(location: Location) -> list[RunFolder]:
    """Return the runs that wait for a history, oldest first."""
    root = data_root() / WAITING / location.slug
    return [RunFolder(path.parent) for path in sorted(root.glob(f"*/{RUN_FILE}"))] if root.is_dir() else []


def send(location: Location) -> tuple[int, list[StoreError]]:
    """Move the runs that wait into the history; return how many went, and why others cannot.

    Raises:
        StoreError: The history cannot be opened; all runs go on waiting.
    """
    from harness.history.store import History

    folders = waiting(location)
    if not folders:
        return 0, []
    history = History(location, create=True)
    refused = []
    for folder in folders:
        try:
            history.add(load_run(folder))
        except StoreError as exc:
            refused.append(exc)
            continue
        shutil.rmtree(folder.path, ignore_errors=True)
    return len(folders) - len(refused), refused
