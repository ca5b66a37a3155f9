"""A static site over the history: which pages it has, and what each is made from. Pure functions of points.

index.html              models, backends, machines, the newest runs
models/NAME.html        what was measured of a model, setting by setting, over time
backends/NAME.html      where a backend stands with each model, and its versions
machines/NAME.html      what was measured on a class of machines
runs/index.html         every run
runs/NAME.html          the report of a run
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence

import scipy.special

from harness.history.changes import CONFIDENCE
from harness.history.keys import differing
from harness.history.points import Point
from harness.history.queries import RunRow
from harness.records import Record
from harness.summary import Estimate

INDEX = "index.html"
ALL_RUNS = "runs/index.html"
NEWEST = 30
"""Runs that the first page lists."""
_PLAIN = re.compile(r"(\d{4}-\d\d-\d\dT)?[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_CUT = 60
"""Characters that are kept of another name."""


class CaseHistory(Record, frozen=True, kw_only=True):
    """One case over all runs that have it."""

    points: list[Point]
    """Oldest first; at least one."""

    @property
    def last(self) -> Point:
        """Return how it stands now."""
        return self.points[-1]

    @property
    def comparable(self) -> list[Point]:
        """Return the points that are of the same model as the newest one: another may have borne its name before."""
        return [point for point in self.points if not differing(point.subject, self.last.subject)]


class Setting(Record, frozen=True, kw_only=True):
    """Cases of one model that can be told from one another by their speed: of one shape, on one class of machines."""

    cases: list[CaseHistory]
    """The fastest first, as far as they were measured."""


class ModelPage(Record, frozen=True, kw_only=True):
    """What was measured of one model."""

    model: str
    settings: list[Setting]
    """The one that was measured last comes first."""


class ListPage(Record, frozen=True, kw_only=True):
    """What was measured of one backend, or on one machine."""

    name: str
    cases: list[CaseHistory]


class IndexPage(Record, frozen=True, kw_only=True):
    """The first page."""

    cases: list[CaseHistory]
    runs: list[RunRow]
    """The newest, newest first."""
    total: int
    """How many runs there are."""


class RunsPage(Record, frozen=True, kw_only=True):
    """Every run, newest first, with its cases."""

    runs: list[RunRow]
    points: list[Point]


def model_path(model: str) -> str:
    """Return the page of a model, seen from the first page."""
    return f"models/{slug(model)}.html"


def backend_path(backend: str) -> str:
    """Return the page of a backend, seen from the first page."""
    return f"backends/{slug(backend)}.html"


def machine_path(machine: str) -> str:
    """Return the page of a class of machines, seen from the first page."""
    return f"machines/{slug(machine)}.html"


def run_path(run: str) -> str:
    """Return the page of a run, seen from the first page."""
    return f"runs/{slug(run)}.html"


def slug(name: str) -> str:
    """Return a name for a file that every file system and every link takes; different names, different slugs.

    Letters are small, since there are file systems to which `A` is `a`; but for the one in the time of a run's id.
    """
    if _PLAIN.fullmatch(name) and len(name) <= 2 * _CUT and name != "index":
        return name
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:_CUT].strip("-.")
    return f"{plain or 'name'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def cases(points: Iterable[Point]) -> list[CaseHistory]:
    """Return the cases, each with all of its points."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return [CaseHistory(points=each) for each in found.values()]


def models(found: Sequence[CaseHistory]) -> list[ModelPage]:
    """Return what is known of each model, by name."""
    return [ModelPage(model=model, settings=_settings(of)) for model, of in _by(found, lambda point: point.key.model)]


def backends(found: Sequence[CaseHistory]) -> list[ListPage]:
    """Return what is known of each backend, by name."""
    return [ListPage(name=name, cases=of) for name, of in _by(found, lambda point: point.key.backend)]


def machines(found: Sequence[CaseHistory]) -> list[ListPage]:
    """Return what was measured on each class of machines, by name."""
    return [ListPage(name=name, cases=of) for name, of in _by(found, lambda point: point.key.machine)]


def interval(point: Point) -> Estimate | None:
    """Return the 99 % interval of a point's latency in ns, as its launches tell it; None where there is one launch.

    A t interval of the mean of the launches' levels in log units, around the median of all samples.
    """
    levels = point.evidence.levels if point.evidence else []
    if len(levels) < 2 or not point.latency_ns:
        return None
    error = statistics.stdev(levels) / math.sqrt(len(levels))
    half = error * float(scipy.special.stdtrit(len(levels) - 1, (1 + CONFIDENCE) / 2))
    return Estimate(
        value=point.latency_ns, low=point.latency_ns * math.exp(-half), high=point.latency_ns * math.exp(half)
    )


def _settings(found: Sequence[CaseHistory]) -> list[Setting]:
    groups = _by(found, _told_apart)
    made = [Setting(cases=sorted(of, key=_speed)) for _, of in groups]
    return sorted(made, key=lambda one: max(case.last.created for case in one.cases), reverse=True)


def _told_apart(point: Point) -> str:
    key = point.key
    return "\n".join([key.dims, key.precision, key.device, key.threads, key.target, key.machine, point.workload])


def _speed(case: CaseHistory) -> tuple[float, str]:
    return case.last.latency_ns or math.inf, case.last.case


def _by(found: Sequence[CaseHistory], key: Callable[[Point], str]) -> list[tuple[str, list[CaseHistory]]]:
    groups: dict[str, list[CaseHistory]] = {}
    for case in found:
        groups.setdefault(key(case.last), []).append(case)
    return sorted(groups.items())
