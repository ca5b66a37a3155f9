"""What the commands do, behind `harness/cli.py`. Imported when a command runs, so that `--help` stays fast."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
from tabulate import tabulate

from harness import __version__, doctor, environment, protocol, registry
from harness.api import BackendOptions
from harness.artifact import MANIFEST, Artifact
from harness.cli import INTERRUPTED, exit_code
from harness.compare import Comparison
from harness.engines import any_in_use, delete_unless_in_use, engines_root, in_use
from harness.errors import HarnessError, StoreError, UsageError, WorkerCrashed
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.paths import cache_root, folder_bytes, make_folder
from harness.plan import find_baseline, parse_variants
from harness.progress import Narrator
from harness.records import Run, Settings
from harness.store import RunFolder, find_run, load_run, now_utc
from harness.summarize import summarize

ROUNDS = 10
SLICE_S = 0.1
QUICK = {"launches": 1, "rounds": 5, "slice_s": 0.1}
PROBE_TIMEOUT_S = 120.0
RESUMABLE = {"resume", "out", "budget", "launches", "timeout", "memory_limit", "format_", "as_json", "verbose", "quiet"}
"""What may be given beside `--resume`; everything else is part of what was asked for the first time."""


def run_compare(given: dict[str, Any], explicit: set[str]) -> int:
    """Carry out `harness compare` and return the exit code."""
    _refuse_conflicts(given, explicit)
    folder, run = _resumed(given, explicit) if given["resume"] else _started(given)
    variants = parse_variants(run.settings.asked)
    interrupted, broken = False, None
    with Narrator(quiet=given["quiet"]) as narrator:
        comparison = Comparison(run, variants, folder, narrator)
        narrator.done(f"run {folder.path}")
        try:
            comparison.execute()
        except KeyboardInterrupt:
            interrupted = True
        except StoreError as exc:
            broken = exc
    run = comparison.run
    if broken is None or run.cases:
        _print(run, "json" if given["as_json"] else given["format_"])
    if given["verbose"]:
        _print_tracebacks(run)
    if broken is not None:
        raise broken
    if interrupted:
        click.echo(f"interrupted; go on with: harness compare --resume {folder.path}", err=True)
        return INTERRUPTED
    if run.failure is not None:
        return 3
    return exit_code(run)


def _refuse_conflicts(given: dict[str, Any], explicit: set[str]) -> None:
    for one, other in (("quick", "launches"), ("as_json", "format_"), ("verbose", "quiet")):
        if {one, other} <= explicit:
            names = {"as_json": "--json", "format_": "--format"}
            raise UsageError(
                f"{names.get(one, '--' + one)} and {names.get(other, '--' + other)} contradict each other; give one"
            )
    if given["resume"] and (extra := sorted(explicit - RESUMABLE)):
        flags = ", ".join("--" + name.replace("_", "-") for name in extra)
        raise UsageError(f"--resume takes everything from the run; leave out {flags}")


def _started(given: dict[str, Any]) -> tuple[RunFolder, Run]:
    registry.model(given["model"])
    variants = parse_variants(list(given["backends"]))
    limit = given["memory_limit"]
    amounts = QUICK if given["quick"] else {"launches": given["launches"], "rounds": ROUNDS, "slice_s": SLICE_S}
    settings = Settings(
        model=given["model"],
        asked=list(given["backends"]),
        cases=[variant.id for variant in variants],
        baseline=find_baseline(variants, given["baseline"]),
        batch=given["batch"],
        seed=given["seed"],
        threads=given["threads"] or environment.default_threads(),
        opset=given["opset"],
        budget_s=given["budget"],
        timeout_s=given["timeout"],
        memory_limit_bytes=int(limit * 2**30) if limit else environment.default_memory_limit(),
        quick=given["quick"],
        reuse_engines=given["reuse_engines"],
        **amounts,
    )
    folder = RunFolder.create(given["out"], given["model"])
    run = Run(
        id=folder.path.name,
        created=now_utc(),
        harness=__version__,
        state="running",
        command=shlex.join(["harness", *sys.argv[1:]]),
        settings=settings,
        environment=environment.describe(doctor.advice(doctor.examine())),
    )
    try:
        folder.save(run)
    except StoreError:
        folder.path.rmdir()  # nothing is in it yet
        raise
    return folder, run


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
    now = environment.describe(run.environment.advice)
    if (now.cpu, now.libraries) != (run.environment.cpu, run.environment.libraries):
        raise UsageError(
            f"run {run.id} was made with other hardware or library versions; its parts would not be comparable",
            hint="start anew with harness compare",
        )
    changes: dict[str, Any] = {}
    for name, key in (("launches", "launches"), ("budget", "budget_s"), ("timeout", "timeout_s")):
        if name in explicit:
            changes[key] = given[name]
    if given["memory_limit"]:
        changes["memory_limit_bytes"] = int(given["memory_limit"] * 2**30)
    return folder, msgspec.structs.replace(run, settings=msgspec.structs.replace(run.settings, **changes))


def run_show(name: str, out: Path, format_: str, *, verbose: bool) -> None:
    """Carry out `harness show`."""
    run = load_run(find_run(name, out))
    _print(run, format_)
    if verbose:
        _print_tracebacks(run)


def _print(run: Run, format_: str) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else None
    click.echo(registry.report(format_).render(summarize(run), color=color, width=width), nl=False, color=color)


def _print_tracebacks(run: Run) -> None:
    for case in run.cases:
        if case.failure is not None and case.failure.traceback:
            click.echo(f"\n{case.id}:\n{case.failure.traceback}", err=True)


def run_backends(name: str | None, *, as_json: bool) -> None:
    """Carry out `harness backends`: probe each backend in a process of its own."""
    names = [name] if name else registry.backend_names()
    with tempfile.TemporaryDirectory(prefix="harness-probe-") as logs:
        launcher = Launcher(
            logs=Path(logs), threads=1, memory_limit_bytes=environment.memory_bytes(), timeout_s=PROBE_TIMEOUT_S
        )
        with launcher:
            for each in names:
                registry.backend(each)
            rows = [(each, _probe(each, launcher)) for each in names]
    if as_json:
        click.echo(json.dumps({each: _backend_facts(each, probed) for each, probed in rows}, indent=2))
        return
    table = [
        (
            each,
            "yes" if probed.available else "no",
            ", ".join(f"{library} {version}" for library, version in probed.versions.items()) or "-",
            ", ".join(probed.devices) or "-",
            ", ".join(registry.backend(each).capabilities.compile_targets) or "-",
            registry.backend(each).summary,
        )
        for each, probed in rows
    ]
    click.echo(tabulate(table, headers=["backend", "usable", "versions", "devices", "builds for", "what"]))
    for each, probed in rows:
        if not probed.available:
            click.echo(f"\n{each}: {probed.reason}")
            if probed.hint:
                click.echo(f"  hint: {probed.hint}")
    if name:
        click.echo(f"\nOptions, as in --backends {name}:key=value,key=value\n")
        click.echo(tabulate(option_rows(registry.backend(name).Options), headers=["option", "type", "default", "what"]))


def _probe(name: str, launcher: Launcher) -> protocol.Probed:
    try:
        with launcher.start(name) as worker:
            probed = worker.call(protocol.Probe(backend=name), protocol.Probed, timeout_s=PROBE_TIMEOUT_S)
        return msgspec.structs.replace(probed, hint=probed.hint or registry.install_hint(name))
    except WorkerCrashed as exc:
        return protocol.Probed(
            available=False,
            reason=f"its probe crashed: {exc.message}\n{worker.log_tail()}".strip(),
            hint=registry.install_hint(name),
        )
    except HarnessError as exc:
        return protocol.Probed(available=False, reason=exc.message, hint=exc.hint or registry.install_hint(name))


def _backend_facts(name: str, probed: protocol.Probed) -> dict[str, Any]:
    kind = registry.backend(name)
    return {
        "summary": kind.summary,
        "install": registry.install_hint(name),
        "capabilities": msgspec.to_builtins(kind.capabilities),
        "options": [
            dict(zip(("name", "type", "default", "what"), row, strict=True)) for row in option_rows(kind.Options)
        ],
        **msgspec.to_builtins(probed),
    }


def option_rows(options: type[BackendOptions]) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and description of each option."""
    described = msgspec.json.schema(options)["$defs"][options.__name__]["properties"]
    defaults = msgspec.to_builtins(options())
    return [
        (
            name,
            _type_text(facts),
            json.dumps(defaults[name]) if defaults[name] is not None else "-",
            _description(facts),
        )
        for name, facts in described.items()
    ]


