"""`harness claims`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness import options
from harness.history import cli as history
from harness.parameters import Amount


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--list", "list_only", is_flag=True, help="Only list the claims, and whether they can be run here.")
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A table of your own instead of the one that comes with harness, in the same layout.",
)
@click.option("--quick", is_flag=True, help="One launch a comparison: a first look, without verdicts.")
@click.option("--refresh", is_flag=True, help="Measure again what an earlier command has measured.")
@click.option(
    "--budget",
    type=Amount(),
    default=180.0,
    show_default=True,
    help="Seconds that measuring one model at one shape may take.",
)
@options.threads
@options.timeout
@history.store_option
@options.out
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "markdown", "json"]),
    default="terminal",
    show_default=True,
    help="Format on stdout.",
)
@options.format_json
@options.quiet
def claims(**given: Any) -> int:
    """Measure published figures again, as far as this machine can, and say which of them hold.

    \b
    Examples:
      harness claims --list
      harness claims
      harness claims L1 R2 --format markdown
      harness claims A1 --quick --json

    \b
    A claim is of one device. On another one only ratios are measured, and only where the table says what they show
    there. Each claim is one comparison, kept like any other below --out. What was measured before is not
    measured again, and an interrupted comparison goes on.

    \b
    Exit codes: 0 whatever was found, 2 wrong usage, 3 claims were asked for by name and none has a figure,
    130 interrupted.
    """
    from harness.claiming import run_claims

    return run_claims(given)
