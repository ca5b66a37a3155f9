"""Groups of options on the command line that belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.parameters import Amount, Whole

DEFAULT_OUT = "results"

seed = click.option(
    "--seed",
    type=Whole(0, (1 << 32) - 1),
    default=0,
    show_default=True,
    help="Seed of weights, inputs and round order.",
)
threads = click.option(
    "--threads", type=Whole(1, 1024), default=None, help="CPU threads.  [default: one a physical core]"
)
pythons = click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="BACKEND[@VERSION]=PATH",
    help="Run a backend in an interpreter of your own; make the environment of a release from that one.",
)
cpus = click.option("--cpus", metavar="LIST", help="CPUs of the workers: 0-3,8, physical, physical:4, node0, ...")
opset = click.option("--opset", type=Whole(13, 25), default=18, show_default=True, help="ONNX opset.")
input_sets = click.option(
    "--input-sets",
    type=Whole(1, 64),
    default=4,
    show_default=True,
    help="Sets of inputs that outputs are judged on; fewer for models that take minutes.",
)
timeout = click.option(
    "--timeout",
    type=Amount(),
    default=900.0,
    show_default=True,
    help="Seconds that one step of one case may take.",
)
memory_limit = click.option(
    "--memory-limit",
    type=Amount(),
    default=None,
    help="GiB that one worker may take.  [default: 85 % of this machine's]",
)
out = click.option(
    "--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Folder that holds runs."
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Show tracebacks of failures.")
print_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
format_json = click.option("--json", "as_json", is_flag=True, help="Short for --format json.")

one_device = click.option("--device", "devices", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
one_batch = click.option("--batch", type=Whole(1, 1 << 20), show_default="1", help="Items in one inference.")
"""Of a command that takes one of each; `harness compare` takes several."""


def subject(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is exported."""
    for add in reversed(
        (
            click.option(
                "--model",
                "models",
                multiple=True,
                show_default="resnet50",
                help="Comma-separated: a name of harness models, a .onnx or .pt2 file, package.module:factory, "
                "hf:ORG/NAME. Settings after a colon: llama-decode:size=tiny, net.onnx:task=detection,images=letterbox",
            ),
            click.option(
                "--dim",
                "dims",
                multiple=True,
                metavar="NAME=SIZE,...",
                help="Size of a free dimension, or several: --dim sequence=128,512",
            ),
            click.option(
                "--shape",
                "shapes",
                multiple=True,
                metavar="INPUT=2x3x224x224",
                help="Shape of an input: another way to set its free dimensions.",
            ),
            click.option(
                "--weights",
                metavar="seeded|pretrained|FILE",
                help="Where weights come from.  [default: seeded; what it brings for a model of your own]",
            ),
            click.option(
                "--inputs",
                metavar="PATH",
                help="Your own inputs instead of drawn ones: an .npz file, or a folder of such or of images.",
            ),
        )
    ):
        command = add(command)
    return command


def precision(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how exactly is computed, and how scales are found."""
    for add in reversed(
        (
            click.option(
                "--precision",
                "precisions",
                default="fp32",
                show_default=True,
                metavar="fp32,fp16,...",
                help="fp32, tf32, fp16, bf16, int8, fp8; several: every backend in each that it has.",
            ),
            click.option(
                "--calibration",
                metavar="PATH|SPEC",
                help="Inputs to calibrate int8 and fp8 on: an .npz file, a folder of such or of images, or a data set "
                "as --dataset has it.  [default: drawn from the seed]",
            ),
            click.option(
                "--calibration-samples",
                type=Whole(1, 4096),
                default=64,
                show_default=True,
                help="Samples to calibrate on.",
            ),
            click.option(
                "--calibration-method",
                type=click.Choice(["minmax", "entropy", "percentile"]),
                default="minmax",
                show_default=True,
                help="How a range becomes a scale, for int8.",
            ),
        )
    ):
        command = add(command)
    return command


def labelled(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what accuracy is measured on."""
    for add in reversed(
        (
            click.option(
                "--dataset",
                metavar="SPEC",
                help="Labelled data that every engine is judged on after it was measured: digits, folder:PATH (images "
                "in a sub-folder a class), coco:ANNOTATIONS.json,IMAGES, pairs:FILE.tsv (sentences and scores).",
            ),
            click.option(
                "--max-samples",
                type=Whole(1, 10_000_000),
                default=1000,
                show_default=True,
                help="Samples of it to judge on; of more, so many are drawn, the same for all.",
            ),
        )
    ):
        command = add(command)
    return command


def placement(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where cases run, or what they are only compiled for."""
    for add in reversed(
        (
            click.option(
                "--device",
                "devices",
                default="auto",
                show_default=True,
                help="auto, cpu, cuda or cuda:N; several: cuda:0,cuda:1, each measured on its own.",
            ),
            click.option(
                "--target",
                metavar="sm_89,...",
                help="Only compile, for a GPU that need not be here: build time, engine size, what is unsupported.",
            ),
            click.option("--for", "card", metavar="CARD,...", help="As --target, by the card's name: --for 'RTX 4090'"),
        )
    ):
        command = add(command)
    return command