def _type_text(facts: dict[str, Any]) -> str:
    kinds = facts.get("anyOf", [facts])
    words = ["|".join(map(str, kind["enum"])) if "enum" in kind else str(kind["type"]) for kind in kinds]
    return " or ".join(word for word in words if word not in ("null", "None"))


def _description(facts: dict[str, Any]) -> str:
    return str(
        facts.get("description") or next((k["description"] for k in facts.get("anyOf", []) if "description" in k), "")
    )


def run_models(*, as_json: bool) -> None:
    """Carry out `harness models`."""
    rows: list[dict[str, Any]] = []
    for name in registry.model_names():
        model = registry.model(name)
        inputs = ", ".join(
            f"{key} {array.dtype}{list(array.shape)}" for key, array in model.example_inputs(batch=1, seed=0).items()
        )
        rows.append(
            {
                "model": name,
                "parameters": model.parameters,
                "gflop": model.gflop,
                "inputs": inputs,
                "task": model.task,
                "tags": list(model.tags),
                "weights": model.weights_url,
                "what": model.summary,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [
        (
            row["model"],
            f"{row['parameters'] / 1e6:.2f}",
            row["gflop"],
            row["inputs"],
            " ".join(row["tags"]),
            row["what"],
        )
        for row in rows
    ]
    click.echo(tabulate(table, headers=["model", "M parameters", "GFLOP", "inputs (batch 1)", "tags", "what"]))


def run_export(given: dict[str, Any]) -> None:
    """Carry out `harness export`."""
    registry.model(given["model"])
    recipe = Recipe(model=given["model"], batch=given["batch"], seed=given["seed"], opset=given["opset"])
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
        narrator.doing(f"exporting {given['model']}")
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
                ("export", "from the cache" if cached else f"{manifest.export_s:.1f} s"),
                ("largest difference to eager", checked),
                ("reference deterministic", "yes" if manifest.deterministic else "no"),
                ("float64 golden values", "yes" if manifest.golden else "no"),
            ],
            tablefmt="plain",
        )
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


