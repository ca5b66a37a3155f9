"""`harness run` and `harness init`: their options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from typing import Any

import click

from harness import options
from harness.formats import STDOUT, Formats
from harness.history.cli import label_option, store_option


@click.command("run")
@click.argument("suites", nargs=-1, metavar="SUITE...")
@click.option("--list", "list_", is_flag=True, help="Say which suites there are, and what each compares.")
@click.option("--quick", is_flag=True, help="One launch, a few seconds a case; no verdicts, marked as such.")
@click.option("--cold", is_flag=True, help="Compile anew, also where an engine of an earlier run fits.")
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder, its name, or: last")
@label_option
@store_option
@options.out
@click.option(
    "--format",
    "format_",
    type=Formats(),
    default=STDOUT,
    metavar="NAME[=FILE],...",
    help="As harness compare.",
)
@options.format_json
@options.verbose
@options.quiet
@click.pass_context
def run(context: click.Context, /, suites: tuple[str, ...], list_: bool, **given: Any) -> int:
    """Compare what SUITEs of harness.toml name, and hold the outcome against its baseline where they have gates.

    Suites that differ in nothing but their models are one comparison; else one comes after another. What the command
    line says comes first, then the suite, then [compare].

    \b
    Examples:
      harness run --list
      harness run nightly
      harness run nightly --quick --format terminal,html=report.html
      harness run nightly weekly
      harness run nightly --resume last

    \b
    Exit codes: as harness compare, and 1 where a gate failed; of several comparisons the gravest.
    """
    from harness.errors import UsageError
    from harness.suite_running import list_suites, run_suites

    config = context.find_root().params.get("config")
    if list_ == bool(suites):
        raise UsageError(
            "--list takes no suite" if list_ else "which suite?", hint="harness run --list, or: harness run SUITE"
        )
    if list_:
        list_suites(config, as_json=given["as_json"])
        return 0
    source = click.core.ParameterSource.COMMANDLINE
    overrules = {name: value for name, value in given.items() if context.get_parameter_source(name) is source}
    return run_suites(suites, config, overrules)


@click.command()
@click.option("--force", is_flag=True, help="Write it also where there is one.")
@options.quiet
def init(force: bool, quiet: bool) -> int:
    """Write a harness.toml with comments: a suite of the backends that work here, gates, and where the history is.

    \b
    Examples:
      harness init
      harness init --force
    """
    from harness.starting import write_config

    write_config(force=force, quiet=quiet)
    return 0
