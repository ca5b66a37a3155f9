"""What the commands do, behind `harness/cli.py`. Imported when a command runs, so that `--help` stays fast."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import __version__, ceilings, clocks, doctor, environment, formats, memory, pinning, registry
from harness.cli import GATE_FAILED, INTERRUPTED, NO_RESULT, OK
from harness.compare import Comparison
from harness.contradictions import refuse_conflicts, settled
from harness.devices import AUTO, parse_devices, parse_targets
from harness.engines import in_use
from harness.environments import preparing
from harness.errors import StoreError, UsageError
from harness.export import Recipe
from harness.formats import Wanted
from harness.history.keeping import keep
from harness.history.location import locate
from harness.modelspec import BATCH, ModelSpec
from harness.paths import users_path
from harness.plan import asked_variants
from harness.precisions import parse_precisions
from harness.progress import Narrator
from harness.records import Environment, Run, Settings
from harness.sources import calibration_source, dataset_source
from harness.store import RunFolder, find_run, load_run, now_utc
from harness.summarize import summarize
from harness.workloads import asked_models, parse_dims, parse_shapes, plan_workloads, refuse_unknown, sweep

ROUNDS = 10
SLICE_S = 0.1
QUICK = {"launches": 1, "rounds": 5, "slice_s": 0.1}
DEFAULT_MODEL = "resnet50"
NAMED_WEIGHTS = ("seeded", "pretrained")


def run_compare(given: dict[str, Any], explicit: set[str]) -> int:
    """Carry out `harness compare` and return the exit code."""
    return compared(given, explicit)[0]


def compared(given: dict[str, Any], explicit: set[str]) -> tuple[int, RunFolder]:
    """Compare, print the table and keep the run; return the exit code and where the run is."""
    refuse_conflicts(given, explicit)
    wanted = [Wanted("json", None)] if given["as_json"] else given["format_"]
    formats.check(wanted)
    location = locate(given["store"])
    folder, run = _resumed(given, explicit) if given["resume"] else _started(settled(given, explicit))
    variants = asked_variants(run.settings)
    interrupted, broken = False, None
    with Narrator(quiet=given["quiet"]) as narrator:
        comparison = Comparison(run, variants, folder, narrator)
        narrator.done(f"run {folder.path}")
        try:
            with clocks.locked(run.settings.lock_clocks, list(run.settings.devices), narrator.done):
                comparison.execute()
        except KeyboardInterrupt:
            interrupted = True
        except StoreError as exc:
            broken = exc
        except UsageError:
            if not given["resume"] and not any(workload.cases for workload in comparison.run.workloads):
                shutil.rmtree(folder.path, ignore_errors=True)  # nothing was done: nothing is left behind
            raise
    run = comparison.run
    try:
        if broken is None or any(workload.cases for workload in run.workloads):
            formats.emit(summarize(run), wanted)
    finally:  # also where the reader of the table leaves early
        keep(run, folder, location)
    if given["verbose"]:
        _print_tracebacks(run)
    if broken is not None:
        raise broken
    if interrupted:
        click.echo(f"interrupted; go on with: harness compare --resume {folder.path}", err=True)
        return INTERRUPTED, folder
    return exit_code(run), folder


def _started(given: dict[str, Any]) -> tuple[RunFolder, Run]:
    run, label = planned(given)
    return begun(run, given["out"], label)


def planned(given: dict[str, Any]) -> tuple[Run, str]:
    """Return the comparison that was asked for, without a folder or an id yet, and what its folder is called after.

    Raises:
        UsageError: What was asked for cannot be.
    """
    root = Path.cwd()
    models = list(given["models"]) or ([] if given["suite"] else [DEFAULT_MODEL])
    specs = asked_models(models, given["suite"], root)
    subject = _subject(given, specs)
    pinned = pinning.choose(given["cpus"])
    machine = environment.describe(doctor.advice(doctor.examine(spin=not given["quick"], cpus=pinned.cpus)))
    devices = parse_devices(given["devices"], environment.visible_gpus())
    if given["parallel"] and len(devices) < 2:
        raise UsageError("--parallel needs several devices", hint="--device cuda:0,cuda:1 --parallel")
    limit = given["memory_limit"]
    dataset = dataset_source(given["dataset"], specs) if given["dataset"] else None
    settings = Settings(
        models=models,
        suite=given["suite"],
        root=str(root),
        asked=list(given["backends"]),
        cases=[],
        devices=tuple(devices),
        precisions=parse_precisions(given["precisions"]),
        calibration=calibration_source(given["calibration"], specs, dataset),
        calibration_samples=given["calibration_samples"],
        calibration_method=given["calibration_method"],
        dataset=dataset,
        max_samples=given["max_samples"],
        device_chosen=given["devices"] != AUTO,
        targets=parse_targets(given["target"], given["card"]),
        builds=given["builds"],
        parallel=given["parallel"],
        baseline=given["baseline"],
        dynamic=given["dynamic"],
        input_sets=given["input_sets"],
        seed=given["seed"],
        threads=given["threads"] or environment.default_threads(pinned.cores),
        pythons=preparing.parse_pythons(given["pythons"]),
        cpus=given["cpus"],
        cpu_set=sorted(pinned.cpus),
        opset=given["opset"],
        budget_s=given["budget"],
        timeout_s=given["timeout"],
        memory_limit_bytes=int(limit * 2**30) if limit else environment.default_memory_limit(),
        quick=given["quick"],
        cold=given["cold"],
        lock_clocks=given["lock_clocks"],
        **subject,
        **_amounts(given),
    )
    variants = asked_variants(settings)
    pinned.refuse_more({variant.id: variant.parsed().threads or settings.threads for variant in variants})
    preparing.check(variants, settings)
    settings = msgspec.structs.replace(settings, cases=[variant.id for variant in variants])
    workloads = plan_workloads(specs, variants, settings)
    run = Run(
        id="",
        created=now_utc(),
        harness=__version__,
        state="running",
        command=shlex.join(["harness", *sys.argv[1:]]),
        settings=settings,
        environment=machine,
        ceilings=ceilings.of_machine(machine, settings.devices, ceilings.stored()),
        workloads=workloads,
        labels=list(dict.fromkeys(given["labels"])),
        project=environment.project(root),
        notes=[pinned.note] if pinned.note else [],
    )
    return run, given["suite"] or specs[0].label


def begun(run: Run, out: Path, label: str) -> tuple[RunFolder, Run]:
    """Make the folder of a run, and save the run there for the first time.

    Raises:
        StoreError: It cannot be written; nothing is left behind.
    """
    folder = RunFolder.create(out, label)
    run = msgspec.structs.replace(run, id=folder.path.name)
    try:
        folder.save(run)
    except StoreError:
        folder.path.rmdir()  # nothing is in it yet
        raise
    return folder, run


def _amounts(given: dict[str, Any]) -> dict[str, Any]:
    """Return how much is measured. Every build is measured in equally many launches."""
    amounts = QUICK if given["quick"] else {"launches": given["launches"], "rounds": ROUNDS, "slice_s": SLICE_S}
    rounds_of_builds = math.ceil(amounts["launches"] / given["builds"])
    return {**amounts, "launches": rounds_of_builds * given["builds"]}


def _subject(given: dict[str, Any], specs: list[ModelSpec]) -> dict[str, Any]:
    """Return what the options say of shapes, weights and inputs, checked as far as that is possible here.

    Raises:
        UsageError: A file that is not there, or one that cannot be meant for several models.
    """
    batch = given["batch"]
    dims = parse_dims(given["dims"])
    if batch is not None:
        if BATCH in dims:
            raise UsageError("--batch and --dim batch contradict each other; give one")
        dims = {BATCH: batch if isinstance(batch, list) else [batch]} | dims
    weights, inputs = given["weights"], given["inputs"]
    names = [spec.label for spec in specs]
    for option, path in (("--weights", weights), ("--inputs", inputs)):
        if path is None or (option == "--weights" and path in NAMED_WEIGHTS):
            continue
        if not users_path(path).exists():
            known = f"{', '.join(NAMED_WEIGHTS)} or a file" if option == "--weights" else "an .npz file or a folder"
            raise UsageError(f"{option} {path}: there is no such file", hint=f"{option} takes {known}")
        if len(specs) > 1:
            raise UsageError(f"{option} {path} can be for one model only, and there are {len(specs)}: {_few(names)}")
    if weights == "pretrained":
        for spec in specs:
            if spec.kind == "reference" and not memory.reference(spec).trained:
                raise UsageError(f"{spec.label} has no public weights", hint="--weights seeded, or the path of a file")
    return {
        "dims": dims,
        "shapes": parse_shapes(given["shapes"]),
        "weights": weights if weights in (None, *NAMED_WEIGHTS) else str(users_path(weights)),
        "inputs": str(users_path(inputs)) if inputs else None,
    }


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _resumed(given: dict[str, Any], explicit: set[str]) -> tuple[RunFolder, Run]:
    folder = find_run(given["resume"], given["out"])
    run = load_run(folder)
    if in_use(run.id):
        raise UsageError(f"run {run.id} is being measured by another process", hint="wait until it has ended")
    if run.state == "finished" and not {"launches", "budget"} & explicit:
        raise UsageError(
            f"run {run.id} is finished; nothing to resume",
            hint=f"harness show {run.id}, or add --launches N --budget SECONDS to measure more",
        )
    pinning.choose(",".join(map(str, run.settings.cpu_set)) or None)  # they may have gone
    now = environment.describe(run.environment.advice)
    if machine_of(now) != machine_of(run.environment):
        raise UsageError(
            f"run {run.id} was made with other hardware or library versions; its parts would not be comparable",
            hint="start anew with harness compare",
        )
    changes: dict[str, Any] = {}
    for name, key in (("launches", "launches"), ("budget", "budget_s"), ("timeout", "timeout_s")):
        if name in explicit:
            changes[key] = given[name]
    if "memory_limit" in explicit:
        changes["memory_limit_bytes"] = int(given["memory_limit"] * 2**30)
    labels = list(dict.fromkeys([*run.labels, *given["labels"]]))
    settings = msgspec.structs.replace(run.settings, **changes)
    return folder, msgspec.structs.replace(run, settings=settings, labels=labels)


def machine_of(of: Environment) -> tuple[object, ...]:
    """Return what must stay the same for two parts of a run to be comparable."""
    cards = [(gpu.get("name"), gpu.get("driver_version")) for gpu in of.gpus]
    return of.cpu, of.libraries, cards


def run_show(name: str, out: Path, wanted: list[Wanted], *, verbose: bool) -> None:
    """Carry out `harness show`."""
    formats.check(wanted)
    run = ceilings.with_ceilings(load_run(find_run(name, out)))
    formats.emit(summarize(run), wanted)
    if verbose:
        _print_tracebacks(run)


def _print_tracebacks(run: Run) -> None:
    for workload in run.workloads:
        for name, failure in [(workload.key, workload.failure), *((case.id, case.failure) for case in workload.cases)]:
            if failure is not None and failure.traceback:
                click.echo(f"\n{workload.key}, {name}:\n{failure.traceback}", err=True)


def one_recipe(given: dict[str, Any], spec: ModelSpec) -> Recipe:
    """Return what is exported for a command that takes one model at one shape.

    Raises:
        UsageError: A dimension has several sizes, or something does not fit the model.
    """
    subject = _subject(given, [spec])
    own = spec.kind != "reference"
    refuse_unknown([spec], subject["dims"], subject["shapes"])
    sizes = sweep(spec, subject["dims"], subject["shapes"])
    for name, values in sizes.items():
        if len(values) > 1:
            raise UsageError(f"one size of '{name}' is wanted here, and there are {len(values)}")
    return Recipe(
        model=spec,
        dims={name: values[0] for name, values in sizes.items()},
        shapes=subject["shapes"] if own else {},
        weights=subject["weights"] or registry.default_weights(spec),
        inputs=subject["inputs"],
        input_sets=given["input_sets"],
        seed=given["seed"],
        opset=given["opset"],
    )


def exit_code(run: Run) -> int:
    """Return what a comparison's outcome means for the shell.

    | status                                  | asked for by name | brought in by `all` |
    |-----------------------------------------|-------------------|---------------------|
    | ok, compiled                            | 0                 | 0                   |
    | unavailable, unsupported                | 3                 | 0                   |
    | drifted                                 | 1                 | 1                   |
    | everything else                         | 3                 | 3                   |
    """
    named = {variant.id for variant in asked_variants(run.settings) if variant.asked_by_name}
    codes = {OK}
    for case in (case for workload in run.workloads for case in workload.cases):
        if case.status == "drifted":
            codes.add(GATE_FAILED)
        elif case.status in ("unavailable", "unsupported"):
            codes.add(NO_RESULT if case.id in named else OK)
        elif case.status not in ("ok", "compiled"):
            codes.add(NO_RESULT)
    return max(codes)
