"""Measures the pairs that a bisect asks for: in one interleaved run each, until they are decided, and never twice.

A measurement is an ordinary run of two cases, the good end as its baseline. Where it does not decide, more is measured:
twice the launches, and twice that again. Several looks at one pair make a false call a little likelier than the 1 % of
one; the verdicts that this costs are counted in the simulation of `tests/unit/test_bisect_search.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.bisect.found import NAMES, Measured, Trial, said
from harness.bisect.memory import Memory
from harness.bisect.pairs import EXACT, OVER_RUNS, Change, Figure, change_of
from harness.bisect.search import Judgement, Kind, classify
from harness.bisect.versions import Installed
from harness.commands import begun, planned
from harness.compare import Comparison
from harness.engines import in_use
from harness.errors import StoreError, UnavailableError
from harness.history.keeping import keep
from harness.history.location import Location
from harness.plan import asked_variants, parse_variants, with_precisions
from harness.precisions import parse_precisions
from harness.progress import Narrator
from harness.protocol import Progress
from harness.records import Run
from harness.store import RunFolder, load_run

ATTEMPTS = 3
"""How often a pair is measured, twice as much each time, before it is called undecided."""
RUNS = 3
"""Runs of the first attempt, for figures that have one value a run."""
FINE = 3.0
"""A latency's interval is narrow enough when it is this much narrower than the threshold."""
COMPARABLE = ("ok", "compiled", "drifted")
"""Statuses of cases that have figures."""


class Pairs:
    """Judges pairs of versions, and keeps what was found."""

    def __init__(
        self,
        given: Mapping[str, Any],
        installed: Installed,
        memory: Memory,
        narrator: Narrator,
        location: Location | None,
        *,
        figure: Figure,
        threshold: float,
        forget: bool,
    ) -> None:
        """Take what all pairs share. `given` are a comparison's options; `forget`: what is known does not count."""
        self._given = given
        self._installed = installed
        self._source = installed.source
        self._memory = memory
        self._narrator = narrator
        self._location = location
        self._forget = forget
        self._figure = figure
        self._threshold = threshold
        self.trials: dict[tuple[str, str], Trial] = {}
        """In the order in which they were made."""
        self.reproduce = ""
        """The command that compares the first pair."""

    def judge(self, before: str, after: str) -> Judgement:
        """Say what a version is against another; measure them if that is not known."""
        trial = self._tried(before, after)
        self.trials[before, after] = trial
        where = f" (harness show {trial.runs[-1]})" if trial.runs and not trial.remembered else ""
        self._narrator.done(f"{said(trial)}{', remembered' if trial.remembered else where}")
        change = trial.change
        return Judgement(
            kind=trial.kind,
            change=change.change if change else None,
            half_width=change.half_width if change else None,
            reason=trial.reason,
            measured=change is not None,
        )

    def is_known(self, before: str, after: str) -> bool:
        """Say whether a pair is decided without measuring anything."""
        known = None if self._forget else self._memory.read(before, after)
        return known is not None and self._is_final(known)

    def text(self, version: str) -> str:
        """Return what asks for a version in this precision, in the grammar of `--backends`: the id of its case."""
        asked = parse_variants([self._source.text(version)])
        return with_precisions(asked, parse_precisions(self._given["precisions"]))[0].id

    def _tried(self, before: str, after: str) -> Trial:
        known = None if self._forget else self._memory.read(before, after)
        remembered = known is not None and self._is_final(known)
        if not remembered:
            for version in (before, after):
                if not self._installed.is_known(version):
                    self._narrator.doing(f"making the environment of {version}")
                try:
                    self._installed.packages(version)
                except UnavailableError as exc:
                    log = f" (log: {exc.log})" if exc.log else ""
                    reason = f"{version} cannot be installed: {exc.message}{log}"
                    return Trial(before=before, after=after, kind="untestable", change=None, reason=reason)
            known = self._measured(before, after, known or Measured(runs=[]))
        assert known is not None
        assert known.change is not None
        for version, packages in zip((before, after), known.packages, strict=True):
            self._installed.note(version, packages)
        self.reproduce = self.reproduce or known.reproduce
        kind = self._kind(known.change)
        return Trial(
            before=before,
            after=after,
            kind=kind,
            change=known.change,
            reason=_why_not(before, after, known.change) if kind == "untestable" else "",
            runs=known.runs,
            remembered=remembered,
        )

    def _kind(self, change: Change) -> Kind:
        ran = all(status in COMPARABLE for status in change.statuses)
        if self._figure != "status" and (not ran or change.before is None or change.after is None):
            return "untestable"
        return classify(change.change, change.half_width, self._threshold)

    def _is_final(self, known: Measured) -> bool:
        if known.change is None:
            return False
        return known.attempts >= self._attempts or self._kind(known.change) != "undecided"

    @property
    def _attempts(self) -> int:
        return 1 if self._figure in EXACT else ATTEMPTS

    # ---- measuring

    def _measured(self, before: str, after: str, known: Measured) -> Measured:
        """Measure until the pair is decided or enough was tried; each attempt is remembered as it ends."""
        while not self._is_final(known):
            runs = self._attempt(before, after, known)
            ids = self._ids(runs[-1][1], before)
            change = change_of([run for _, run in runs], *ids, self._figure)
            known = Measured(
                runs=[str(folder.path.absolute()) for folder, _ in runs],
                change=change,
                attempts=known.attempts + 1,
                packages=(dict(self._installed.packages(before)), dict(self._installed.packages(after))),
                reproduce=reproduce(runs[-1][1].workloads[0].cases[0].reproduce, self.text(before), self.text(after)),
            )
            self._memory.write(before, after, known)
        return known

    def _attempt(self, before: str, after: str, known: Measured) -> list[tuple[RunFolder, Run]]:
        """Carry out what the next attempt takes, from where an earlier bisect was interrupted."""
        runs = [found for path in known.runs if (found := _kept(Path(path))) is not None]
        more = 2**known.attempts
        if self._figure not in OVER_RUNS:
            launches = self._given["launches"] * more if self._figure not in EXACT else 1
            return [self._carried_out(before, after, known, runs[:1], launches=launches)]
        wanted = RUNS * more
        done = [pair for pair in runs if pair[1].state == "finished"][:wanted]
        open_ = [pair for pair in runs if pair[1].state != "finished"]
        while len(done) < wanted:
            now = msgspec.structs.replace(known, runs=[str(folder.path.absolute()) for folder, _ in done])
            done.append(self._carried_out(before, after, now, open_[:1], launches=1, flip=len(done) % 2 == 1))
            open_ = []
        return done

    def _carried_out(
        self,
        before: str,
        after: str,
        known: Measured,
        earlier: Sequence[tuple[RunFolder, Run]],
        *,
        launches: int,
        flip: bool = False,
    ) -> tuple[RunFolder, Run]:
        """Bring a run to so many launches: one that was begun, or a new one."""
        if earlier:
            folder, run = earlier[0]
            spent = sum(workload.measure_s for workload in run.workloads)
            wider = {"launches": launches, "budget_s": spent + self._given["budget"]}
            run = msgspec.structs.replace(run, settings=msgspec.structs.replace(run.settings, **wider))
        else:
            run, label = planned(self._asked(before, after, launches, flip=flip))
            to = self._threshold / FINE if self._figure == "latency" else 1.0
            run = msgspec.structs.replace(run, settings=msgspec.structs.replace(run.settings, precise_to=to))
            folder, run = begun(run, self._given["out"], label)
            runs = [*known.runs, str(folder.path.absolute())]
            self._memory.write(before, after, msgspec.structs.replace(known, runs=runs))
        within = _Within(self._narrator, f"{after} against {before}")
        comparison = Comparison(run, asked_variants(run.settings), folder, within)
        try:
            comparison.execute()
        finally:
            keep(comparison.run, folder, self._location)
        return folder, comparison.run

    def _asked(self, before: str, after: str, launches: int, *, flip: bool) -> dict[str, Any]:
        texts = [self.text(before), self.text(after)]
        short = self._figure in OVER_RUNS or self._figure in EXACT
        return {
            **self._given,
            "backends": tuple(reversed(texts) if flip else texts),
            "baseline": texts[0],
            "launches": launches,
            "quick": short,
            "cold": self._figure in OVER_RUNS,
        }

    def _ids(self, run: Run, before: str) -> tuple[str, str]:
        """Return the ids of the two cases, in the order of the pair."""
        first, second = run.settings.cases
        return (first, second) if run.settings.asked[0] == self.text(before) else (second, first)


