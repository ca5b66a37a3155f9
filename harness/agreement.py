"""Agreement with the reference in the words of the model's task. Pure functions of arrays, numpy and scipy only.

Distances of elements say whether the arithmetic is right; these figures say what the task notices of it. They need no
labels: the reference's own answers are what is right. All are over the items of all input sets together.

| task | output | figures |
|---|---|---|
| classification | floating, (rows, classes) | top-1, top-5: as `drift.agreement`, over rows |
| detection | (batch, 4 + classes, anchors) | mAP@0.5:0.95, mAP@0.5 of the detections, the reference's as objects |
| embedding | floating, (rows, width) | lowest cosine of a row; Spearman's rank correlation of the pairs' similarities |
| tokens | floating, (batch, positions, vocabulary) | share of positions with the same first token |
| image, latent | floating, (batch, channels, height, width) | PSNR and SSIM of the worst item |

PSNR is 20 log10(range / RMSE) dB with the range of the reference's item; SSIM as in Wang et al. 2004 (Gaussian window,
sigma 1.5), over channels. An image of the candidate's that holds NaN or infinities counts as 0 in both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from harness import detection, drift
from harness.errors import UsageError
from harness.records import Agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = Mapping[str, "NDArray[np.generic]"]

SURE = 0.25
"""Score from which on a detection of the reference counts as an object: what detectors are used with."""
RANKED_AT_LEAST = 3
"""Pairs below which there is no rank correlation: two numbers are in one order or the other."""
ROUNDING = 12
"""Decimals of a cosine: rows that are equal bit for bit must not seem to differ."""
WINDOW = 11
"""Side of SSIM's window in pixels: three and a half times its sigma to both sides."""


class Gauge(ABC):
    """Collects what an output says, input set by input set, and keeps only what its figures need."""

    @staticmethod
    @abstractmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        """Say whether an output has this task's form."""

    @abstractmethod
    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        """Take one input set's output; both have the same shape."""

    @abstractmethod
    def figures(self) -> dict[str, float | None]:
        """Return the figures by name, the most telling first. None: no error at all on a scale that has no end."""

    @property
    @abstractmethod
    def items(self) -> int:
        """How many items the figures are over."""


