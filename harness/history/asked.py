"""What a run was asked for: which cases it must have. One that is not among them was taken out on purpose."""

from __future__ import annotations

from harness.history.keys import Place, place_of_workload
from harness.history.points import Point
from harness.plan import ALL
from harness.records import Record, Run


class Asked(Record, frozen=True, kw_only=True):
    """The plan of a run."""

    places: frozenset[Place]
    cases: frozenset[str]
    """Ids, the same in every place."""
    all_in: frozenset[str] = frozenset()
    """Precisions in which every backend was asked for, and so also one that is no longer registered."""

    def covers(self, point: Point) -> bool:
        """Say whether a case such as this was asked for, wherever that was."""
        key = point.key
        plain = not key.release and key.options in ("", f"precision={key.precision}")
        return point.case in self.cases or (plain and key.precision in self.all_in)


def asked_of(run: Run) -> Asked:
    """Return what a run was asked for, whatever it got to."""
    words = {word.strip() for text in run.settings.asked for word in text.split(",")}
    return Asked(
        places=frozenset(place_of_workload(workload, run.environment) for workload in run.workloads),
        cases=frozenset(run.settings.cases),
        all_in=frozenset(run.settings.precisions if ALL in words else ()),
    )
