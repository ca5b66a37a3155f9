"""`harness profile` as the user types it. Imports nothing heavy: `harness --help` reads this."""

from __future__ import annotations

from typing import Any

import click

from harness import options
from harness.parameters import Whole


@click.command()
@click.argument("run", required=False)
@options.subject
@click.option(
    "--backends",
    multiple=True,
    default=["all"],
    show_default="all",
    help="Comma-separated; options after a colon: tvm:trials=64,tuning_seconds=60",
)
@options.precision
@options.one_device
@options.one_batch
@click.option(
    "--iterations", type=Whole(1, 10_000), default=10, show_default=True, help="Iterations under each profiler."
)
@click.option("--top", type=Whole(1, 10_000), default=15, show_default=True, help="Rows that are shown.")
@click.option(
    "--by",
    type=click.Choice(["node", "op", "group"]),
    default="node",
    show_default=True,
    help="A row: a node of the ONNX graph, all of one operator, or the nodes that some backend runs together.",
)
@click.option("--again", is_flag=True, help="Profile RUN anew, also where its profile is there already.")
@options.seed
@options.threads
@options.opset
@options.input_sets
@options.timeout
@options.memory_limit
@options.out
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "markdown", "csv", "json"]),
    default="terminal",
    show_default=True,
    help="Format on stdout.",
)
@options.format_json
@options.verbose
@options.quiet
@click.pass_context
def profile(context: click.Context, /, run: str | None, **given: Any) -> int:
    """Show which operators each backend spends its time in, by its own profiler, side by side.

    RUN profiles the cases of a comparison with the engines that it saved; without it a model is compiled as for a
    comparison. What is profiled is slower than what is measured: these times are no latencies.

    \b
    Examples:
      harness profile --model resnet50 --backends eager,onnxruntime,tvm
      harness profile last
      harness profile last --by op --top 8
      harness profile --model bert-base --backends all --by group --format markdown
      harness profile results/2026-03-02T10-11-12-resnet50-ab12 --again --iterations 50 --json

    \b
    Exit codes: 0 all asked for is there, 2 wrong usage, 3 a backend that was asked for by name has no profile,
    130 interrupted.
    """
    from harness.profile_commands import run_profile

    on_command_line = click.core.ParameterSource.COMMANDLINE
    explicit = {name for name in context.params if context.get_parameter_source(name) is on_command_line}
    return run_profile(run, given, explicit)
