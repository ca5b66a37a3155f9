"""`harness recommend`: its options, turned into a wish. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness import options
from harness.options import out as out_option
from harness.parameters import Amount
from harness.quantities import Bytes, Drift, Duration, Share

LIMITS: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    ("--max-latency", "latency", Duration(), "Most that the p50 of compute may be: 20ms."),
    ("--max-latency-p95", "latency-p95", Duration(), "Most that the p95 of compute may be."),
    ("--max-latency-p99", "latency-p99", Duration(), "Most that the p99 of compute may be."),
    ("--max-host-to-host", "host-to-host", Duration(), "Most that the p50 with copies in and out may be."),
    ("--max-device-latency", "device-latency", Duration(), "Most that the p50 of the GPU itself may be."),
    ("--min-throughput", "throughput", Amount(), "Least items a second."),
    ("--max-compile", "compile", Duration(), "Longest compilation: 10m."),
    ("--max-warm-load", "warm-load", Duration(), "Longest load of a saved engine in a fresh process."),
    ("--max-memory", "memory", Bytes(), "Most resident memory of a running engine's process: 8GB."),
    ("--max-device-memory", "device-memory", Bytes(), "Most memory of the GPU that it may take."),
    ("--max-energy", "energy", Amount(), "Most millijoules of the GPU that one inference may take."),
    ("--max-engine", "engine", Bytes(), "Largest saved engine."),
    ("--min-agreement", "agreement", Share(), "Least top-1 agreement of a classifier with its reference: 99%."),
    ("--min-accuracy", "accuracy", Share(), "Least accuracy on the run's --dataset, by its leading metric: 0.75, 96%."),
    ("--max-cost", "cost", Amount(), "Most that a million items may cost; needs --price."),
)
"""Option, metric, type and help."""
OBJECTIVES = (
    *("latency", "latency-p95", "latency-p99", "host-to-host", "device-latency", "throughput"),
    *("compile", "warm-load", "memory", "device-memory", "energy", "engine", "drift", "accuracy", "cost"),
)


def _limits(command: Any) -> Any:  # click's decorators are typed no closer
    for option, _, kind, text in reversed(LIMITS):
        command = click.option(option, type=kind, help=text)(command)
    return command


@click.command()
@click.argument("run", default="last")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="latency",
    show_default=True,
    help="What the best backend is best in.",
)
@_limits
@click.option(
    "--max-drift",
    type=Drift(),
    default="pass",
    show_default=True,
    metavar="pass|any|DISTANCE",
    help="pass: the outputs agree with the reference; or the largest relative L2 distance: 1e-3.",
)
@click.option("--price", type=Amount(), help="What an hour of this machine costs, in any currency.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Copy the recommended engine there, with the lines that load it and a manifest.",
)
@options.print_json
@out_option
def recommend(run: str, out: Path, save: Path | None, as_json: bool, **given: Any) -> int:
    """Say which backend of a RUN to deploy, why, how sure that is, and what would change the answer.

    \b
    Examples:
      harness recommend
      harness recommend last --max-latency-p99 20ms --max-compile 10m --max-memory 8GB
      harness recommend --objective throughput --max-drift 1e-3 --json
      harness recommend --min-accuracy 96%
      harness recommend --objective cost --price 0.60
      harness recommend last --save deploy/

    \b
    Exit codes: 0 there is one, 1 nothing that was measured meets the limits, 2 wrong usage, 3 nothing was measured.
    """
    from harness.recommending import run_recommend

    return run_recommend(run, out, given, save=save, as_json=as_json)
