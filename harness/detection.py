"""Detections: suppression of doubles outside the engine, and mean average precision by pycocotools.

A set of detections is an array of shape (n, 7): image, class, score, then x and y of the top left corner, width and
height in pixels. A set of objects is an array of shape (n, 8): image, class, x, y, width, height, area, crowd (0 or 1).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CONFIDENCE = 0.001
"""Detections below are left out: the threshold that detectors are scored with, not the one they are used with."""
OVERLAP = 0.7
"""Intersection over union above which the weaker of two boxes of a class is a double."""
CANDIDATES_AT_MOST, DETECTIONS_AT_MOST = 30_000, 300
"""For one image, before and after suppression."""
COCO_DETECTIONS = 100
"""That COCO scores for one image and class."""
INSTALL = "pip install 'harness[metrics]'"


def detections(output: NDArray[np.generic], first_image: int = 0) -> Floats:
    """Return what a detector found: the output's boxes without doubles, strongest first within an image.

    Args:
        output: Shape (batch, 4 + classes, anchors): centre x, centre y, width, height in pixels, then a score for each
            class. A box counts for every class whose score is high enough. Scores that are not finite do not count.
        first_image: Number of the batch's first image.
    """
    found = [_of_image(np.asarray(one, dtype=np.float64), first_image + index) for index, one in enumerate(output)]
    return np.concatenate(found) if found else np.zeros((0, 7))


def _of_image(output: Floats, image: int) -> Floats:
    scores = np.where(np.isfinite(output).all(axis=0), output[4:], 0.0)  # (classes, anchors)
    classes, anchors = np.nonzero(scores > CONFIDENCE)
    strength = scores[classes, anchors]
    order = np.argsort(-strength, kind="stable")[:CANDIDATES_AT_MOST]
    classes, anchors, strength = classes[order], anchors[order], strength[order]
    centre, size = output[:2, anchors].T, output[2:4, anchors].T
    corner = centre - size / 2
    kept = suppress(corner, size, classes)
    columns = (np.full(len(kept), image), classes[kept], strength[kept], corner[kept], size[kept])
    return np.column_stack(columns).astype(np.float64)


def suppress(corner: Floats, size: Floats, classes: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return the indices of the boxes that are no doubles of a stronger one of their class (greedy suppression).

    Args:
        corner: Top left corners, shape (n, 2), strongest first.
        size: Widths and heights, shape (n, 2).
        classes: Shape (n,).
    """
    far, area = corner + size, size.prod(axis=1)
    left = np.arange(len(classes))
    kept: list[int] = []
    while left.size and len(kept) < DETECTIONS_AT_MOST:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        inner = np.minimum(far[best], far[rest]) - np.maximum(corner[best], corner[rest])
        common = np.maximum(inner, 0).prod(axis=1)
        double = common > OVERLAP * (area[best] + area[rest] - common)
        left = rest[~(double & (classes[rest] == classes[best]))]
    return np.array(kept, dtype=np.int_)


def as_objects(found: Floats, at_least: float) -> Floats:
    """Return the detections of at least this score as if they were labelled objects."""
    sure = found[found[:, 2] >= at_least]
    return np.column_stack((sure[:, :2], sure[:, 3:], sure[:, 5] * sure[:, 6], np.zeros(len(sure))))


class MeanPrecision:
    """Mean average precision of detections against objects, over any choice of the images.

    The matching is done once; drawing images again, for a bootstrap, only sums up anew.
    """

    def __init__(
        self, found: Floats, objects: Floats, images: int, *, most: int = COCO_DETECTIONS, classes: Sequence[int] = ()
    ) -> None:
        """Match.

        Args:
            found: Detections.
            objects: What there is to be found.
            images: How many there are; their numbers count from 0.
            most: Detections of one class that count in one image.
            classes: All classes; empty: those of the objects. A class without objects has no precision.

        Raises:
            UsageError: pycocotools is not installed.
        """
        scorer = _scorer()
        self._images = images
        known = list(classes) or sorted({int(number) for number in objects[:, 1]})
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            of = scorer(_labels(objects, images, known), _results(found, images, known), "bbox")
            of.params.areaRng, of.params.areaRngLbl = [[0, 1e10]], ["all"]
            of.params.maxDets = [most]
            of.params.imgIds, of.params.catIds = list(range(images)), known
            of.evaluate()
        self._of, self._matches, self._classes = of, list(of.evalImgs), known

    def values(self, drawn: NDArray[np.int_] | None = None) -> tuple[float, float] | None:
        """Return mAP@0.5 and mAP@0.5:0.95; None where these images hold no object.

        Args:
            drawn: As many numbers of images as there are, with repetitions; None: each once.
        """
        chosen = range(self._images) if drawn is None else drawn
        rows = [number * self._images for number in range(len(self._classes))]
        self._of.evalImgs = [self._matches[row + int(image)] for row in rows for image in chosen]
        with contextlib.redirect_stdout(io.StringIO()):
            self._of.accumulate()
        precision = self._of.eval["precision"]  # (thresholds, recalls, classes, 1, 1); -1: no object of the class
        if not (precision > -1).any():
            return None
        half, all_ = precision[0], precision
        return float(half[half > -1].mean()), float(all_[all_ > -1].mean())


def refuse_without_library() -> None:
    """Raise where mean average precision cannot be computed here.

    Raises:
        UsageError: pycocotools is not installed.
    """
    _scorer()


def _scorer() -> Any:  # a class of pycocotools, which is not typed
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as exc:
        raise UsageError("mean average precision needs pycocotools", hint=INSTALL) from exc
    return COCOeval


def _labels(objects: Floats, images: int, classes: list[int]) -> Any:  # pycocotools' COCO
    return _index(
        [
            {
                "id": number + 1,  # 0 means that nothing was matched
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "bbox": row[2:6].tolist(),
                "area": float(row[6]),
                "iscrowd": int(row[7]),
            }
            for number, row in enumerate(objects)
        ],
        images,
        classes,
    )


def _results(found: Floats, images: int, classes: list[int]) -> Any:
    return _index(
        [
            {
                "id": number + 1,
                "image_id": int(row[0]),
                "category_id": int(row[1]),
                "score": float(row[2]),
                "bbox": row[3:7].tolist(),
                "area": float(row[5] * row[6]),
                "iscrowd": 0,
            }
            for number, row in enumerate(found)
        ],
        images,
        classes,
    )


def _index(annotations: list[dict[str, Any]], images: int, classes: list[int]) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": number} for number in classes],
        "annotations": annotations,
    }
    made.createIndex()
    return made