class _Within(Narrator):
    """Shows the steps of one run as the details of a bisect: what stays on the screen are the verdicts."""

    def __init__(self, outer: Narrator, label: str) -> None:
        self._outer = outer
        self._label = label

    def doing(self, what: str) -> None:
        self._outer.doing(f"{self._label}: {what}")

    def detail(self, progress: Progress) -> None:
        self._outer.detail(progress)

    def done(self, line: str) -> None:
        self._outer.doing(f"{self._label}: {line}")


def reproduce(command: str, before: str, after: str) -> str:
    """Return the command that compares two cases, from one that runs others of the same backend in the same way."""
    words = shlex.split(command)
    words[words.index("--backends") + 1] = f"{before},{after}"
    if "--baseline" not in words:
        words += ["--baseline", ""]
    words[words.index("--baseline") + 1] = before
    return shlex.join(words)


def _kept(path: Path) -> tuple[RunFolder, Run] | None:
    """Return a run where it is still there, whole, and nobody's at the moment."""
    folder = RunFolder(path)
    try:
        run = load_run(folder)
    except StoreError:
        return None
    return None if in_use(run.id) else (folder, run)


def _why_not(before: str, after: str, change: Change) -> str:
    for version, status, failure in zip(
        (after, before), reversed(change.statuses), reversed(change.failures), strict=True
    ):
        if status not in COMPARABLE:
            return f"{version}: {status.replace('_', ' ')}: {failure}"
    lacking = after if change.after is None else before
    return f"{lacking} has no such figure: {NAMES[change.figure]}"
