"""Records of what a case gets right: agreement with the reference, accuracy on labels. Part of `harness.records`."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a case has no number, or why its number is not to be trusted."""

    stage: str
    """`probe`, `import`, `compile`, `first run`, `save`, `warm load`, `measure`, `judge`."""
    message: str
    hint: str | None = None
    log: str | None = None
    """The log file, relative to the run's folder."""
    log_tail: str = ""
    traceback: str = ""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far a case gives the reference's answers, in a figure of the model's task; see `harness.agreement`."""

    figure: str
    """`top-1`, `mAP@0.5`, `rank correlation`, ...: 1 or infinity is the same, less is worse."""
    output: str
    value: float | None
    """None where it is infinite: nothing differs."""
    items: int
    """How many it is over: images, rows, positions."""


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """How a metric differs from another case's on the same samples; see `harness.scoring` for the formulas."""

    against: str
    """Id of the other case."""
    metric: str
    difference: float
    """This case's minus the other's: below zero is worse."""
    low: float
    """Of the 99 % interval, as `high`."""
    high: float
    p: float | None = None
    """Of the exact test that the two are equally good; None where the interval is a bootstrap's."""
    method: str

    @property
    def decided(self) -> bool:
        """Whether the difference is more than noise: by the exact test where there is one, else by the interval."""
        return self.p < 0.01 if self.p is not None else not self.low <= 0 <= self.high


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What a case's engine got right on a labelled data set."""

    dataset: str
    samples: int
    """That were judged."""
    of: int
    """That the data set holds."""
    metrics: dict[str, float] = {}
    """The leading one first."""
    paired: Paired | None = None
    """Against the baseline; None for itself, and where it has no answers."""
    engine_created: str | None = None
    """Which engine answered: another one answers anew."""
    answers: str | None = None
    """File of the answers, relative to the run's folder."""
    failure: Failure | None = None
    """Why there are none."""
