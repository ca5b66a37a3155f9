"""Which reports are asked for, and where they go. The grammar of `--format` is defined here.

    formats = item ("," item)*
    item    = name ["=" file]          without a file: to standard output, which one report at most may have

A token whose beginning is no format's name belongs to the file before it, so that a file's name may hold a comma.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from harness import registry
from harness.errors import StoreError, UsageError
from harness.paths import users_path, write_atomically
from harness.summary import RunSummary

STDOUT = "terminal"
"""What is printed where nothing was asked for."""


class Wanted(NamedTuple):
    """One report: its format, and the file that it goes to or None for standard output."""

    format: str
    file: str | None


class Formats(click.ParamType[list[Wanted]]):
    """One or more formats, each with a file or not; in a file of defaults also a list."""

    name = "formats"

    def __init__(self, known: Sequence[str] | None = None) -> None:
        """Take the names of formats; None: those of the reports of a run."""
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Wanted]:
        if isinstance(value, list) and all(isinstance(one, Wanted) for one in value):
            return value
        try:
            return parse_formats(",".join(map(str, value)) if isinstance(value, list) else str(value), self._known)
        except UsageError as exc:
            self.fail(exc.message, param, ctx)


def parse_formats(text: str, known: Sequence[str] | None = None) -> list[Wanted]:
    """Return what is asked for.

    Args:
        known: Names of formats; None: those of the reports of a run.

    Raises:
        UsageError: No format has this name, two reports go to one place, or a file is missing after `=`.
    """
    known = registry.report_names() if known is None else known
    found: list[Wanted] = []
    for token in text.split(","):
        name, equals, file = token.partition("=")
        if name.strip() in known:
            if equals and not file.strip():
                raise UsageError(f"'{token}': write {name.strip()}=FILE")
            found.append(Wanted(name.strip(), file.strip() if equals else None))
        elif found and found[-1].file is not None:
            found[-1] = Wanted(found[-1].format, f"{found[-1].file},{token}")
        else:
            raise registry.unknown("report format", name.strip(), known)
    places = [one.file and str(users_path(one.file)) for one in found]
    for place in set(places):
        if places.count(place) > 1:
            names = " and ".join(one.format for one, own in zip(found, places, strict=True) if own == place)
            if place is None:
                raise UsageError(f"{names} cannot both go to standard output; give a file: {found[-1].format}=FILE")
            raise UsageError(f"{names} cannot both go to {place}")
    return found


def check(wanted: list[Wanted]) -> None:
    """Refuse files that could not be written, before hours of measuring end there.

    Raises:
        UsageError: The folder is not there, the file is a folder, or neither may be written.
    """
    for one in wanted:
        if one.file is None:
            continue
        path = users_path(one.file)
        if path.is_dir():
            raise UsageError(f"--format {one.format}={one.file}: {path} is a folder", hint="name a file in it")
        if not path.parent.is_dir():
            raise UsageError(f"--format {one.format}={one.file}: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"--format {one.format}={one.file}: {path.parent} cannot be written")


def emit(summary: RunSummary, wanted: list[Wanted]) -> None:
    """Write and print the reports of a run.

    Raises:
        StoreError: A file cannot be written; the first of them.
    """

    def rendered(format_: str, *, color: bool, width: int | None) -> str:
        return registry.report(format_).render(summary, color=color, width=width)

    emit_all(rendered, wanted)


def emit_all(rendered: Callable[..., str], wanted: list[Wanted]) -> None:
    """Write and print texts. One that cannot be written does not keep the others from being so.

    Args:
        rendered: Returns the text of a format, given its name, `color` and `width`.

    Raises:
        StoreError: A file cannot be written; the first of them.
    """
    broken: StoreError | None = None
    for one in wanted:
        if one.file is None:
            terminal = sys.stdout is not None and sys.stdout.isatty()
            color = terminal and "NO_COLOR" not in os.environ
            width = shutil.get_terminal_size().columns if terminal else None
            click.echo(rendered(one.format, color=color, width=width), nl=False, color=color)
            continue
        try:
            write_atomically(users_path(one.file), rendered(one.format, color=False, width=None).encode("utf-8"))
            click.echo(f"wrote {one.file}", err=True)
        except StoreError as exc:
            broken = broken or exc
    if broken is not None:
        raise broken
