"""From answers to accuracy, and whether a difference of two cases on the same samples is more than noise.

| answers | metrics, the leading one first | difference |
|---|---|---|
| classes | top-1, top-5 | interval of Bonett and Price (2012), p by McNemar's exact test |
| detections | mAP@0.5:0.95, mAP@0.5 | paired bootstrap over images |
| embeddings of pairs | Spearman's rank correlation of cosine and score | paired bootstrap over pairs |

With b samples that only the candidate has right, c that only the other has, of n: b' = (b + 1) / (n + 2), c' likewise,
and the interval is b' - c' +- z sqrt((b' + c' - (b' - c')^2) / (n + 2)), which keeps its coverage where b and c are few
or none. McNemar's test is the binomial test of b in b + c. A bootstrap draws the same samples for both, and its
interval is the difference +- z times its standard error. z is of 99 %, as everywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness import detection
from harness.agreement import rank_correlation
from harness.artifact import Manifest
from harness.coco import CocoDetection
from harness.datasets import Classification, Dataset
from harness.records import Paired
from harness.sentence_pairs import SentencePairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

CONFIDENCE = 0.99
RESAMPLES = 1000
RESAMPLES_OF_DETECTIONS = 200
"""Enough for a standard error; one takes a tenth of a second on a few thousand images."""


class Scored(ABC):
    """The answers of one case, next to what is right."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics, the leading one first; each is 1 at best."""

    @abstractmethod
    def against(self, other: Scored, name: str) -> Paired | None:
        """Return how the leading metric differs from another case's on the same samples; None where it has none."""


class ScoredClasses(Scored):
    """Classes, the highest first: shape (samples, up to 5)."""

    def __init__(self, answers: Floats, labels: Integers) -> None:
        hits = answers == labels[:, None]
        self._first, self._five = hits[:, 0], hits.any(axis=1)

    def metrics(self) -> dict[str, float]:
        return {"top-1": float(self._first.mean()), "top-5": float(self._five.mean())}

    def against(self, other: Scored, name: str) -> Paired | None:
        assert isinstance(other, ScoredClasses)
        gained, lost = int((self._first & ~other._first).sum()), int((~self._first & other._first).sum())
        return paired_shares(gained, lost, len(self._first), name)


class _Bootstrapped(Scored):
    """What is compared by drawing samples again."""

    leading: str
    resamples: int

    def __init__(self, count: int) -> None:
        self._count = count

    @abstractmethod
    def value(self, drawn: NDArray[np.int_] | None) -> float | None:
        """Return the leading metric over samples drawn with repetitions; None: over each once."""

    def against(self, other: Scored, name: str) -> Paired | None:
        assert isinstance(other, _Bootstrapped)
        ours, theirs = self.value(None), other.value(None)
        if ours is None or theirs is None:
            return None
        generator = np.random.default_rng(0)
        differences = []
        for _ in range(self.resamples):
            drawn = generator.integers(0, self._count, self._count)
            one, two = self.value(drawn), other.value(drawn)
            if one is not None and two is not None:
                differences.append(one - two)
        half = _z() * float(np.std(differences, ddof=1)) if len(differences) > 1 else math.inf
        if not math.isfinite(half):
            return None
        difference = ours - theirs
        return Paired(
            against=name,
            metric=self.leading,
            difference=difference,
            low=difference - half,
            high=difference + half,
            p=None,
            method=f"paired bootstrap, {len(differences)} resamples",
        )


class ScoredPairs(_Bootstrapped):
    """Cosines of pairs."""

    leading = "Spearman"
    resamples = RESAMPLES

    def __init__(self, answers: Floats, scores: Floats) -> None:
        super().__init__(len(scores))
        first, second = answers[0::2], answers[1::2]
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            cosines = (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
        self._cosines = np.where(np.isfinite(cosines), cosines, -1.0)
        self._scores = scores

    def metrics(self) -> dict[str, float]:
        value = self.value(None)
        return {self.leading: 0.0 if value is None else value}

    def value(self, drawn: NDArray[np.int_] | None) -> float | None:
        chosen = slice(None) if drawn is None else drawn
        return rank_correlation(self._cosines[chosen], self._scores[chosen])


class ScoredDetections(_Bootstrapped):
    """Boxes in pixels of their images, images numbered without gaps."""

    leading = "mAP@0.5:0.95"
    resamples = RESAMPLES_OF_DETECTIONS

    def __init__(self, answers: Floats, objects: Floats, images: int, classes: int) -> None:
        super().__init__(images)
        self._precision = detection.MeanPrecision(answers, objects, images, classes=range(classes))

    def metrics(self) -> dict[str, float]:
        half, all_ = self._precision.values() or (0.0, 0.0)
        return {self.leading: all_, "mAP@0.5": half}

    def value(self, drawn: NDArray[np.int_] | None) -> float | None:
        found = self._precision.values(drawn)
        return None if found is None else found[1]


def score(dataset: Dataset, answers: Floats, samples: Sequence[int], manifest: Manifest) -> Scored:
    """Hold answers against a data set's labels.

    Args:
        dataset: Where the labels are.
        answers: What `dataset.answers()` gave, in the order of the samples.
        samples: Which samples were judged.
        manifest: Of the artifact that gave the answers.
    """
    chosen = np.array(samples, dtype=np.int64)
    if isinstance(dataset, Classification):
        return ScoredClasses(answers, dataset.labels[chosen])
    if isinstance(dataset, SentencePairs):
        return ScoredPairs(answers, dataset.scores[chosen])
    assert isinstance(dataset, CocoDetection)
    places = {int(sample): place for place, sample in enumerate(samples)}
    found = dataset.in_pixels(answers, manifest)
    objects = dataset.objects[np.isin(dataset.objects[:, 0], chosen)].copy()
    for rows in (found, objects):
        rows[:, 0] = [places[int(image)] for image in rows[:, 0]]
    return ScoredDetections(found, objects, len(samples), dataset.classes)


def paired_shares(gained: int, lost: int, count: int, name: str) -> Paired:
    """Return the difference of two shares over the same samples, with its interval and McNemar's exact p.

    Args:
        gained: Samples that only the candidate has right.
        lost: Samples that only the other has right.
        count: All samples.
        name: The other's id.
    """
    from scipy import stats

    b, c = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = _z() * math.sqrt((b + c - (b - c) ** 2) / (count + 2))
    unequal = gained + lost
    return Paired(
        against=name,
        metric="top-1",
        difference=(gained - lost) / count,
        low=max(-1.0, b - c - half),
        high=min(1.0, b - c + half),
        p=float(stats.binomtest(gained, unequal).pvalue) if unequal else 1.0,
        method=f"McNemar's exact test, {gained} gained and {lost} lost",
    )


def _z() -> float:
    from scipy import stats

    return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
