"""The commands that look into drift: where it begins, and what it would cost to be rid of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness import options
from harness.parameters import Amount, Whole


@click.command()
@options.subject
@click.option("--backend", required=True, help="One backend; options after a colon, as in --backends.")
@options.precision
@options.one_device
@options.one_batch
@options.seed
@options.threads
@options.opset
@options.input_sets
@options.timeout
@options.memory_limit
@click.option(
    "--to", type=click.Path(path_type=Path), help="Folder for the model of the node alone.  [default: the run's own]"
)
@options.out
@options.print_json
@options.verbose
@options.quiet
def localize(**given: Any) -> int:
    """Find the first tensor where a backend leaves tolerance, and write a small model that shows it.

    Engines of the same graph with a few of its tensors as extra outputs are built, about as many as the logarithm of
    the number of nodes; what a tensor should hold says ONNX Runtime without graph optimisation, in float32.

    \b
    Examples:
      harness localize --model minilm-l6 --backend onnxruntime --precision int8
      harness localize --model model.onnx --backend tvm:tuning_seconds=60 --to the-node
      harness localize --model resnet50 --backend tensorrt --precision fp16 --device cuda --json

    \b
    Exit codes: 0 nothing drifts, 1 drift was found and located, 2 wrong usage, 3 the backend gave no result.
    """
    from harness.drift_commands import run_localize

    return run_localize(given)


@click.command()
@options.subject
@click.option("--backend", required=True, help="One backend; options after a colon, as in --backends.")
@options.precision
@options.one_device
@options.one_batch
@click.option(
    "--budget", type=Amount(), default=300.0, show_default=True, help="Seconds that the search for nodes may take."
)
@click.option("--top", type=Whole(1, 20), default=5, show_default=True, help="Choices that are measured at most.")
@options.seed
@options.threads
@options.opset
@options.input_sets
@options.timeout
@options.memory_limit
@options.out
@options.print_json
@options.verbose
@options.quiet
def sensitivity(**given: Any) -> int:
    """Find which nodes, kept in float32, buy back most accuracy for the time that they cost.

    Stretches of nodes are kept in float32 one after another, the most promising in ever smaller parts, each judged on
    the backend itself. The best, the best two and so on are then measured side by side, in one short launch.

    \b
    Examples:
      harness sensitivity --model minilm-l6 --backend onnxruntime --precision int8
      harness sensitivity --model resnet50 --backend tensorrt --precision fp16 --device cuda --top 3
    """
    from harness.drift_commands import run_sensitivity

    return run_sensitivity(given)
