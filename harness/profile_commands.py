"""What `harness profile` does, behind `harness/cli_profile.py`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import __version__, environment, registry
from harness.cli import INTERRUPTED, NO_RESULT, OK
from harness.commands import DEFAULT_MODEL, one_recipe
from harness.devices import AUTO, parse_devices
from harness.errors import StoreError, UsageError
from harness.plan import Variant, asked_variants
from harness.precisions import parse_precisions
from harness.profiles import PROFILE_SCHEMA, By, ProfileRecord
from harness.profiling import PROFILE_FILE, Profiling
from harness.progress import Narrator
from harness.records import Run, Settings
from harness.sources import calibration_source
from harness.store import RunFolder, find_run, load_run, now_utc
from harness.workloads import asked_models, plan_workloads

SHOWING = {"run", "out", "top", "by", "format_", "as_json", "verbose", "quiet"}
"""What may be given beside a RUN whose profile is only shown."""
OF_A_RUN = SHOWING | {"iterations", "again", "timeout", "memory_limit"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be profiled, and where the record goes."""

    run: Run
    variants: list[Variant]
    folder: RunFolder
    own: bool
    """Whether the folder was made for this profile."""
    of: str | None = None


def run_profile(name: str | None, given: dict[str, Any], explicit: set[str]) -> int:
    """Carry out `harness profile` and return the exit code."""
    if {"as_json", "format_"} <= explicit:
        raise UsageError("--json and --format contradict each other; give one")
    if name is not None and (extra := sorted(explicit - OF_A_RUN)):
        singular = {"models": "model", "dims": "dim", "shapes": "shape", "devices": "device", "precisions": "precision"}
        flags = ", ".join("--" + singular.get(one, one).replace("_", "-") for one in extra)
        raise UsageError(f"a RUN brings its own model and backends; leave out {flags}")
    if given["again"] and name is None:
        raise UsageError("--again belongs to a RUN; a model is always profiled anew")
    if name is not None and not given["again"] and (kept := _kept(name, given["out"])) is not None:
        if extra := sorted(explicit - SHOWING):
            flags = ", ".join("--" + one.replace("_", "-") for one in extra)
            raise UsageError(f"{name} was profiled already, and {flags} would change nothing", hint="add --again")
        show(kept, given)
        return OK
    plan = _of_run(name, given) if name is not None else _of_model(given)
    return _carry_out(plan, given)


def _carry_out(plan: Plan, given: dict[str, Any]) -> int:
    record = ProfileRecord(
        id=plan.run.id,
        created=now_utc(),
        harness=__version__,
        command=shlex.join(["harness", *sys.argv[1:]]),
        run=plan.of,
        cpu=plan.run.environment.cpu,
        iterations=given["iterations"],
        state="running",
    )
    interrupted = False
    with Narrator(quiet=given["quiet"]) as narrator:
        work = Profiling(plan.run, plan.variants, plan.folder, narrator, record)
        try:
            work.execute()
            work.save(state="finished")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if not work.record.workloads and plan.own:  # nothing was done: nothing is left behind
                shutil.rmtree(plan.folder.path, ignore_errors=True)
    if work.record.workloads:
        if interrupted:
            work.save(state="interrupted")
        narrated = plan.folder.path / PROFILE_FILE
        if not given["quiet"]:
            click.echo(f"kept in {narrated}", err=True)
        show(work.record, given)
    if given["verbose"]:
        _print_tracebacks(work.record)
    if interrupted:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return _exit_code(work.record, plan.variants)


def _print_tracebacks(record: ProfileRecord) -> None:
    for workload in record.workloads:
        for case in workload.cases:
            if case.failure is not None and case.failure.traceback:
                click.echo(f"\n{workload.key}, {case.id}:\n{case.failure.traceback}", err=True)


def show(record: ProfileRecord, given: dict[str, Any]) -> None:
    """Print a record in the format that was asked for."""
    by: By = given["by"]
    format_ = "json" if given["as_json"] else given["format_"]
    if format_ == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
        return
    terminal = sys.stdout is not None and sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else None
    text = registry.view("profile")(record, by=by, top=given["top"], format_=format_, color=color, width=width)
    click.echo(text, nl=False, color=color)