def run_doctor(*, as_json: bool) -> None:
    """Carry out `harness doctor`."""
    findings = doctor.examine()
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings], indent=2))
        return
    marks = {"good": "ok", "warn": "!!"}
    click.echo(
        tabulate(
            [(marks[f.level], f.what, f.figure, f.advice) for f in findings],
            headers=["", "what", "found", "advice"],
            maxcolwidths=[None, None, 56, 56],
        )
    )
    bad = sum(finding.level == "warn" for finding in findings)
    click.echo(f"\n{bad} thing(s) here make numbers noisier than they need be." if bad else "\nNothing here disturbs.")


def run_cache(action: str, parts: list[str]) -> None:
    """Carry out `harness cache`."""
    root = cache_root()
    if action == "clear":
        if set(parts) != {"engines"} and any_in_use():
            raise UsageError(
                "a comparison is running and needs what is in the cache", hint="wait for it, or clear --engines only"
            )
        kept = 0
        for part in parts:
            if part == "engines":
                kept = _clear_engines()
            else:
                shutil.rmtree(root / part, ignore_errors=True)
                if (root / part).exists():
                    raise StoreError(f"{root / part} cannot be deleted", hint="it may be in use, or not yours")
        shutil.rmtree(root / "logs", ignore_errors=True)
        click.echo(f"cleared {', '.join(parts)} in {root}" + (f"; kept {kept} engine(s) in use" if kept else ""))
        return
    click.echo(
        tabulate([(part, f"{folder_bytes(root / part) / 2**20:.1f}") for part in parts], headers=[str(root), "MiB"])
    )


def _clear_engines() -> int:
    folders = [path for path in engines_root().glob("*/*") if path.is_dir()]
    kept = sum(not delete_unless_in_use(path) for path in folders)
    for key in engines_root().glob("*"):
        if key.is_dir() and not any(key.iterdir()):
            key.rmdir()
    return kept
