"""What `harness localize` and `harness sensitivity` do, behind `harness/cli_drift.py`."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import devices, environment
from harness.artifact import Artifact
from harness.cli import GATE_FAILED, INTERRUPTED, NO_RESULT, OK
from harness.commands import DEFAULT_MODEL, one_recipe
from harness.conversion import Calibration, ensure_converted
from harness.devices import AUTO, parse_devices
from harness.environments.preparing import check_variant, ensure_variant
from harness.errors import UsageError
from harness.export import ensure_artifact
from harness.launcher import Launcher
from harness.localization import Localization, Outcome, text
from harness.localizing import Localizing
from harness.paths import make_folder
from harness.plan import Variant, parse_variants
from harness.precisions import CONVERTED, PRECISIONS, parse_precisions
from harness.probing import Asked, Bench, GraphLab
from harness.progress import Narrator
from harness.sources import calibration_source
from harness.store import RunFolder
from harness.trials import Advising
from harness.trials import text as advice_text
from harness.workloads import asked_models

CODES: dict[Outcome, int] = {
    "clean": OK,
    "export": OK,
    "located": GATE_FAILED,
    "narrowed": GATE_FAILED,
    "no_result": NO_RESULT,
}

KEEPABLE = ("fp16", "int8", "fp8")
"""Precisions whose conversion can leave nodes out."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A model, a backend and a precision, exported and converted."""

    asked: Asked
    bench: Bench
    launcher: Launcher
    source: Artifact
    graph: Artifact
    folder: RunFolder
    scratch: Path
    narrator: Narrator
    label: str
    weights: str


def run_localize(given: dict[str, Any]) -> int:
    """Carry out `harness localize` and return the exit code."""
    to: Path | None = given["to"]
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} exists and is not an empty folder", hint="choose another --to")
    with _scene(given, "localize") as scene:
        where = (to or scene.folder.path / "alone").absolute()
        blank = Localization(
            model=scene.label,
            backend=scene.asked.variant.id,
            precision=scene.asked.precision,
            device=scene.asked.device,
            outcome="clean",
        )
        with GraphLab(scene.asked, scene.bench, scene.source, scene.graph, scene.launcher, scene.scratch, where) as lab:
            found = Localizing(lab, blank, scene.narrator.step).run()
        if found.interrupted:
            shutil.rmtree(where, ignore_errors=True)  # half a model would be in the way of the same command
        found = msgspec.structs.replace(found, version=scene.bench.version)
        (scene.folder.path / "localization.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    if given["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        click.echo(text(found), nl=False)
    return INTERRUPTED if found.interrupted else CODES[found.outcome]


def run_sensitivity(given: dict[str, Any]) -> int:
    """Carry out `harness sensitivity` and return the exit code."""
    with _scene(given, "sensitivity") as scene:
        advising = Advising(
            scene.asked,
            scene.bench,
            scene.source,
            scene.graph,
            scene.launcher,
            weights=scene.weights,
            seed=given["seed"],
            say=scene.narrator.step,
        )
        advice = advising.run(scene.label, budget_s=given["budget"], top=given["top"], scratch=scene.scratch)
        (scene.folder.path / "sensitivity.json").write_bytes(msgspec.json.format(msgspec.json.encode(advice)))
    if given["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(advice)).decode())
    else:
        click.echo(advice_text(advice), nl=False)
    return INTERRUPTED if advice.interrupted else OK


@contextmanager
def _scene(given: dict[str, Any], what: str) -> Iterator[Scene]:
    """Settle what was asked for, refuse what cannot be, then export and convert.

    Raises:
        HarnessError: What was asked for cannot be, or the model cannot be exported or converted.
    """
    variant, precision = _variant(given)
    if what == "sensitivity" and precision not in KEEPABLE:
        raise UsageError(
            f"--precision {precision} is no graph in which some nodes could stay in float32",
            hint=f"--precision {', '.join(KEEPABLE)}",
        )
    specs = asked_models(list(given["models"]) or [DEFAULT_MODEL], None, Path.cwd())
    if len(specs) > 1:
        raise UsageError(f"harness {what} takes one model, and there are {len(specs)}")
    recipe = one_recipe(given, specs[0])
    chosen = parse_devices(given["devices"], environment.visible_gpus())
    if len(chosen) > 1:
        raise UsageError(f"harness {what} takes one device, and there are {len(chosen)}")
    threads = variant.parsed().threads or given["threads"] or environment.default_threads()
    limit = given["memory_limit"]
    asked = Asked(
        variant=variant,
        precision=precision,
        device=chosen[0],
        device_chosen=given["devices"] != AUTO,
        threads=threads,
        calibration=Calibration(
            source=calibration_source(given["calibration"], specs),
            samples=given["calibration_samples"],
            method=given["calibration_method"],
        ),
        command=shlex.join(["harness", *sys.argv[1:]]),
    )
    with Narrator(quiet=given["quiet"]) as narrator, tempfile.TemporaryDirectory(prefix="harness-cuts-") as scratch:
        # Before a folder is made: what cannot be leaves nothing behind.
        Bench(asked, _launcher(Path(scratch), asked, given, limit), Path(scratch), narrator.detail).refuse()
        kind = devices.kind(asked.device)
        if variant.release is not None:
            check_variant(variant, kind, None)
            asked = dataclasses.replace(asked, interpreter=ensure_variant(variant, kind, None, narrator))
        folder = RunFolder.create(given["out"], f"{what}-{specs[0].label}")
        with _launcher(folder.logs, asked, given, limit) as launcher:
            narrator.doing(f"exporting {specs[0].label}")
            source, _ = ensure_artifact(recipe, launcher, on_progress=narrator.detail, say=narrator.done)
            graph = source
            if precision in CONVERTED:
                narrator.doing(f"converting {specs[0].label} to {precision}")
                graph, _ = ensure_converted(
                    source,
                    precision,
                    asked.calibration,
                    launcher,
                    weights=recipe.weights,
                    on_progress=narrator.detail,
                )
            yield Scene(
                asked=asked,
                bench=Bench(asked, launcher, make_folder(Path(scratch), "the scratch folder"), narrator.detail),
                launcher=launcher,
                source=source,
                graph=graph,
                folder=folder,
                scratch=Path(scratch),
                narrator=narrator,
                label=specs[0].label,
                weights=recipe.weights,
            )


def _launcher(logs: Path, asked: Asked, given: dict[str, Any], limit: float | None) -> Launcher:
    return Launcher(
        logs=logs,
        threads=asked.threads,
        memory_limit_bytes=int(limit * 2**30) if limit else environment.default_memory_limit(),
        timeout_s=given["timeout"],
    )


def _variant(given: dict[str, Any]) -> tuple[Variant, str]:
    variants = parse_variants([given["backend"]])
    if len(variants) > 1:
        raise UsageError(
            f"--backend takes one backend, and there are {len(variants)}",
            hint=f"for example --backend {variants[0].id}",
        )
    precisions = parse_precisions(given["precisions"])
    if len(precisions) > 1:
        raise UsageError(f"one precision is wanted here, and there are {len(precisions)}: {', '.join(precisions)}")
    own = variants[0].parsed()
    if own.dynamic:
        raise UsageError("an engine for all shapes has no one graph to look into", hint="leave out dynamic=true")
    precision = own.precision or precisions[0]
    assert precision in PRECISIONS
    return variants[0], precision