def _kept(name: str, out: Path) -> ProfileRecord | None:
    """Return the profile in a folder, or that of a run; None where there is none, or it was interrupted."""
    direct = [Path(name), out / name]
    folder = next((one for one in direct if (one / PROFILE_FILE).is_file()), None) or find_run(name, out).path
    path = folder / PROFILE_FILE
    if not path.is_file():
        return None
    try:
        record = msgspec.json.decode(path.read_bytes(), type=ProfileRecord)
    except (OSError, msgspec.DecodeError) as exc:
        raise StoreError(f"{path} cannot be read: {exc}", hint="profile it anew with --again") from exc
    if record.schema != PROFILE_SCHEMA:
        raise StoreError(f"{path} was written by another harness", hint="profile it anew with --again")
    return record if record.state == "finished" or record.run is None else None


def _of_run(name: str, given: dict[str, Any]) -> Plan:
    folder = find_run(name, given["out"])
    before = load_run(folder)
    settings = msgspec.structs.replace(
        before.settings,
        builds=1,
        dataset=None,
        parallel=False,
        cold=False,
        lock_clocks=None,
        timeout_s=given["timeout"],
    )
    if given["memory_limit"]:
        settings = msgspec.structs.replace(settings, memory_limit_bytes=int(given["memory_limit"] * 2**30))
    workloads = [
        msgspec.structs.replace(one, cases=[], launches=[], notes=[], info=None, failure=None, measure_s=0.0)
        for one in before.workloads
    ]
    run = msgspec.structs.replace(
        before, id=f"{before.id}-profile", state="running", settings=settings, workloads=workloads, notes=[]
    )
    return Plan(run=run, variants=asked_variants(settings), folder=folder, own=False, of=before.id)


def _of_model(given: dict[str, Any]) -> Plan:
    root = Path.cwd()
    specs = asked_models(list(given["models"]) or [DEFAULT_MODEL], None, root)
    if len(specs) > 1:
        raise UsageError(f"harness profile takes one model, and there are {len(specs)}")
    spec, recipe = specs[0], one_recipe(given, specs[0])
    devices = parse_devices(given["devices"], environment.visible_gpus())
    if len(devices) > 1:
        raise UsageError(f"harness profile takes one device, and there are {len(devices)}")
    limit = given["memory_limit"]
    settings = Settings(
        models=list(given["models"]) or [DEFAULT_MODEL],
        root=str(root),
        asked=list(given["backends"]),
        cases=[],
        devices=tuple(devices),
        device_chosen=given["devices"] != AUTO,
        precisions=parse_precisions(given["precisions"]),
        calibration=calibration_source(given["calibration"], specs),
        calibration_samples=given["calibration_samples"],
        calibration_method=given["calibration_method"],
        dims={key: [size] for key, size in recipe.dims.items()},
        shapes=recipe.shapes,
        weights=recipe.weights,
        inputs=recipe.inputs,
        input_sets=given["input_sets"],
        seed=given["seed"],
        threads=given["threads"] or environment.default_threads(),
        opset=given["opset"],
        launches=1,
        rounds=1,
        slice_s=0.0,
        budget_s=0.0,
        timeout_s=given["timeout"],
        memory_limit_bytes=int(limit * 2**30) if limit else environment.default_memory_limit(),
        quick=True,
    )
    variants = asked_variants(settings)
    settings = msgspec.structs.replace(settings, cases=[variant.id for variant in variants])
    workloads = plan_workloads(specs, variants, settings)
    machine = environment.describe([])
    folder = RunFolder.create(given["out"], f"profile-{spec.label}")
    run = Run(
        id=folder.path.name,
        created=now_utc(),
        harness=__version__,
        state="running",
        command="",
        settings=settings,
        environment=machine,
        workloads=workloads,
    )
    return Plan(run=run, variants=variants, folder=folder, own=True)


def _exit_code(record: ProfileRecord, variants: list[Variant]) -> int:
    named = {variant.id for variant in variants if variant.asked_by_name}
    cases = [case for workload in record.workloads for case in workload.cases]
    lacking = [case for case in cases if case.profile is None]
    # With `all`, what is not installed or has no profiler is a row; what breaks is not.
    expected = ("unavailable", "unsupported", "compiled")
    return NO_RESULT if any(case.id in named or case.status not in expected for case in lacking) else OK
