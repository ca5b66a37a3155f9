"""Images as inputs: read with Pillow, made upright, resized and normalised as a model wants them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api import Preprocessing
from harness.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
GREY = 114
"""What a letterbox is padded with: the value that YOLO models are trained with."""
SIXTEEN_BITS = 65535.0
CROPPED_FROM = 256 / 224
"""The shorter side is resized to this times what is cropped, as classifiers of ImageNet are judged."""


def sized(preprocessing: Preprocessing, height: int, width: int) -> Preprocessing:
    """Return how an image becomes an input of this size, where the model leaves that open."""
    if preprocessing.height and preprocessing.resize == "crop":
        return preprocessing
    return replace(preprocessing, height=height, width=width, resize_to=round(min(height, width) * CROPPED_FROM))


def read(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Return an image as float32 of shape (3, height, width), RGB, normalised.

    Raises:
        UsageError: Pillow is not installed, or the file is not an image that it can read.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise UsageError(f"{path}: reading images needs Pillow", hint="pip install 'harness[images]'") from exc
    try:
        with Image.open(path) as opened:
            # Cameras store how they were held; what the user sees is the upright image.
            image = _rgb(ImageOps.exif_transpose(opened))
    except Exception as exc:  # Pillow raises many kinds for files that are cut short, hostile or no images
        raise UsageError(f"{path} cannot be read as an image: {exc}", hint="take it out of the folder") from exc
    fitted = _cropped(image, preprocessing) if preprocessing.resize == "crop" else _letterboxed(image, preprocessing)
    pixels: np.ndarray = np.asarray(fitted, dtype=np.float32) / np.float32(255)  # (height, width, 3)
    pixels = (pixels - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _rgb(image: Image) -> Image:
    from PIL import Image as pillow

    if image.mode.startswith("I"):  # greyscale of 16 bits, which Pillow would clip at 255
        values: np.ndarray = np.asarray(image, dtype=np.float64)
        image = pillow.fromarray(np.clip(values * (255 / SIXTEEN_BITS), 0, 255).round().astype(np.uint8))
    return image.convert("RGB")


def _cropped(image: Image, wanted: Preprocessing) -> Image:
    scale = wanted.resize_to / min(image.size)
    resized = _resized(image, scale, at_least=(wanted.width, wanted.height))
    left, top = (resized.width - wanted.width) // 2, (resized.height - wanted.height) // 2
    return resized.crop((left, top, left + wanted.width, top + wanted.height))


def _letterboxed(image: Image, wanted: Preprocessing) -> Image:
    from PIL import Image as pillow

    scale = min(wanted.width / image.width, wanted.height / image.height)
    resized = _resized(image, scale, at_least=(1, 1))
    canvas = pillow.new("RGB", (wanted.width, wanted.height), (GREY, GREY, GREY))
    canvas.paste(resized, ((wanted.width - resized.width) // 2, (wanted.height - resized.height) // 2))
    return canvas


def _resized(image: Image, scale: float, *, at_least: tuple[int, int]) -> Image:
    from PIL import Image as pillow

    size = (max(at_least[0], round(image.width * scale)), max(at_least[1], round(image.height * scale)))
    return image.resize(size, pillow.Resampling.BILINEAR)
