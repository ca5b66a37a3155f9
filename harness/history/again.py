"""Suspicious cases measured again: in fresh processes, beside the case that they are compared through, kept as a run.

What is measured is the software that is here and the export of that run. A run that was made with other libraries or on
another machine, or whose model has changed since, cannot be measured again. What the run is held against is measured
again too where that is possible, and where it would be another thing than the run: its export or opset differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from harness import __version__, environment
from harness.commands import ROUNDS, SLICE_S
from harness.compare import Comparison, recipe_of
from harness.errors import HarnessError, StoreError
from harness.export import still_exported
from harness.history.gate import COMPILED, Again, Check, Judged
from harness.history.keeping import keep
from harness.history.keys import differing
from harness.history.location import Location
from harness.history.points import Point
from harness.history.queries import AGAIN
from harness.history.sides import of_run
from harness.plan import Variant, asked_variants
from harness.progress import Narrator
from harness.records import Environment, Run, Workload
from harness.store import RunFolder, now_utc

LAUNCHES = 5
"""Of a run that had one launch only, and so no verdict."""
NOTHING_TO_MEASURE = ("unavailable", "unsupported")
OTHER_THINGS = ("artifact", "opset", "weights_sha256")
"""Circumstances that a run brings along: where they differ, two runs are two things to measure."""


class Remeasuring:
    """Measures suspicious cases again, and remembers what came of it."""

    def __init__(self, load: Callable[[str], Run], out: Path, location: Location | None, narrator: Narrator) -> None:
        """Take how to get at runs, where new ones go, and the history that keeps them."""
        self._load = load
        self._out = out
        self._location = location
        self._say = narrator
        self._again = Again()

    def measure(self, check: Check, known: Sequence[Point], times: int) -> Again:
        """Measure what is suspicious as often as asked; what an earlier check has measured already counts.

        Raises:
            KeyboardInterrupt: The user stopped it. What was finished is kept.
        """
        for point in known:
            self._again.now.setdefault(point.series, []).append(point)
        (name,) = check.after.runs
        suspects = [one for one in check.suspects if len(self._again.now.get(one.row.after.series, [])) < times]
        self._side(name, {one.row.after.series: one.row.after for one in suspects}, suspects, self._again.now, times)
        for run, held in _other_things(suspects).items():
            points = {one.row.before.series: one.row.before for one in held}
            self._side(run, points, held, self._again.then, times)
        return self._again

    def _side(
        self,
        name: str,
        points: Mapping[str, Point],
        suspects: Sequence[Judged],
        into: dict[str, list[Point]],
        times: int,
    ) -> None:
        try:
            run = self._load(name) if suspects else None
        except StoreError as exc:
            self._again.reasons.update(dict.fromkeys(points, exc.message))
            return
        if run is None:
            return
        here = environment.describe(run.environment.advice)
        for workload in run.workloads:
            of_workload = [one for one in suspects if points[one.row.after.series].workload == workload.key]
            own = {series: point for series, point in points.items() if point.workload == workload.key}
            while wanted := [one for one in of_workload if len(into.get(one.row.after.series, [])) < times]:
                reason = _impossible(run, workload, here, [own[one.row.after.series] for one in wanted])
                found = [] if reason else self._measured(run, workload, here, wanted, own)
                for point in found:
                    if point.series in own:
                        into.setdefault(point.series, []).append(point)
                series = {one.row.after.series for one in wanted}
                if not series <= {point.series for point in found}:
                    self._again.reasons.update(dict.fromkeys(series, reason or "it gave no result"))
                    break

    def _measured(
        self, run: Run, workload: Workload, here: Environment, suspects: Sequence[Judged], points: Mapping[str, Point]
    ) -> list[Point]:
        names = {points[one.row.after.series].case for one in suspects}
        names |= {figure.change.other for one in suspects for figure in one.figures if figure.change.other}
        doubts = {figure.metric for one in suspects for figure in one.figures if figure.outcome == "suspicious"}
        cold = not doubts.isdisjoint(COMPILED)
        variants = _variants(run, workload, names)
        self._say.done(f"measuring again: {workload.key}, {', '.join(sorted(names))}")
        try:
            folder = RunFolder.create(self._out, f"{workload.model.label}-again")
            fresh = _blank(run, workload, here, variants, folder.path.name, cold=cold)
            self._say.done(f"run {folder.path}")
            return self._compared(Comparison(fresh, variants, folder, self._say), folder)
        except HarnessError as exc:  # a full disk, a file that went: the run alone decides then
            self._again.notes.append(f"measuring {workload.key} again ended with: {exc.message}")
            return []

    def _compared(self, comparison: Comparison, folder: RunFolder) -> list[Point]:
        try:
            return of_run(folder.path.name, comparison.execute()).points
        finally:  # also what was finished before an interruption
            keep(comparison.run, folder, self._location)


def _other_things(suspects: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Return the suspects whose counterpart is another thing to measure, by the run that it is in."""
    out: dict[str, list[Judged]] = {}
    for one in suspects:
        changed = differing(one.row.before.circumstances, one.row.after.circumstances)
        if any(name in changed for name in OTHER_THINGS):
            out.setdefault(one.row.before.run, []).append(one)
    return out


