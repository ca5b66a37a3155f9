"""What a user's own model cannot say of itself: its task, and how images or sentences become its inputs.

Settings of `--model`, as in `--model net.onnx:task=classification,images=imagenet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from harness.errors import UsageError
from harness.model import Model, Preprocessing, Task

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES: Mapping[str, Preprocessing] = {
    # Without sizes: those of the input, once they are known.
    "letterbox": Preprocessing(height=0, width=0, resize="letterbox", resize_to=0),
    "crop": Preprocessing(height=0, width=0, resize="crop", resize_to=0),
    "imagenet": Preprocessing(height=0, width=0, resize="crop", resize_to=0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
}
"""RGB in [0, 1], for `imagenet` with ImageNet's mean and deviation taken out."""


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a user's own model, besides the sizes of its free dimensions."""

    task: Task | None = None
    images: Literal["letterbox", "crop", "imagenet"] | None = None
    tokenizer: str | None = None
    """Absolute path of a `tokenizer.json`."""


SETTINGS = Declared.__struct_fields__


def declared(reference: str, raw: Mapping[str, str]) -> dict[str, str]:
    """Check the settings that a user gave.

    Raises:
        UsageError: A value is none of those that there are, or the tokenizer is not there.
    """
    from harness import choices  # it needs the registry, which needs this module

    try:
        found = msgspec.convert(dict(raw), type=Declared)
    except msgspec.ValidationError as exc:
        raise choices.refusal(
            exc, Declared, raw, of=reference, hint="--model net.onnx:task=classification,images=imagenet"
        ) from exc
    if found.tokenizer and not Path(found.tokenizer).is_file():
        raise UsageError(f"settings of {reference}: {found.tokenizer} does not exist", hint="tokenizer=tokenizer.json")
    return dict(raw)


def declare(model: Model, options: Mapping[str, object]) -> Model:
    """Tell a model what its user said of it, and return it."""
    found = msgspec.convert(dict(options), type=Declared)
    model.task = found.task or model.task
    model.preprocessing = IMAGES[found.images] if found.images else model.preprocessing
    model.tokenizer_file = Path(found.tokenizer) if found.tokenizer else None
    return model
