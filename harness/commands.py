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
from tabulate import tabulate

from harness import __version__, ceilings, clocks, doctor, environment, formats, memory, nvml, pinning, registry
from harness.artifact import MANIFEST, Artifact
from harness.cli import GATE_FAILED, INTERRUPTED, NO_RESULT, OK
from harness.compare import Comparison
from harness.devices import AUTO, parse_devices, parse_targets
from harness.engines import in_use
from harness.errors import StoreError, UsageError
from harness.evaluation import refuse_models
from harness.export import Recipe, ensure_artifact
from harness.formats import Wanted
from harness.history.keeping import keep
from harness.history.location import locate
from harness.launcher import Launcher
from harness.modelspec import BATCH, ModelSpec
from harness.paths import cache_root, make_folder, users_path
from harness.plan import asked_variants
from harness.precisions import parse_precisions
from harness.progress import Narrator
from harness.records import Environment, Run, Settings
from harness.store import RunFolder, find_run, load_run, now_utc
from harness.summarize import summarize
from harness.workloads import asked_models, parse_dims, parse_shapes, plan_workloads, refuse_unknown, sweep

ROUNDS = 10
SLICE_S = 0.1
QUICK = {"launches": 1, "rounds": 5, "slice_s": 0.1}
DEFAULT_MODEL = "resnet50"
NAMED_WEIGHTS = ("seeded", "pretrained")
RESUMABLE = {
    "resume", "out", "budget", "launches", "timeout", "memory_limit", "format_", "as_json", "verbose", "quiet",
    "labels", "store",
}  # fmt: skip
"""What may be given beside `--resume`; everything else is part of what was asked for the first time."""


def run_compare(given: dict[str, Any], explicit: set[str]) -> int:
    """Carry out `harness compare` and return the exit code."""
    return compared(given, explicit)[0]


def compared(given: dict[str, Any], explicit: set[str]) -> tuple[int, RunFolder]:
    """Compare, print the table and keep the run; return the exit code and where the run is."""
    refuse_conflicts(given, explicit)
    wanted = [Wanted("json", None)] if given["as_json"] else given["format_"]
    formats.check(wanted)
    location = locate(given["store"])
    folder, run = _resumed(given, explicit) if given["resume"] else _started(_settled(given, explicit))
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


def refuse_conflicts(given: dict[str, Any], explicit: set[str]) -> None:
    """Refuse options that were given beside others which they contradict.

    Raises:
        UsageError: It names two of them.
    """
    conflicts = [("quick", "launches"), ("as_json", "format_"), ("verbose", "quiet")]
    conflicts += [(one, other) for one in ("target", "card") for other in ("devices", "parallel", "baseline")]
    for one, other in conflicts:
        if {one, other} <= explicit:
            names = {"as_json": "--json", "format_": "--format", "devices": "--device", "card": "--for"}
            raise UsageError(
                f"{names.get(one, '--' + one)} and {names.get(other, '--' + other)} contradict each other; give one"
            )
    if given["resume"] and (extra := sorted(explicit - RESUMABLE)):
        singular = {
            "models": "model",
            "dims": "dim",
            "shapes": "shape",
            "devices": "device",
            "card": "for",
            "precisions": "precision",
        }
        flags = ", ".join("--" + singular.get(name, name).replace("_", "-") for name in extra)
        raise UsageError(f"--resume takes everything from the run; leave out {flags}")


