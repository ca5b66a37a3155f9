"""`harness ceilings`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

import click

from harness import options


@click.command()
@click.option(
    "--device", default="cpu", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Device that is measured."
)
@options.threads
@click.option("--precision", metavar="NAME,...", help="Precisions to measure.  [default: what the device is made for]")
@click.option("--refresh", is_flag=True, help="Measure again what is known already.")
@options.print_json
@options.quiet
def ceilings(device: str, threads: int | None, precision: str | None, refresh: bool, as_json: bool, quiet: bool) -> int:
    """Measure how fast a device multiplies matrices and moves memory, once; comparisons then say how near they came.

    \b
    Examples:
      harness ceilings
      harness ceilings --device cuda:0 --precision fp32,tf32,fp16

    \b
    Exit codes: 0 whatever was found, 2 wrong usage, 130 interrupted: what was measured is kept.
    """
    from harness.ceilings import run_ceilings

    return run_ceilings(device, threads, precision, refresh=refresh, as_json=as_json, quiet=quiet)
