"""The commands of the history as the user types them. Imports nothing heavy: `harness --help` reads this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness import options
from harness.history.location import VARIABLE
from harness.history.parameters import Since
from harness.history.points import METRICS
from harness.parameters import Whole
from harness.quantities import Share

FAILED = 2
"""Exit code where a file or a database could not be read or written."""

store_option = click.option(
    "--store",
    envvar=VARIABLE,
    metavar="PATH|URL|none",
    help=f"History: a SQLite file, postgresql://USER@HOST/NAME, or none; also {VARIABLE}.  [default: a file of yours]",
)
label_option = click.option(
    "--label", "labels", multiple=True, metavar="NAME", help="A name by which the history finds this run; repeatable."
)
_format = click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "markdown", "json"]),
    default="terminal",
    show_default=True,
    help="Format on stdout.",
)


@click.command("import")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@label_option
@store_option
@options.out
def import_(runs: tuple[str, ...], labels: tuple[str, ...], store: str | None, out: Path) -> int:
    """Put runs into the history: run folders, run.json files, or names below --out.

    \b
    Examples:
      harness import results/*
      harness import last --label v2.1
      harness import from-ci/2026-03-02T10-11-12-resnet50-ab12/run.json
    """
    from harness.history.managing import import_runs

    return FAILED if import_runs(runs, out, store, labels) else 0


@click.command()
@store_option
def sync(store: str | None) -> int:
    """Send runs to the history that wait here because its server did not answer.

    \b
    Example:
      harness sync --store postgresql://ci@db.example.org/harness
    """
    from harness.history.managing import sync as run_sync

    return FAILED if run_sync(store) else 0


@click.command()
@click.argument("action", type=click.Choice(["show", "set", "clear"]), default="show")
@click.argument("run", required=False)
@click.option("--model", help="Clear that of one model only.")
@click.option("--backend", help="Clear that of one backend only: with its options, or of one case: tvm:trials=64")
@store_option
@options.print_json
def baseline(
    action: str, run: str | None, model: str | None, backend: str | None, store: str | None, as_json: bool
) -> int:
    """Say what later runs are held against: each case has one baseline, the same case of an earlier RUN.

    \b
    Examples:
      harness baseline set last
      harness baseline show
      harness baseline clear --model resnet50
      harness baseline clear --model resnet50 --backend onnxruntime@1.24.4
    """
    from harness.errors import UsageError
    from harness.history import managing

    if (action == "set") != (run is not None):
        raise UsageError(
            "harness baseline set wants a run" if run is None else f"harness baseline {action} takes no run",
            hint="harness baseline set last",
        )
    for option, value in (("--model", model), ("--backend", backend)):
        if value is not None and action != "clear":
            raise UsageError(f"{option} belongs to harness baseline clear, not to {action}")
    if action == "show":
        managing.show_baseline(store, as_json=as_json)
    elif run is not None:
        managing.set_baseline(run, store)
    else:
        managing.clear_baseline(store, model, backend)
    return 0


@click.command()
@click.argument("before")
@click.argument("after")
@store_option
@_format
def diff(before: str, after: str, store: str | None, format_: str) -> int:
    """Compare two sides, case by case: each a run, a label, or BACKEND@VERSION.

    \b
    Examples:
      harness diff last~1 last
      harness diff onnxruntime@1.30.1 onnxruntime@1.31.1
      harness diff release-2.0 last --format markdown
      harness diff results/2026-03-02T10-11-12-resnet50-ab12 elsewhere/run.json

    \b
    Exit codes: 0 something was compared, 2 wrong usage, 3 the two sides have no case in common.
    """
    from harness.history.showing import show_difference

    return show_difference(before, after, store, format_)


@click.group(invoke_without_command=True)
@click.option("--model", help="Of one model; * stands for any text: --model 'yolov8*'")
@click.option("--backend", help="Of one backend, with whatever options.")
@click.option("--version", "version", help="Of one version of a backend.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="On one kind of device.")
@click.option("--label", help="Of runs with this label.")
@click.option("--since", type=Since(), help="Of runs since a day, or for so many days: 2026-03-02, 30d")
@click.option(
    "--metric", type=click.Choice(METRICS), default="latency", show_default=True, help="What is drawn over time."
)
@click.option(
    "--limit", type=Whole(1, 100_000), default=20, show_default=True, help="Cases that are shown at most, the newest."
)
@store_option
@_format
@click.pass_context
def history(context: click.Context, /, **given: Any) -> int:
    """Show the newest cases of the history, and one of their figures over time.

    \b
    Examples:
      harness history
      harness history --model resnet50 --backend onnxruntime --since 90d --limit 100
      harness history --label nightly --metric compile
      harness history --format json --limit 100000 > history.json
    """
    if context.invoked_subcommand is not None:
        _refuse_before(context, context.invoked_subcommand)
        return 0
    from harness.history.queries import Filter
    from harness.history.showing import show_history

    names = ("model", "backend", "version", "device", "label", "since")
    filter_ = Filter(**{name: given[name] for name in names})
    return show_history(filter_, given["metric"], given["limit"], given["store"], given["format_"])


def _refuse_before(context: click.Context, command: str) -> None:
    """Refuse options that stand before the command which they are meant for: nothing would read them."""
    from harness.errors import UsageError

    for parameter in context.command.params:
        if context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} belongs after '{command}'", hint=f"harness history {command} --help")


@history.command("export")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder in which each run gets its own.")
@store_option
def export_(runs: tuple[str, ...], to: Path, store: str | None) -> int:
    """Write runs of the history as run files, for harness show, or harness import elsewhere.

    \b
    Example:
      harness history export last --to from-history
    """
    from harness.history.managing import export_runs

    export_runs(runs, to, store)
    return 0


@history.command("label")
@click.argument("run")
@click.argument("labels", nargs=-1, required=True, metavar="LABEL...")
@click.option("--remove", is_flag=True, help="Take the labels away.")
@store_option
def label(run: str, labels: tuple[str, ...], remove: bool, store: str | None) -> int:
    """Give a run labels. Raw samples of a labelled run are kept for good.

    \b
    Example:
      harness history label last release-2.1
    """
    from harness.history.managing import label_run

    label_run(run, labels, store, remove=remove)
    return 0


@history.command("keep")
@click.argument("days", required=False, type=Whole(0, 36500))
@store_option
def keep(days: int | None, store: str | None) -> int:
    """Set for how many DAYS raw samples are kept, 0 for good; without DAYS say what holds.

    Figures are kept for good, and so are the samples of baselines and of labelled runs.

    \b
    Example:
      harness history keep 365
    """
    from harness.history.managing import keep_samples

    keep_samples(days, store)
    return 0


@history.command("remove")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@store_option
def remove(runs: tuple[str, ...], store: str | None) -> int:
    """Take runs out of the history, such as those of a disturbed machine. Run files stay.

    \b
    Example:
      harness history remove 2026-03-02T10-11-12-resnet50-ab12
    """
    from harness.history.managing import remove_runs

    remove_runs(runs, store)
    return 0


@click.command()
@click.option("--model", help="Of one model; * stands for any text: --model 'yolov8*'")
@click.option("--backend", help="Of one backend, with whatever options.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="On one kind of device.")
@click.option(
    "--metric", "metrics", type=click.Choice(METRICS), multiple=True, help="Figures; repeatable.  [default: all]"
)
@click.option("--since", type=Since(), help="Only steps since a day, or in so many days: 2026-03-02, 30d")
@click.option(
    "--last",
    type=Whole(1, 10_000),
    default=60,
    show_default=True,
    help="Runs of each case that are looked at, the newest; those before --since are among them.",
)
@click.option("--min-effect", type=Share(), default="2%", show_default=True, help="Smallest change that is a step.")
@click.option(
    "--fail-on-regression", is_flag=True, help="Exit with 1 where the newest step of a figure is for the worse."
)
@store_option
@_format
def trends(**given: Any) -> int:
    """Find where figures moved to another level over the runs, by how much, and what changed then.

    \b
    Examples:
      harness trends
      harness trends --model resnet50 --backend onnxruntime --metric latency --metric memory
      harness trends --since 7d --fail-on-regression --format markdown

    \b
    A step must hold for 3 runs, and be clear of how the runs differ: one slow run is none. The newest run
    alone is what harness check judges.

    \b
    Exit codes: 0 looked, 1 with --fail-on-regression where something became worse, 2 wrong usage.
    """
    from harness.history.queries import Filter
    from harness.history.showing import show_trends

    return show_trends(
        Filter(model=given["model"], backend=given["backend"], device=given["device"]),
        given["metrics"],
        since=given["since"],
        most=given["last"],
        least=given["min_effect"],
        store=given["store"],
        format_=given["format_"],
        fail=given["fail_on_regression"],
    )


COMMANDS: tuple[click.Command, ...] = (history, diff, trends, baseline, import_, sync)
