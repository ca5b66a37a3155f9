"""What `harness export` does, behind `harness/cli.py`: a model's artifact, and a copy of it where one is wanted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from harness import environment
from harness.artifact import MANIFEST, Artifact
from harness.commands import DEFAULT_MODEL, one_recipe
from harness.errors import StoreError, UsageError
from harness.export import ensure_artifact
from harness.launcher import Launcher
from harness.paths import cache_root, make_folder
from harness.progress import Narrator
from harness.workloads import asked_models


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
