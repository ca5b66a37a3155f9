"""Handwritten digits that come with scikit-learn: 1797 images of 8x8 pixels, UCI's test set of optical digits."""

from __future__ import annotations

import numpy as np

SIDE = 8
BRIGHTEST = 16
"""Pixels are counts of 0 to 16."""
JUDGED_OF = 3
"""Every third image is for judging. The images lie in the order of their writers, so all writers are in both parts."""


def images_and_labels(*, judged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return one part of the images, float32 of shape (n, 1, 8, 8) in [0, 1], and their labels, int64."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = (np.arange(len(labels)) % JUDGED_OF == 0) == judged
    images = (pixels / BRIGHTEST).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    return np.ascontiguousarray(images[chosen]), labels[chosen].astype(np.int64)