class Classes(Gauge):
    """Classification: the same classes on top."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, float, float]] = []

    @staticmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        return reference.ndim == 2 and reference.shape[0] > 0 and reference.shape[1] > 1

    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        self._rows.append((len(reference), *drift.agreement(candidate, reference)))

    def figures(self) -> dict[str, float | None]:
        count, first, five = np.array(self._rows).T
        return {"top-1": float(first @ count / count.sum()), "top-5": float(five @ count / count.sum())}

    @property
    def items(self) -> int:
        return sum(count for count, _, _ in self._rows)


class Tokens(Gauge):
    """Decoders: the same token at a position."""

    def __init__(self) -> None:
        self._same: list[bool] = []

    @staticmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        return reference.ndim == 3 and reference.size > 0 and reference.shape[2] > 1

    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        def first(scores: NDArray[np.generic]) -> NDArray[np.int_]:
            values = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
            return np.asarray(np.argmax(values, axis=-1))

        self._same += (first(candidate) == first(reference)).reshape(-1).tolist()

    def figures(self) -> dict[str, float | None]:
        return {"same token": float(np.mean(self._same))}

    @property
    def items(self) -> int:
        return len(self._same)


class Embeddings(Gauge):
    """Encoders: the same direction, and the same order of neighbours."""

    def __init__(self) -> None:
        self._rows: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    @staticmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        return reference.ndim == 2 and reference.shape[0] > 0 and reference.shape[1] > 1

    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        self._rows.append((_directions(candidate), _directions(reference)))

    def figures(self) -> dict[str, float | None]:
        candidate, reference = (np.concatenate(side) for side in zip(*self._rows, strict=True))
        found: dict[str, float | None] = {"cosine": round(float((candidate * reference).sum(axis=1).min()), ROUNDING)}
        pairs = np.triu_indices(len(reference), k=1)
        if len(pairs[0]) >= RANKED_AT_LEAST:
            found["rank correlation"] = rank_correlation(
                (candidate @ candidate.T)[pairs], (reference @ reference.T)[pairs]
            )
        return found

    @property
    def items(self) -> int:
        return sum(len(reference) for _, reference in self._rows)


class Images(Gauge):
    """Decoders of images, and what works on latents: how much of the picture is noise."""

    def __init__(self) -> None:
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    @staticmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        return reference.ndim == 4 and reference.size > 0

    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        for got, expected in zip(candidate.astype(np.float64), reference.astype(np.float64), strict=True):
            extent = float(np.ptp(expected))
            sound = bool(np.isfinite(got).all())
            self._psnr.append(_psnr(got, expected, extent) if sound else 0.0)
            if min(expected.shape[1:]) >= WINDOW and extent > 0:
                self._ssim.append(_ssim(got, expected, extent) if sound else 0.0)

    def figures(self) -> dict[str, float | None]:
        worst = min(self._psnr)
        found: dict[str, float | None] = {"PSNR dB": worst if math.isfinite(worst) else None}
        return found | ({"SSIM": min(self._ssim)} if self._ssim else {})

    @property
    def items(self) -> int:
        return len(self._psnr)


class Detections(Gauge):
    """Detectors: the same objects at the same places."""

    def __init__(self) -> None:
        self._images = 0
        self._found: list[NDArray[np.float64]] = []
        self._objects: list[NDArray[np.float64]] = []

    @staticmethod
    def fits(reference: NDArray[np.generic]) -> bool:
        return reference.ndim == 3 and reference.shape[1] > 4 and reference.size > 0

    def add(self, candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        self._found.append(detection.detections(candidate, self._images))
        self._objects.append(detection.as_objects(detection.detections(reference, self._images), SURE))
        self._images += len(reference)

    def figures(self) -> dict[str, float | None]:
        found, objects = np.concatenate(self._found), np.concatenate(self._objects)
        if not len(objects):
            return {}
        most = detection.DETECTIONS_AT_MOST
        values = detection.MeanPrecision(found, objects, self._images, most=most).values()
        return {} if values is None else {"mAP@0.5:0.95": values[1], "mAP@0.5": values[0]}

    @property
    def items(self) -> int:
        return self._images


GAUGES: Mapping[str, type[Gauge]] = {
    "classification": Classes,
    "detection": Detections,
    "embedding": Embeddings,
    "tokens": Tokens,
    "image": Images,
    "latent": Images,
}


class TaskJudge:
    """The agreement of one case, input set by input set."""

    def __init__(self, task: str) -> None:
        self._kind = GAUGES.get(task)
        self._gauges: dict[str, Gauge] = {}
        self.lacks: str | None = None
        """What keeps a figure from being computed here, and what to do about it."""

    def add(self, candidate: Tensors, reference: Tensors) -> None:
        """Take the outputs of one input set. Those that are missing or misshapen are the drift's finding, not ours."""
        if self._kind is None or self.lacks:
            return
        for name, expected in reference.items():
            got = candidate.get(name)
            usable = np.issubdtype(expected.dtype, np.floating) and self._kind.fits(expected)
            if got is None or got.shape != expected.shape or not usable:
                continue
            try:
                self._gauges.setdefault(name, self._kind()).add(got, expected)
            except UsageError as exc:
                self.lacks = f"{exc.message}: {exc.hint}"

    def agreements(self) -> list[Agreement]:
        """Return all figures, those of an output together."""
        if self.lacks:
            return []
        try:
            return [
                Agreement(figure=name, output=output, value=value, items=gauge.items)
                for output, gauge in self._gauges.items()
                for name, value in gauge.figures().items()
            ]
        except UsageError as exc:
            self.lacks = f"{exc.message}: {exc.hint}"
            return []


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation; None where one side is all the same, which has no order."""
    from scipy import stats

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)


def _directions(rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return rows of length one; one that is zero or not finite has no direction and becomes zero."""
    values = rows.astype(np.float64)
    values[~np.isfinite(values).all(axis=1)] = 0.0
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


def _psnr(got: NDArray[np.float64], expected: NDArray[np.float64], extent: float) -> float:
    error = math.sqrt(float(np.mean((got - expected) ** 2)))
    if error == 0:
        return math.inf
    return 20 * math.log10(extent / error) if extent > 0 else 0.0


def _ssim(got: NDArray[np.float64], expected: NDArray[np.float64], extent: float) -> float:
    try:
        from skimage.metrics import structural_similarity
    except ImportError as exc:
        raise UsageError("SSIM needs scikit-image", hint=detection.INSTALL) from exc
    value = structural_similarity(
        expected,
        got,
        data_range=extent,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)
