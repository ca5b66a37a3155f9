"""`harness check`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from typing import Any

import click

from harness import options
from harness.formats import STDOUT, Formats
from harness.history.cli import store_option
from harness.history.parameters import DriftGrowth, Growth
from harness.parameters import Whole

FORMATS = ("terminal", "markdown", "json", "junit")
_GROWTHS = (
    ("--max-slowdown", "5%", "Most that latency may grow."),
    ("--max-compile", "20%", "Most that compile time may grow."),
    ("--max-memory", "10%", "Most that peak memory may grow: of the host, of the device, and while compiling."),
    ("--max-size", "10%", "Most that the saved engine may grow."),
)


def _growths(command: Any) -> Any:  # click's decorators are typed no closer
    for option, default, text in reversed(_GROWTHS):
        command = click.option(
            option, type=Growth(), default=default, show_default=True, metavar="PERCENT|any", help=text
        )(command)
    return command


@click.command()
@click.argument("run", default="last")
@click.option(
    "--against",
    default="baseline",
    show_default=True,
    metavar="baseline|last:N|SIDE",
    help="What it is held against: its baseline, the N runs before it, or a run, a label, or BACKEND@VERSION.",
)
@_growths
@click.option(
    "--max-drift",
    type=DriftGrowth(),
    default="10x",
    show_default=True,
    metavar="FACTORx|DISTANCE|pass|any",
    help="Most that drift may become: so many times what it was, a relative L2 distance, or whatever passes.",
)
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    default="pass",
    show_default=True,
    help="What becomes of a latency over its limit which even measuring again cannot decide.",
)
@click.option(
    "--remeasure",
    type=Whole(0, 20),
    default=1,
    show_default=True,
    metavar="N",
    help="Times that a suspicious case is measured again in fresh processes before it is called a regression.",
)
@click.option("--no-remeasure", is_flag=True, help="The same as --remeasure 0: the run alone decides.")
@click.option(
    "--format",
    "format_",
    type=Formats(FORMATS),
    default=STDOUT,
    metavar="NAME[=FILE],...",
    help=f"Reports, each to a file or, one at most, to stdout. Names: {', '.join(FORMATS)}.",
)
@options.format_json
@click.option("--junit", type=click.Path(), metavar="FILE", help="Also write JUnit XML: short for junit=FILE.")
@store_option
@options.out
@options.verbose
@options.quiet
def check(**given: Any) -> int:
    """Fail where a RUN is worse than what it is held against: slower, bigger, farther off, longer to compile, broken.

    \b
    Examples:
      harness check
      harness check last --against last:10 --max-slowdown 3% --max-compile any
      harness check --against onnxruntime@1.30.1 --no-remeasure
      harness check --remeasure 3 --undecided fail
      harness check results/2026-03-02T10-11-12-resnet50-ab12 --against elsewhere/run.json
      harness check --format terminal,markdown=check.md --junit check.xml

    \b
    A figure fails where it is over its limit and the statistics agree. Compile time and memory are held against how
    they varied in earlier runs of the case, once there are six. What is suspicious is measured again, beside the case
    that it is compared through, and that run is kept like any other.
    In GitHub Actions it annotates the workflow and adds to the step's summary.

    \b
    Exit codes: 0 nothing is worse, 1 something is, 2 wrong usage or nothing could be compared, 130 interrupted.
    """
    from harness.cli import given_on_the_command_line
    from harness.history.checking import run_check

    return run_check(given, given_on_the_command_line())
