"""The command `harness env`: environments of single releases of backends."""

from __future__ import annotations

import click

from harness import options

NO_RESULT = 3


@click.group(name="env")
def env() -> None:
    """Environments of single releases: what NAME@VERSION in --backends is measured in.

    \b
    Examples:
      harness env list
      harness env create onnxruntime@1.24.4,onnxruntime@1.31.1
      harness env show onnxruntime@1.24.4
      harness env clear
    """


@env.command(name="list")
@options.print_json
def list_(as_json: bool) -> int:
    """List environments: Python, packages, size, when they were made and last used.

    \b
    Example:
      harness env list
    """
    from harness.environments.managing import run_list

    run_list(as_json=as_json)
    return 0


@env.command()
@click.argument("names", nargs=-1, required=True, metavar="BACKEND@VERSION...")
@options.print_json
def show(names: tuple[str, ...], as_json: bool) -> int:
    """Show an environment: all of its packages, how it was made, and which comparisons ran in it.

    \b
    Example:
      harness env show onnxruntime@1.24.4
    """
    from harness.environments.managing import run_show

    run_show(names, as_json=as_json)
    return 0


@env.command()
@click.argument("items", nargs=-1, required=True, metavar="BACKEND@VERSION,...")
@options.pythons
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Kind of device it is for."
)
@options.quiet
def create(items: tuple[str, ...], pythons: tuple[str, ...], device: str, quiet: bool) -> int:
    """Make environments ahead of time, and print their interpreters.

    \b
    Examples:
      harness env create onnxruntime@1.24.4,onnxruntime@1.31.1
      harness env create onnxruntime@1.14.1 --python onnxruntime@1.14.1=/usr/bin/python3.10

    \b
    Exit codes: 0 all are there, 2 wrong usage or no such release, 3 one could not be made.
    """
    from harness.environments.managing import run_create

    return 0 if run_create(items, pythons, kind=device, quiet=quiet) else NO_RESULT


@env.command()
@click.argument("names", nargs=-1, metavar="[BACKEND@VERSION...]")
@click.option("--yes", is_flag=True, help="Without a question.")
def clear(names: tuple[str, ...], yes: bool) -> int:
    """Delete environments: those named, or all after a question. Those of a running comparison are kept.

    \b
    Examples:
      harness env clear onnxruntime@1.24.4
      harness env clear --yes
    """
    from harness.environments.managing import run_clear

    run_clear(names, yes=yes)
    return 0
