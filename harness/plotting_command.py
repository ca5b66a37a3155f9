"""`harness plot`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.options import DEFAULT_OUT

KINDS = {
    "latency": "",
    "rounds": "it takes two rounds in which the baseline was measured: harness compare without --quick",
    "drift": "it takes two measured cases whose outputs were judged",
    "roofline": "it takes to know what the device can do at most: harness ceilings",
    "compile": "",
    "memory": "",
    "throughput": "a sweep has it: harness compare --batch 1,4,16",
}
"""What can be drawn, and what a run without it lacks."""
FORMATS = ("svg", "png", "pdf")


class Kinds(click.ParamType[list[str]]):
    """Kinds of charts, comma-separated; in a file of defaults also a list."""

    name = "kinds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        from harness.registry import unknown

        asked = [str(one).strip() for one in (value if isinstance(value, list) else str(value).split(","))]
        for one in asked:
            if one not in KINDS:
                self.fail(unknown("kind of chart", one, KINDS).message, param, ctx)
        return list(dict.fromkeys(asked))


@click.command()
@click.argument("run", default="last")
@click.option(
    "--kind",
    "kinds",
    type=Kinds(),
    metavar="NAME,...",
    help=f"What to draw: {', '.join(KINDS)}.  [default: all that the run has]",
)
@click.option("--workload", metavar="KEY", help="Of one workload of several; as in the table: 'resnet50 batch=4'")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("plots"),
    show_default=True,
    metavar="FILE|DIR",
    help="A .svg, .png or .pdf file for one chart, a folder for several.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Of the files in a folder.  [default: svg]",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder that holds runs.",
)
def plot(run: str, kinds: list[str] | None, workload: str | None, out: Path, format_: str | None, runs: Path) -> int:
    """Draw charts of a RUN into files: those of the HTML report. Prints the files that it wrote.

    \b
    Examples:
      harness plot last --kind latency --out latency.png
      harness plot last --kind roofline,drift --out figures/ --format pdf
      harness plot 2026-03-02T10-11-12 --workload 'resnet50 batch=4'
    """
    from harness.plotting import run_plot

    run_plot(run, runs, kinds, workload, out, format_)
    return 0
