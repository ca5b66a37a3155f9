"""What `harness bisect` does, behind `harness/bisect/cli.py`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import __version__, devices, environment, registry
from harness.artifact import Artifact, sha256
from harness.bisect.found import NAMES, Bisected, Guilty, Outcome, Release, differing, ratio_text
from harness.bisect.judging import COMPARABLE, Pairs, reproduce
from harness.bisect.memory import Memory
from harness.bisect.pairs import EXACT, FIGURES, Figure
from harness.bisect.search import Found, Judgement, Step, middle, needed, search
from harness.bisect.versions import Installed, Released, Source, between
from harness.cli import GATE_FAILED, INTERRUPTED, OK, compare
from harness.commands import DEFAULT_MODEL, one_recipe
from harness.errors import UnavailableError, UsageError
from harness.export import Recipe, ensure_artifact, is_exported
from harness.history.keys import machine_of
from harness.history.location import locate
from harness.launcher import Launcher
from harness.paths import cache_root
from harness.plan import FP32, Variant, parse_variants
from harness.precisions import parse_precisions
from harness.progress import Narrator
from harness.sourcecode import source_files
from harness.sources import calibration_source
from harness.workloads import asked_models

CODES: dict[Outcome, int] = {
    "found": OK,
    "no_change": GATE_FAILED,
    "undecided": GATE_FAILED,
    "interrupted": INTERRUPTED,
}
IN_COMMON = (
    *("models", "dims", "shapes", "weights", "inputs", "precisions", "calibration", "calibration_samples"),
    *("calibration_method", "devices", "batch", "seed", "threads", "cpus", "opset", "input_sets", "launches", "budget"),
    *("timeout", "memory_limit", "labels", "store", "out", "verbose", "quiet"),
)
"""Options that are handed on to the runs as they are."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked for, settled and found possible."""

    given: Mapping[str, Any]
    figure: Figure
    variant: Variant
    recipe: Recipe
    device: str
    precision: str
    threads: int
    source: Source
    versions: list[Release]

    @property
    def names(self) -> list[str]:
        return [one.version for one in self.versions]


