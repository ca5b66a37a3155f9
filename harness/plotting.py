"""What `harness plot` does, behind `harness/plotting_command.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import click

from harness import registry
from harness.ceilings import with_ceilings
from harness.deploying import folder_name
from harness.errors import UsageError
from harness.paths import make_folder, users_path, write_atomically
from harness.plotting_command import FORMATS, KINDS
from harness.records import Run
from harness.store import find_run, load_run
from harness.summarize import summarize


class Drawing(Protocol):
    """One chart of a run, not drawn yet; see `registry.drawings`."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""

    @property
    def workloads(self) -> tuple[str, ...]:
        """Keys of the workloads that it shows: one, or those of a sweep."""

    def content(self, format_: str) -> bytes:
        """Return the picture as the content of a file."""


def run_plot(
    name: str, runs: Path, kinds: Sequence[str] | None, workload: str | None, out: Path, format_: str | None
) -> None:
    """Carry out `harness plot`.

    Raises:
        UsageError: matplotlib is missing, the run has no such chart, or several would go to one file.
        StoreError: There is no such run, or a file cannot be written.
    """
    target = users_path(str(out))
    single = _format_of_file(target, out, format_)
    run = with_ceilings(load_run(find_run(name, runs, "--runs")))
    if workload is not None and workload not in (keys := [one.key for one in run.workloads]):
        raise registry.unknown("workload of this run", workload, keys)
    drawings = _wanted(registry.drawings()(summarize(run)), run, kinds, workload)
    if single is not None:
        if len(drawings) > 1:
            names = ", ".join(_file_name(one, run) for one in drawings)
            raise UsageError(
                f"--out {out} is one file, and there are {len(drawings)} charts: {names}",
                hint="choose with --kind and --workload, or give a folder",
            )
        files = [(target, single)]
    else:
        make_folder(target, "the folder of charts", hint="choose another --out")
        chosen = format_ or FORMATS[0]
        files = [(target / f"{_file_name(one, run)}.{chosen}", chosen) for one in drawings]
    for drawing, (path, kind) in zip(drawings, files, strict=True):
        write_atomically(path, drawing.content(kind))
        click.echo(str(path))


def _format_of_file(target: Path, out: Path, format_: str | None) -> str | None:
    """Return the format by the file's name; None for a folder."""
    suffix = target.suffix.lower().removeprefix(".")
    if target.is_dir() or not suffix:
        return None
    if suffix not in FORMATS:
        raise UsageError(
            f"--out {out}: '.{suffix}' is no kind of picture that can be written",
            hint=f"name a {', '.join(f'.{one}' for one in FORMATS)} file, or a folder",
        )
    if format_ not in (None, suffix):
        raise UsageError(f"--out {out} and --format {format_} contradict each other")
    if not target.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {target.parent}")
    return suffix


def _wanted(found: Sequence[Drawing], run: Run, kinds: Sequence[str] | None, workload: str | None) -> list[Drawing]:
    of_workload = [one for one in found if workload is None or workload in one.workloads]
    there = {one.kind for one in of_workload}
    for kind in kinds or ():
        if kind not in there:
            raise UsageError(f"run {run.id} has no data for a chart of {kind}", hint=KINDS[kind] or None)
    if not of_workload:
        raise UsageError(f"run {run.id} has nothing to draw: nothing was compiled or measured in it")
    return [one for one in of_workload if kinds is None or one.kind in kinds]


def _file_name(drawing: Drawing, run: Run) -> str:
    if len(run.workloads) == 1:
        return drawing.kind
    if len(drawing.workloads) > 1:
        return f"{folder_name(drawing.workloads[0])}-and-on-{drawing.kind}"
    number = [one.key for one in run.workloads].index(drawing.workloads[0]) + 1
    return f"{number:02d}-{folder_name(drawing.workloads[0])}-{drawing.kind}"