def _settled(given: dict[str, Any], explicit: set[str]) -> dict[str, Any]:
    """Return what was given, without what the command line overrides in a file of defaults."""
    changes: dict[str, Any] = {}
    if "suite" in explicit and "models" not in explicit:
        changes["models"] = ()
    if "models" in explicit and "suite" not in explicit:
        changes["suite"] = None
    if "devices" in explicit:
        changes["target"] = changes["card"] = None
    if "launches" in explicit and "quick" not in explicit:
        changes["quick"] = False
    return {**given, **changes}


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
    devices = parse_devices(given["devices"], [card.facts()["name"] for card in nvml.visible_devices()])
    if given["parallel"] and len(devices) < 2:
        raise UsageError("--parallel needs several devices", hint="--device cuda:0,cuda:1 --parallel")
    limit = given["memory_limit"]
    settings = Settings(
        models=models,
        suite=given["suite"],
        root=str(root),
        asked=list(given["backends"]),
        cases=[],
        devices=tuple(devices),
        precisions=parse_precisions(given["precisions"]),
        calibration=calibration_path(given["calibration"]),
        calibration_samples=given["calibration_samples"],
        calibration_method=given["calibration_method"],
        dataset=_dataset(given["dataset"], specs),
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


def calibration_path(path: str | None) -> str | None:
    """Return the absolute path of the user's calibration inputs.

    Raises:
        UsageError: They are not there.
    """
    if path is None:
        return None
    if not users_path(path).exists():
        raise UsageError(f"--calibration {path}: there is no such file", hint="it takes an .npz file or a folder")
    return str(users_path(path))


def _dataset(text: str | None, specs: list[ModelSpec]) -> str | None:
    if text is None:
        return None
    kind, colon, paths = text.partition(":")
    absolute = ",".join(str(users_path(path)) for path in paths.split(",")) if paths else ""
    refuse_models(f"{kind}{colon}{absolute}", specs)
    return f"{kind}{colon}{absolute}"


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


def run_export(given: dict[str, Any]) -> None:
    """Carry out `harness export`."""
    specs = asked_models(list(given["models"]) or [DEFAULT_MODEL], None, Path.cwd())
    if len(specs) > 1:
        raise UsageError(f"harness export takes one model, and there are {len(specs)}")
    spec = specs[0]
    recipe = one_recipe(given, spec)
    target: Path | None = given["to"]
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder", hint="choose another --to")
    if target is not None:
        make_folder(target, "the folder", hint="choose another --to")
    launcher = Launcher(
        logs=cache_root() / "logs",
        threads=given["threads"] or environment.default_threads(),
        memory_limit_bytes=environment.default_memory_limit(),
        timeout_s=3600.0,
    )
    with Narrator(quiet=given["quiet"]) as narrator, launcher:
        narrator.doing(f"exporting {spec.label}")
        artifact, cached = ensure_artifact(
            recipe, launcher, on_progress=narrator.detail, say=narrator.done, refresh=given["refresh"]
        )
    if target is not None:
        _copy(artifact, target)
    manifest = artifact.manifest
    checked = (
        "unchecked: ONNX Runtime is not installed" if manifest.onnx_max_abs is None else f"{manifest.onnx_max_abs:.3g}"
    )
    click.echo(
        tabulate(
            [
                ("folder", target or artifact.folder),
                ("hash", artifact.hash),
                ("parameters", f"{manifest.parameters:,}"),
                ("opset", manifest.opset),
                ("weights", manifest.weights),
                ("inputs", ", ".join(f"{one.name} {one.dtype}{list(one.shape)}" for one in manifest.inputs[:4])),
                ("export", "from the cache" if cached else f"{manifest.export_s:.1f} s"),
                (f"largest difference to {manifest.reference}", checked),
                ("reference deterministic", "yes" if manifest.deterministic else "no"),
                ("float64 golden values", "yes" if manifest.golden else "no"),
            ],
            tablefmt="plain",
        )
    )


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


def _copy(artifact: Artifact, target: Path) -> None:
    try:
        shutil.copytree(artifact.folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        shutil.copy2(artifact.folder / MANIFEST, target)  # last, as in the cache: what lacks it is not finished
    except OSError as exc:
        for path in target.iterdir():
            path.unlink()
        raise StoreError(f"the artifact cannot be copied to {target}: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    # `shutil.Error` holds a list of (source, destination, reason): the first says enough.
    first = exc.args[0] if exc.args else exc
    return str(first[0][2]) if isinstance(first, list) and first else exc.strerror or str(exc)


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