def _impossible(run: Run, workload: Workload, here: Environment, points: Sequence[Point]) -> str:
    """Return why cases cannot be measured again; empty where they can."""
    if run.settings.lock_clocks is not None:
        return "its clocks were held, and this command holds none"
    if statuses := {point.status for point in points} & set(NOTHING_TO_MEASURE):
        return f"it is {', '.join(sorted(statuses))} here"
    then, now = _machine(run.environment), _machine(here)
    changed = [
        f"{name} {then.get(name) or 'none'} > {now.get(name) or 'none'}"
        for name in then | now
        if then.get(name) != now.get(name)
    ]
    if changed:
        return f"it was measured with other software or hardware than is here now: {', '.join(changed[:3])}"
    if workload.info is not None and not still_exported(recipe_of(workload, run.settings), workload.info.artifact):
        return "its export is no longer in the cache, or the model has changed since"
    return ""


def _machine(of: Environment) -> dict[str, str]:
    cards = ", ".join(f"{gpu.get('name')} {gpu.get('driver_version')}" for gpu in of.gpus)
    return {"cpu": of.cpu, "GPUs": cards, **of.libraries}


def _variants(run: Run, workload: Workload, names: set[str]) -> list[Variant]:
    """Return the variants of these cases and of the workload's baseline; of one that was asked for twice, both."""
    stems = {name.partition("#")[0] for name in (*names, workload.baseline)}
    return [variant for variant in asked_variants(run.settings) if variant.id.partition("#")[0] in stems]


def _blank(run: Run, workload: Workload, here: Environment, variants: list[Variant], name: str, *, cold: bool) -> Run:
    """Return the run to be: one workload of another run with some of its cases, enough of it to be resumed."""
    settings = run.settings
    single = settings.launches < 2
    return Run(
        id=name,
        created=now_utc(),
        harness=__version__,
        state="running",
        command=f"{AGAIN}{run.id}",
        settings=msgspec.structs.replace(
            settings,
            models=[workload.model.text],
            suite=None,
            asked=[variant.id.partition("#")[0] for variant in variants],
            cases=[variant.id for variant in variants],
            precisions=("fp32",),  # a case in another one says so in its id
            dynamic=False,  # likewise
            baseline=workload.baseline,
            devices=(workload.device,),
            targets=[workload.target] if workload.target else [],
            parallel=False,
            quick=False,
            cold=cold,
            launches=LAUNCHES if single else settings.launches,
            rounds=ROUNDS if single else settings.rounds,
            slice_s=SLICE_S if single else settings.slice_s,
        ),
        environment=here,
        ceilings=run.ceilings,
        workloads=[
            Workload(
                key=workload.key,
                model=workload.model,
                asked=workload.asked,
                dims=workload.asked,
                batch=workload.batch,
                device=workload.device,
                target=workload.target,
                baseline=workload.baseline,
            )
        ],
        project=run.project,
        notes=[f"cases of {run.id} measured again, since they were suspicious"],
    )
