"""`harness publish`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from pathlib import Path

import click

from harness.history.cli import store_option
from harness.history.parameters import Since
from harness.options import quiet as quiet_option


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--since", type=Since(), help="Only runs since a day, or of so many days: 2026-03-02, 90d")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: which pages were written and removed.")
@quiet_option
def publish(folder: Path, since: str | None, store: str | None, as_json: bool, quiet: bool) -> int:
    """Write the history as a web site into DIR: models, backends and machines over time, and every run's report.

    It needs no server and no network: open DIR/index.html, or copy DIR to where others see it. A second call writes
    only what changed and removes the pages of runs that are gone. DIR must be new, empty, or made by this command;
    hidden files in it, such as those of git, are left alone.

    \b
    Examples:
      harness publish site/
      harness publish site/ --since 90d --store postgresql://ci@db.example.org/harness
    """
    from harness.history.publishing import run_publish

    run_publish(folder, store, since, as_json=as_json, quiet=quiet)
    return 0
