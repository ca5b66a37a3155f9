"""`harness bisect`: its options. Imported with the command line, so nothing heavy is here."""

from __future__ import annotations

from typing import Any

import click

from harness import options
from harness.history.cli import label_option, store_option
from harness.history.points import METRICS
from harness.parameters import Amount, Whole
from harness.quantities import Threshold

FIGURES = (*METRICS, "status")


@click.command()
@options.subject
@click.option(
    "--backend", required=True, help="One backend, without a version; options after a colon, as in --backends."
)
@click.option("--good", metavar="VERSION", help="A version that is as it should be.")
@click.option(
    "--bad", metavar="VERSION", help="A version that is not; older than --good where something was lost again."
)
@click.option(
    "--versions",
    metavar="A,B,C",
    help="The versions to search among, in this order.  [default: all releases from --good to --bad]",
)
@click.option("--previews", is_flag=True, help="Take release candidates and the like for releases, too.")
@click.option(
    "--metric",
    type=click.Choice(FIGURES),
    default="latency",
    show_default=True,
    help="What changed; status: that it works at all.",
)
@click.option(
    "--threshold",
    type=Threshold(),
    default="5%",
    show_default=True,
    help="From which growth on a change counts: 5%, 300%.",
)
@options.precision
@options.one_device
@options.one_batch
@options.seed
@options.threads
@options.cpus
@options.opset
@options.input_sets
@click.option(
    "--launches",
    type=Whole(2, 1000),
    default=5,
    show_default=True,
    help="Sets of fresh processes to measure a pair in; twice and four times as many where they do not decide.",
)
@click.option(
    "--budget",
    type=Amount(),
    default=180.0,
    show_default=True,
    help="Seconds that measuring a pair may take each time; one launch is always measured.",
)
@options.timeout
@options.memory_limit
@click.option("--cold", is_flag=True, help="Measure anew also what an earlier bisect has measured.")
@label_option
@store_option
@options.out
@options.print_json
@options.verbose
@options.quiet
def bisect(**given: Any) -> int:
    """Find the release of a backend that made a figure worse: slower, bigger, farther off, or broken.

    Both ends are measured against each other first. Then the versions between them are halved, each measured in one
    interleaved run with the good end, as in harness compare, and the last two against each other. Where more is left
    behind a step, it is searched for, too. What was measured is remembered: an interrupted bisect goes on where it was.

    \b
    Examples:
      harness bisect --model resnet50 --backend onnxruntime --good 1.20.0 --bad 1.31.1
      harness bisect --model minilm-l6 --backend onnxruntime --good 1.23.0 --bad 1.31.1 --metric memory --threshold 10%
      harness bisect --model tiny --backend onnxruntime:level=basic --versions 1.24.4,1.28.0,1.31.1 --metric compile
      harness bisect --model model.onnx --backend onnxruntime --good 1.26.0 --bad 1.31.1 --metric status --json

    \b
    A version that cannot be installed or gives no result is skipped, and its neighbours are tried; the answer is then
    a range. So it is where more launches do not decide a pair.

    \b
    Exit codes: 0 a step was found, 1 the ends do not differ by the threshold or cannot be told apart, 2 wrong usage,
    such as ends the wrong way round, 3 an end cannot be installed or gives no result, 130 interrupted.
    """
    from harness.bisect.commands import run_bisect

    return run_bisect(given)
