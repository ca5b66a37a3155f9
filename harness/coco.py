"""`coco:ANNOTATIONS.json,IMAGES`: labelled boxes in COCO's format, and the folder of their images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness import detection
from harness.artifact import Manifest
from harness.datasets import BrokenSample, Dataset, image_input, output_of, read_image
from harness.errors import UsageError
from harness.model import Model, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Floats = NDArray[np.float64]

HINT = "coco:ANNOTATIONS.json,IMAGES as COCO publishes them: instances_val2017.json and the folder val2017"


class CocoDetection(Dataset):
    """Images with boxes. A category's class is its place in the order of category ids, as detectors are trained."""

    task: ClassVar[Task] = "detection"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        file, _, folder = text.partition(":")[2].rpartition(",")
        self._file, self._folder = Path(file), Path(folder)
        for path, there in ((self._file, self._file.is_file()), (self._folder, self._folder.is_dir())):
            if not there:
                raise UsageError(f"--dataset {text}: {path} does not exist", hint=HINT)
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            self._read(content)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(
                f"--dataset {text}: {self._file} is not in COCO's format: {type(exc).__name__} {exc}", hint=HINT
            ) from exc
        missing = [name for name in self._names if not (self._folder / name).is_file()]
        if len(missing) == len(self._names):
            raise UsageError(f"--dataset {text}: {self._folder} holds none of the {len(missing)} images", hint=HINT)

    def _read(self, content: dict[str, Any]) -> None:  # a JSON document: what lies in it is not known by type
        classes = {one["id"]: place for place, one in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
        places = {one["id"]: place for place, one in enumerate(content["images"])}
        if not classes or not places:
            raise ValueError("no images or no categories")
        self.classes = len(classes)
        self._names = [str(one["file_name"]) for one in content["images"]]
        self._sizes = [(int(one["width"]), int(one["height"])) for one in content["images"]]
        boxes = []
        for one in content["annotations"]:
            if one["category_id"] not in classes or one["image_id"] not in places:
                raise ValueError(f"annotation {one['id']} is of an unknown category or image")
            x, y, width, height = map(float, one["bbox"])
            area, crowd = float(one.get("area", width * height)), int(one.get("iscrowd", 0))
            boxes.append((places[one["image_id"]], classes[one["category_id"]], x, y, width, height, area, crowd))
        self.objects: Floats = np.array(boxes, dtype=np.float64).reshape(-1, 8)
        """As `harness.detection` has them, in pixels of the image."""

    def __len__(self) -> int:
        return len(self._names)

    @property
    def label(self) -> str:
        return self._file.stem

    def refuse_model(self, model: Model, name: str) -> None:
        super().refuse_model(model, name)
        if model.preprocessing is None:
            raise UsageError(f"--dataset {self.text}: {name} does not say how an image becomes its input")
        detection.refuse_without_library()

    def refuse_artifact(self, manifest: Manifest) -> None:
        image_input(manifest, self.text)
        boxes = output_of(manifest, lambda shape: len(shape) == 3, "boxes of shape (batch, 4 + n, anchors)", self.text)
        known = boxes.shape[1] - 4
        if known != self.classes:
            raise UsageError(
                f"--dataset {self.text} has {self.classes} categories, and {manifest.model.label} knows {known}",
                hint="the annotations must list every category that the model was trained on, also those without boxes",
            )

    def inputs(self, item: int, manifest: Manifest) -> dict[str, Array]:
        from PIL import Image

        file = self._folder / self._names[item]
        try:
            with Image.open(file) as opened:
                size = opened.size
        except Exception as exc:  # Pillow raises many kinds for files that are cut short, hostile or no images
            raise BrokenSample(f"{file} cannot be read as an image: {exc}") from exc
        if size != self._sizes[item]:
            raise BrokenSample(
                f"{file} is {size[0]}x{size[1]}, its boxes are of {'x'.join(map(str, self._sizes[item]))}"
            )
        return read_image(file, manifest)

    def answers(self, outputs: Mapping[str, Array], items: Sequence[int]) -> Floats:
        """Return detections, in pixels of the letterbox, under the numbers of their images."""
        boxes = next(array for array in outputs.values() if array.ndim == 3)
        found = detection.detections(boxes[: len(items)])
        found[:, 0] = np.array(items, dtype=np.float64)[found[:, 0].astype(np.int64)]
        return found

    def in_pixels(self, found: Floats, manifest: Manifest) -> Floats:
        """Return detections in pixels of their own image: the letterbox's scale and borders taken out."""
        height, width = manifest.inputs[0].shape[2:]
        sizes = np.array(self._sizes, dtype=np.float64)[found[:, 0].astype(np.int64)]
        scale = np.minimum(width / sizes[:, 0], height / sizes[:, 1])[:, None]
        border = (np.array([width, height]) - np.maximum(1, np.round(sizes * scale))) // 2
        moved = found.copy()
        moved[:, 3:5] = (found[:, 3:5] - border) / scale
        moved[:, 5:7] = found[:, 5:7] / scale
        return moved
