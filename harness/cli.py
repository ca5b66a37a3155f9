"""The command line: what the user types, turned into calls. Frameworks are never imported here.

Exit codes: 0 all asked for is ok; 1 a gate failed (drift, a regression); 2 wrong usage, or files that cannot be read or
written; 3 a case that was asked for by name has no result; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from harness import __version__, options, registry
from harness.bisect.cli import bisect
from harness.ceilings_command import ceilings
from harness.choosing import recommend
from harness.claims_command import claims
from harness.cli_drift import localize, sensitivity
from harness.cli_profile import profile
from harness.environments.cli import env
from harness.errors import HarnessError, StoreError, UsageError
from harness.formats import STDOUT, Formats, Wanted
from harness.history import cli as history
from harness.history.cli_check import check
from harness.history.publish_command import publish
from harness.options import labelled, placement, precision, subject
from harness.parameters import Amount, ClockRate, Sizes, Whole
from harness.plotting_command import plot
from harness.suite_cli import init, run

OK, GATE_FAILED, WRONG_USAGE, NO_RESULT, INTERRUPTED = 0, 1, 2, 3, 130


SECTIONS = {
    "Compare": ("compare", "run", "init", "show", "plot", "recommend"),
    "Look closer": ("profile", "localize", "sensitivity", "ceilings", "claims"),
    "Track regressions": ("history", "check", "trends", "diff", "baseline", "bisect", "publish", "import", "sync"),
    "What there is": ("backends", "models", "export", "doctor", "env", "cache"),
}
"""The commands in the order in which a newcomer meets them."""


class _Commands(click.Group):
    """Lists commands section by section, and suggests near misses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit)) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise registry.unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="harness")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="File of defaults, a table a command.  [default: harness.toml, where there is one]",
)
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Compare deep-learning compiler backends on your models: latency, accuracy drift and compile time.

    \b
    Examples:
      harness compare --model resnet50 --backends all
      harness compare --model path/to/model.onnx --backends onnxruntime,tvm --quick
      harness init
      harness run default
      harness models
      harness show last --format markdown
      harness doctor
    """
    from harness.config import FILE, read

    replaced = context.invoked_subcommand == init.name  # whatever is wrong with the file
    if config is not None or (FILE.is_file() and not replaced):
        assert isinstance(context.command, click.Group)
        context.default_map = read(config or FILE, context.command.commands)


def _formats() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names = ", ".join(registry.report_names())
        command = options.format_json(command)
        return click.option(
            "--format",
            "format_",
            type=Formats(),
            default=STDOUT,
            metavar="NAME[=FILE],...",
            help=f"Reports, each to a file or, one at most, to stdout: terminal,html=report.html. Names: {names}.",
        )(command)

    return decorate


@cli.command()
@subject
@click.option(
    "--suite", metavar="NAME", help="A set of models: vision, nlp, diffusion, speech, micro, quick, reference"
)
@click.option(
    "--backends",
    multiple=True,
    default=["all"],
    show_default="all",
    help="Comma-separated; version after @, options after a colon: onnxruntime@1.24.4,tvm:trials=64,tuning_seconds=60",
)
@options.pythons
@precision
@labelled
@placement
@click.option("--baseline", help="Case that all others are compared with.  [default: eager, else the first]")
@click.option("--batch", type=Sizes(), show_default="1", help="Items in one inference; 1,4,32: a sweep.")
@click.option("--dynamic", is_flag=True, help="Beside each engine one that takes all shapes of the sweep.")
@options.seed
@options.threads
@options.cpus
@options.opset
@options.input_sets
@click.option(
    "--launches",
    type=Whole(1, 1000),
    default=5,
    show_default=True,
    help="Sets of fresh processes to measure in.",
)
@click.option(
    "--builds",
    type=Whole(1, 100),
    default=1,
    show_default=True,
    help="Independent builds of each case; how they differ enters the verdict.",
)
@click.option("--parallel", is_flag=True, help="Measure several devices at the same time; they may disturb each other.")
@click.option(
    "--budget",
    type=Amount(),
    default=180.0,
    show_default=True,
    help="Seconds that measuring one model at one shape may take; one launch is always measured.",
)
@click.option("--quick", is_flag=True, help="One launch, a few seconds a case; no verdicts, marked as such.")
@options.timeout
@options.memory_limit
@click.option(
    "--lock-clocks",
    type=ClockRate(),
    is_flag=False,
    flag_value="base",
    metavar="[MHZ]",
    help="Hold the GPU's SM clock while measuring, at its base clock or at so many MHz, and give it back afterwards. "
    "Needs root. Without this no clock is ever changed.",
)
@click.option("--cold", is_flag=True, help="Compile anew, also where an engine of an earlier run fits.")
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run: its folder, its name, or: last")
@history.label_option
@history.store_option
@options.out
@_formats()
@options.verbose
@options.quiet
def compare(**given: Any) -> int:
    """Export a model once, compile it with every backend, measure them side by side and print a table.

    \b
    Examples:
      harness compare --model resnet50 --backends all
      harness compare --backends eager,torch-compile,torch-compile:mode=max-autotune,freezing=true
      harness compare --backends onnxruntime,tvm:trials=64 --baseline onnxruntime --threads 1
      harness compare --model model.onnx --dim batch=4 --backends onnxruntime,tvm
      harness compare --model my_package.nets:detector --inputs photos/ --backends all
      harness compare --model yolov8n,yolov8s --batch 1,4,16 --dynamic --backends eager,onnxruntime
      harness compare --suite nlp --backends eager,onnxruntime,torch-compile
      harness compare --model minilm-l6 --precision fp32,fp16,int8 --backends all
      harness compare --backends onnxruntime@1.24.4,onnxruntime@1.31.1 --baseline onnxruntime@1.24.4
      harness compare --model digits --dataset digits --precision fp32,int8 --backends all
      harness compare --model resnet50 --weights pretrained --dataset folder:imagenet/val --backends all
      harness compare --model yolov8x --target sm_89
      harness compare --device cuda --builds 3 --backends eager,tensorrt,torch-compile
      harness compare --backends all --quick --json > table.json
      harness compare --resume last

    \b
    --backends is a comma-separated list. A token with "=" before any ":" is an option of the backend to its
    left, every other token starts a backend; "all" is every backend. The same backend may come several times. With
    a version, that release is installed into an environment of its own, once, and measured there.

    \b
    Exit codes: 0 all asked for is ok, 1 outputs drifted, 2 wrong usage, 3 a case asked for by name has no
    result (with "all", a backend that is not installed is a row, not a failure), 130 interrupted.
    """
    from harness.commands import run_compare

    return run_compare(given, given_on_the_command_line())


@cli.command()
@click.argument("run", default="last")
@options.out
@_formats()
@options.verbose
def show(run: str, out: Path, format_: list[Wanted], as_json: bool, verbose: bool) -> int:
    """Print the table of a finished or interrupted RUN: its folder, the start of its name, or "last".

    \b
    Examples:
      harness show
      harness show results/2026-03-02T10-11-12-resnet50 --format markdown
      harness show last --format terminal,html=report.html,junit=junit.xml
    """
    from harness.commands import run_show

    run_show(run, out, [Wanted("json", None)] if as_json else format_, verbose=verbose)
    return OK


@cli.command()
@click.argument("name", required=False)
@options.print_json
def backends(name: str | None, as_json: bool) -> int:
    """List backends: versions and devices, or why not and what to install. With NAME, its options.

    \b
    Examples:
      harness backends
      harness backends tvm
    """
    from harness.listing import list_backends

    list_backends(name, as_json=as_json)
    return OK


@cli.command()
@click.argument("name", required=False)
@options.print_json
def models(name: str | None, as_json: bool) -> int:
    """List reference models and suites. With NAME, a model's settings, inputs and public weights.

    \b
    Examples:
      harness models
      harness models llama-decode
    """
    from harness.listing import list_models, show_model

    if name:
        show_model(name, as_json=as_json)
    else:
        list_models(as_json=as_json)
    return OK


@cli.command()
@subject
@options.one_batch
@options.seed
@options.threads
@options.opset
@options.input_sets
@click.option("--to", type=click.Path(path_type=Path), help="Also copy the artifact to this folder.")
@click.option("--refresh", is_flag=True, help="Export again even if it is in the cache.")
@options.quiet
def export(**given: Any) -> int:
    """Export a model: ONNX, weights, inputs and reference outputs, checked against eager.

    \b
    Examples:
      harness export --model resnet50 --batch 4 --to resnet50-b4
      harness export --model bert-base --dim sequence=512 --weights pretrained
    """
    from harness.exporting import run_export

    run_export(given)
    return OK


@cli.command()
@options.print_json
def doctor(as_json: bool) -> int:
    """Say what on this machine makes numbers noisy, with figures and advice.

    \b
    Example:
      harness doctor
    """
    from harness.housekeeping import run_doctor

    run_doctor(as_json=as_json)
    return OK


@cli.command()
@click.argument("action", type=click.Choice(["show", "clear"]), default="show")
@click.option("--exports", is_flag=True, help="Only exported models.")
@click.option("--engines", is_flag=True, help="Only saved engines.")
@click.option("--backends", "backends_", is_flag=True, help="Only what backends keep, such as tuning databases.")
@click.option("--environments", is_flag=True, help="Only environments of single releases; see harness env.")
@click.option("--bisects", is_flag=True, help="Only what bisects remember of pairs of releases.")
def cache(action: str, exports: bool, engines: bool, backends_: bool, environments: bool, bisects: bool) -> int:
    """Show the size of the cache, or clear it. Engines of a running comparison are kept.

    \b
    Examples:
      harness cache
      harness cache clear --engines
    """
    from harness.housekeeping import run_cache

    chosen = {"exports": exports, "engines": engines, "backends": backends_}
    chosen |= {"environments": environments, "bisects": bisects}
    run_cache(action, [name for name, wanted in chosen.items() if wanted] or list(chosen))
    return OK


_COMPARING = (run, init, plot, recommend)
_LOOKING = (profile, localize, sensitivity, ceilings, claims)
_TRACKING = (check, bisect, publish, *history.COMMANDS)
for _command in (*_COMPARING, *_LOOKING, *_TRACKING, env):
    cli.add_command(_command)


def given_on_the_command_line() -> set[str]:
    """Return the names of the parameters that were given on the command line."""
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is given}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    for number in (signal.SIGTERM, signal.SIGHUP):  # a job system, a lost connection: keep what is finished
        signal.signal(number, _interrupt)
    try:
        sys.exit(_run(arguments))
    except click.ClickException as exc:
        _complain(_as_ours(exc), arguments)
        sys.exit(WRONG_USAGE)
    except HarnessError as exc:
        _complain(exc, arguments)
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our stdout left (`| head`)
        _drop_stdout()
        sys.exit(OK)
    except OSError as exc:  # a full disk, mostly: the machine's state, not a defect of ours
        if _is_verbose(arguments):
            raise
        full = exc.errno == errno.ENOSPC
        click.echo(f"error: {exc.filename or 'standard output'}: {exc.strerror or exc}", err=True)
        click.echo(f"  hint: {'free some disk space' if full else 'run it again with -v for the traceback'}", err=True)
        _drop_stdout()
        sys.exit(WRONG_USAGE)
    except Exception as exc:  # a defect of ours: one line, and the way to the rest
        if _is_verbose(arguments):
            raise
        click.echo(f"error: internal: {type(exc).__name__}: {exc}", err=True)
        click.echo("  hint: this is a defect of harness; run the command again with -v for the traceback", err=True)
        sys.exit(NO_RESULT)


def _run(arguments: list[str]) -> int:
    if sys.stdout is not None and "utf" not in (sys.stdout.encoding or "").lower():
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a report holds characters such as µ
    # Not `cli.main()`: it turns a reader that leaves early into exit code 1, which means drift here.
    try:
        with cli.make_context("harness", list(arguments) or ["--help"]) as context:
            code: int | None = cli.invoke(context)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code or OK


def _as_ours(exc: click.ClickException) -> UsageError:
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    message = exc.format_message()
    return UsageError(
        message[:1].lower() + message[1:].rstrip("."), hint=f"{context.command_path} --help" if context else None
    )


def _drop_stdout() -> None:
    # Python flushes once more when it ends, and would complain once more.
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(exc: HarnessError, arguments: list[str]) -> None:
    import shlex

    for line in exc.lines():
        click.echo(line, err=True)
    if not isinstance(exc, (UsageError, StoreError)):
        click.echo(f"  reproduce: harness {shlex.join(arguments)}", err=True)
    if _is_verbose(arguments):
        import traceback

        click.echo(exc.worker_traceback or "".join(traceback.format_exception(exc)), err=True)


def _is_verbose(arguments: list[str]) -> bool:
    return "-v" in arguments or "--verbose" in arguments


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
