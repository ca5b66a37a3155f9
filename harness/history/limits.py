"""What a figure may become before a gate fails."""

from __future__ import annotations

import math
from typing import Literal

from harness.history.points import Metric
from harness.records import Record


class DriftLimit(Record, frozen=True, kw_only=True):
    """What drift may become."""

    kind: Literal["factor", "distance", "pass", "any"]
    """So many times what it was; a relative L2 distance; whatever agrees with the reference; whatever."""
    value: float = math.inf


class Limits(Record, frozen=True, kw_only=True):
    """How much worse a figure may become, as a share of what it was; infinite: by any amount."""

    slowdown: float = 0.05
    compile: float = 0.20
    memory: float = 0.10
    size: float = 0.10
    drift: DriftLimit = DriftLimit(kind="factor", value=10.0)
    undecided: Literal["pass", "fail"] = "pass"
    """What becomes of a latency over its limit that no interval confirms, also when it was measured again."""

    def of(self, metric: Metric) -> float:
        """Return the largest ratio of now to then."""
        if metric == "drift":
            return self.drift.value if self.drift.kind == "factor" else math.inf
        if metric == "latency":
            return 1 + self.slowdown
        if metric == "compile":
            return 1 + self.compile
        return 1 + (self.size if metric == "engine" else self.memory)