def run_bisect(given: dict[str, Any]) -> int:
    """Carry out `harness bisect` and return the exit code."""
    with Narrator(quiet=given["quiet"]) as narrator:
        asked = _settled(given, narrator)
        count = len(asked.versions)
        about = 1 + needed(count - 2) + (count > 2 and asked.figure not in EXACT)
        narrator.done(f"{count} versions, {asked.names[0]} to {asked.names[-1]}: about {about} measurements")
        try:
            bisected = _searched(asked, narrator)
        except KeyboardInterrupt:
            narrator.done("interrupted; the same command goes on from here")
            return INTERRUPTED
    if given["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(bisected)).decode())
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        color = terminal and "NO_COLOR" not in os.environ
        width = shutil.get_terminal_size().columns if terminal else None
        click.echo(registry.view("bisected")(bisected, color=color, width=width), nl=False, color=color)
    return CODES[bisected.outcome]


def source_of(variant: Variant, device: str, *, previews: bool) -> Source:
    """Return where the versions of a backend come from."""
    return Released(variant, devices.kind(device), previews=previews)


def _settled(given: Mapping[str, Any], narrator: Narrator) -> _Asked:
    locate(given["store"])
    variants = parse_variants([given["backend"]])
    if len(variants) > 1:
        raise UsageError(f"--backend takes one backend, and there are {len(variants)}")
    variant = variants[0]
    if variant.release is not None:
        raise UsageError(
            f"--backend {given['backend']}: here versions are searched for", hint=f"--backend {variant.backend}"
        )
    if variant.parsed().dynamic:
        raise UsageError("an engine for all shapes has no one shape to be compared at", hint="leave out dynamic=true")
    specs = asked_models(list(given["models"]) or [DEFAULT_MODEL], None, Path.cwd())
    if len(specs) != 1:
        raise UsageError(f"harness bisect takes one model, and there are {len(specs)}")
    places = devices.parse_devices(given["devices"], environment.visible_gpus())
    precisions = parse_precisions(given["precisions"])
    for what, several in (("device", places), ("precision", precisions)):
        if len(several) > 1:
            raise UsageError(f"harness bisect takes one {what}, and there are {len(several)}: {', '.join(several)}")
    recipe = one_recipe(dict(given), specs[0])
    source = source_of(variant, places[0], previews=given["previews"])
    narrator.doing("asking which releases there are")
    return _Asked(
        given={**given, "calibration": calibration_source(given["calibration"], specs)},
        figure=given["metric"],
        variant=variant,
        recipe=recipe,
        device=places[0],
        precision=variant.parsed().precision or precisions[0],
        threads=variant.parsed().threads or given["threads"] or environment.default_threads(),
        source=source,
        versions=between(source, given),
    )


def _searched(asked: _Asked, narrator: Narrator) -> Bisected:
    installed = Installed(asked.source)
    names, exported = asked.names, is_exported(asked.recipe)
    sure = list(dict.fromkeys([names[0], names[-1], names[middle(range(len(names) - 1))]]))
    # Where there is an export, an earlier bisect may know all of it, and needs no environment.
    with nullcontext() if exported else installed.ahead(sure):
        artifact = _exported(asked, narrator)
    pairs = Pairs(
        _of_runs(asked),
        installed,
        Memory(_subject(asked, artifact), asked.figure),
        narrator,
        locate(asked.given["store"]),
        figure=asked.figure,
        threshold=asked.given["threshold"],
        forget=asked.given["cold"],
    )
    if exported and not pairs.is_known(names[0], names[-1]):
        narrator.doing(f"making the environments of {', '.join(sure)}")
        with installed.ahead(sure):
            pass

    def say(left: int, more: int) -> None:
        if not left:
            narrator.done("no version left between them: the last two against each other")
            return
        more += asked.figure not in EXACT
        narrator.done(f"{left} version{'s'[: left > 1]} left, about {more} measurement{'s'[: more > 1]}")

    try:
        found = search(
            len(names),
            lambda before, after: pairs.judge(names[before], names[after]),
            say,
            threshold=asked.given["threshold"],
            exact=asked.figure in EXACT,
            several=asked.figure != "status",
        )
    except KeyboardInterrupt:
        if (ends := pairs.trials.get((names[0], names[-1]))) is None:  # nothing is known yet
            raise
        measured = sum(trial.change is not None for trial in pairs.trials.values())
        found = Found(ends=Judgement(kind=ends.kind), steps=[], skipped={}, measurements=measured)
        return msgspec.structs.replace(_bisected(asked, found, pairs, installed), outcome="interrupted")
    _refuse_ends(asked, pairs, installed)
    return _bisected(asked, found, pairs, installed)


def _exported(asked: _Asked, narrator: Narrator) -> Artifact:
    launcher = Launcher(
        logs=cache_root() / "logs",
        threads=asked.threads,
        memory_limit_bytes=environment.default_memory_limit(),
        timeout_s=asked.given["timeout"],
    )
    narrator.doing(f"exporting {asked.recipe.model.label}")
    with launcher:
        return ensure_artifact(asked.recipe, launcher, on_progress=narrator.detail, say=narrator.done)[0]


def _of_runs(asked: _Asked) -> dict[str, Any]:
    """Return the options of the comparisons: those of `harness compare`, and what was given here."""
    defaults = compare.make_context("compare", []).params
    return {**defaults, **{name: asked.given[name] for name in IN_COMMON}}


def _subject(asked: _Asked, artifact: Artifact) -> list[str]:
    """Return what the figures of all pairs depend on beside their versions."""
    given = asked.given
    calibration = [] if asked.precision == FP32 else [given["calibration"], given["calibration_samples"]]
    return [
        __version__,
        artifact.hash,
        asked.variant.id,
        asked.device,
        asked.precision,
        f"{asked.threads} threads",
        str(given["cpus"]),
        *(str(one) for one in (*calibration, given["calibration_method"])),
        machine_of(environment.describe([]), asked.device),
        *(sha256(path) for path in source_files(registry.backend(asked.variant.backend))),
    ]


def _refuse_ends(asked: _Asked, pairs: Pairs, installed: Installed) -> None:
    """Refuse ends between which there is nothing to search for.

    Raises:
        UnavailableError: One of them cannot be installed, or gives no result.
        UsageError: Neither has the figure, or the bad one is better.
    """
    good, bad = asked.names[0], asked.names[-1]
    ends = pairs.trials[good, bad]
    change = ends.change
    if change is None or (ends.kind == "untestable" and not all(one in COMPARABLE for one in change.statuses)):
        cause = next((found for one in (good, bad) if (found := installed.failure(one)) is not None), None)
        raise UnavailableError(
            f"both ends must work before anything is searched for: {ends.reason}",
            hint=(cause.hint if cause else None) or "choose another --good or --bad",
            log=cause.log if cause else str(Path(ends.runs[-1]) / "logs") if ends.runs else None,
        )
    if ends.kind == "untestable":
        raise UsageError(
            f"{good} and {bad} have no {NAMES[asked.figure]} to compare on {asked.device}: {ends.reason}",
            hint=f"--metric {', '.join(one for one in FIGURES if one != asked.figure)}",
        )
    if ends.kind == "improved":
        moved = (
            "works and the other does not" if asked.figure == "status" else ratio_text(change.change, change.half_width)
        )
        raise UsageError(
            f"--bad {bad} is better than --good {good}: its {NAMES[asked.figure]} is {moved}",
            hint=f"the wrong way round? --good {bad} --bad {good}",
        )


def _bisected(asked: _Asked, found: Found, pairs: Pairs, installed: Installed) -> Bisected:
    names = asked.names
    outcome: Outcome = "found" if found.steps else "undecided" if found.ends.kind == "undecided" else "no_change"
    rest = pairs.trials.get((names[found.steps[-1].after], names[-1])) if found.rest and found.steps else None
    return Bisected(
        model=asked.recipe.model.label,
        backend=asked.variant.id,
        device=asked.device,
        precision=asked.precision,
        figure=asked.figure,
        threshold=asked.given["threshold"],
        good=names[0],
        bad=names[-1],
        versions=asked.versions,
        outcome=outcome,
        ends=pairs.trials[names[0], names[-1]],
        steps=[_guilty(asked, step, pairs, installed) for step in found.steps],
        skipped={names[index]: reason for index, reason in sorted(found.skipped.items())},
        rest=rest,
        trials=list(pairs.trials.values()),
        measurements=found.measurements,
    )


def _guilty(asked: _Asked, step: Step, pairs: Pairs, installed: Installed) -> Guilty:
    before, after = asked.versions[step.before], asked.versions[step.after]
    contents = [dict(installed.packages(one.version)) for one in (before, after)]
    return Guilty(
        before=before,
        after=after,
        kind=step.judgement.kind,
        trial=pairs.trials.get((before.version, after.version)),
        change=step.judgement.change,
        half_width=step.judgement.half_width,
        unknown={asked.names[index]: one.reason or one.kind for index, one in step.unknown.items()},
        packages=differing(contents[0], contents[1], own=asked.source.distribution),
        reproduce=reproduce(pairs.reproduce, pairs.text(before.version), pairs.text(after.version)),
    )
