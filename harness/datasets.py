"""Labelled data sets: what they hold, whether a model can be judged on them, and how outputs become answers.

The parent opens a data set when the command starts, so that a missing file or an unknown class costs no time; workers
open it again, and read one sample at a time. No framework is imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness import images, registry
from harness.api import Preprocessing
from harness.artifact import Manifest, TensorSpec
from harness.errors import UsageError
from harness.model import Model, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Floats = NDArray[np.float64]

INSTALL = "pip install 'harness[datasets]'"
TOP = 5
CLASSES_FILE = "classes.txt"
DIGITS = "digits"
KINDS = (DIGITS, "folder", "coco", "pairs")
"""What stands before the colon of `--dataset`."""
LISTED = 3


class BrokenSample(Exception):
    """A sample that cannot be read. It is counted, named and left out; too many of them end the run."""


class Dataset(ABC):
    """A labelled data set. Samples count from 0; a sample is one or several items, each one row of a batch."""

    task: ClassVar[Task]
    items_per_sample: ClassVar[int] = 1

    def __init__(self, text: str) -> None:
        self.text = text
        """As the user gave it, with absolute paths."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many samples there are."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What a report calls it."""

    def refuse_model(self, model: Model, name: str) -> None:
        """Hold the data set against a model, before anything is exported.

        Raises:
            UsageError: The model's answers are of another kind.
        """
        if model.task != self.task:
            raise UsageError(
                f"--dataset {self.text} is for models of {self.task}, and {name} is one of {model.task}",
                hint="harness models --json tells the task of each model",
            )

    @abstractmethod
    def refuse_artifact(self, manifest: Manifest) -> None:
        """Hold the data set against an exported model.

        Raises:
            UsageError: Inputs or outputs do not fit the samples or their labels.
        """

    @abstractmethod
    def inputs(self, item: int, manifest: Manifest) -> dict[str, Array]:
        """Return the inputs of one item, without the batch's axis.

        Raises:
            BrokenSample: It cannot be read.
        """

    @abstractmethod
    def answers(self, outputs: Mapping[str, Array], items: Sequence[int]) -> Floats:
        """Return what the scores need of a batch's outputs, as rows; those of rows beyond `items` are padding."""

    def chosen(self, most: int) -> list[int]:
        """Return the samples that are judged, ascending: all, or so many drawn at random, the same each time."""
        if len(self) <= most:
            return list(range(len(self)))
        return sorted(np.random.default_rng(0).permutation(len(self))[:most].tolist())


class Classification(Dataset):
    """What data sets of classes share: the answer is the five highest classes."""

    task: ClassVar[Task] = "classification"
    labels: NDArray[np.int64]
    """Class index of each sample."""
    classes: int

    def refuse_artifact(self, manifest: Manifest) -> None:
        scores = output_of(manifest, lambda shape: len(shape) == 2, "scores of shape (batch, classes)", self.text)
        if scores.shape[1] != self.classes:
            raise UsageError(
                f"--dataset {self.text} has {self.classes} classes, and {manifest.model.label} knows {scores.shape[1]}",
                hint=self.classes_hint,
            )

    @property
    def classes_hint(self) -> str | None:
        """What to do where the number of classes does not fit."""
        return None

    def answers(self, outputs: Mapping[str, Array], items: Sequence[int]) -> Floats:
        scores = next(array for array in outputs.values() if array.ndim == 2 and array.shape[1] == self.classes)
        values = np.nan_to_num(scores[: len(items)].astype(np.float64), nan=-np.inf, neginf=-np.inf)
        return np.argsort(-values, axis=1, kind="stable")[:, :TOP].astype(np.float64)


class DigitImages(Classification):
    """`digits`: the images of scikit-learn's digits that the model `digits` was not trained on."""

    classes = 10

    def __init__(self, text: str) -> None:
        super().__init__(text)
        try:
            from harness.digits import images_and_labels

            self._images, self.labels = images_and_labels(judged=True)
        except ImportError as exc:
            raise UsageError("--dataset digits needs scikit-learn", hint=INSTALL) from exc

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label(self) -> str:
        return "digits"

    def refuse_artifact(self, manifest: Manifest) -> None:
        (spec, *others) = manifest.inputs
        if others or spec.shape[1:] != self._images.shape[1:]:
            raise UsageError(
                f"--dataset digits has images of shape {list(self._images.shape[1:])}, and {manifest.model.label} "
                f"takes {', '.join(f'{one.name} {list(one.shape)}' for one in manifest.inputs)}",
                hint="--model digits",
            )
        super().refuse_artifact(manifest)

    def inputs(self, item: int, manifest: Manifest) -> dict[str, Array]:
        return {manifest.inputs[0].name: self._images[item]}


class ImageFolder(Classification):
    """`folder:PATH`: images in a sub-folder a class, as ImageNet's validation images are kept.

    A sub-folder's class is its number where all are named by numbers, its line in `classes.txt` where there is that
    file, and else its place in the order of names: ImageNet's folders are named so that this is the class index.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path = Path(text.partition(":")[2])
        try:
            folders = sorted(one for one in self._path.iterdir() if one.is_dir() and not one.name.startswith("."))
        except OSError as exc:
            raise UsageError(f"--dataset {text}: {self._path} cannot be read: {exc.strerror}") from exc
        if not folders:
            raise UsageError(
                f"--dataset {text} holds no sub-folders", hint="folder:PATH has a sub-folder with images for each class"
            )
        numbers, self.classes, self._by = self._numbered([folder.name for folder in folders])
        found = [
            (file, number)
            for folder, number in zip(folders, numbers, strict=True)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in images.SUFFIXES and not file.name.startswith(".")
        ]
        if not found:
            raise UsageError(f"--dataset {text} holds no images; known are {', '.join(images.SUFFIXES)}")
        self._files = [file for file, _ in found]
        self.labels = np.array([number for _, number in found], dtype=np.int64)

    def _numbered(self, names: list[str]) -> tuple[list[int], int, str]:
        """Return the class of each sub-folder, the number of classes (0: any), and how it was found."""
        listing = self._path / CLASSES_FILE
        if listing.is_file():
            lines = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
            if unknown := [name for name in names if name not in lines]:
                raise UsageError(
                    f"--dataset {self.text}: {len(unknown)} sub-folders are no class of {CLASSES_FILE}: "
                    f"{_few(unknown)}",
                    hint=f"{CLASSES_FILE} has the name of a sub-folder a line, in the order of the model's classes",
                )
            return [lines.index(name) for name in names], len(lines), CLASSES_FILE
        if all(name.isdecimal() for name in names):
            return [int(name) for name in names], 0, "numbers"
        return list(range(len(names))), len(names), "order"

    def __len__(self) -> int:
        return len(self._files)

    @property
    def label(self) -> str:
        return self._path.name

    @property
    def classes_hint(self) -> str | None:
        return f"name the sub-folders by class numbers, or list all classes in {self._path / CLASSES_FILE}, a line each"

    def refuse_model(self, model: Model, name: str) -> None:
        super().refuse_model(model, name)
        if model.preprocessing is None:
            raise UsageError(f"--dataset {self.text}: {name} does not say how an image becomes its input")

    def refuse_artifact(self, manifest: Manifest) -> None:
        image_input(manifest, self.text)
        if self._by == "numbers":
            scores = output_of(manifest, lambda shape: len(shape) == 2, "scores of shape (batch, classes)", self.text)
            self.classes = scores.shape[1]
            if unknown := sorted({str(label) for label in self.labels if label >= self.classes}):
                raise UsageError(
                    f"--dataset {self.text}: {manifest.model.label} knows the classes 0 to {self.classes - 1}, and "
                    f"there are sub-folders {_few(unknown)}"
                )
        super().refuse_artifact(manifest)

    def inputs(self, item: int, manifest: Manifest) -> dict[str, Array]:
        return read_image(self._files[item], manifest)


def open_dataset(text: str) -> Dataset:
    """Open what `--dataset` names.

    Raises:
        UsageError: There is no such kind of data set, or its files are missing or damaged.
    """
    from harness.coco import CocoDetection
    from harness.sentence_pairs import SentencePairs

    kinds: dict[str, type[Dataset]] = {
        DIGITS: DigitImages,
        "folder": ImageFolder,
        "coco": CocoDetection,
        "pairs": SentencePairs,
    }
    kind, _, rest = text.partition(":")
    if kind not in kinds:
        raise registry.unknown("kind of data set", kind, kinds)
    if bool(rest) == (kind == DIGITS):
        forms = "digits, folder:PATH, coco:ANNOTATIONS.json,IMAGES, pairs:FILE.tsv"
        raise UsageError(f"--dataset {text} is incomplete or has too much", hint=f"known are {forms}")
    return kinds[kind](text)


def output_of(manifest: Manifest, fits: object, what: str, text: str) -> TensorSpec:
    """Return the output that answers are read from, by its shape.

    Raises:
        UsageError: No output has such a shape.
    """
    assert callable(fits)
    for spec in manifest.outputs:
        if fits(spec.shape) and np.issubdtype(np.dtype(spec.dtype), np.floating):
            return spec
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in manifest.outputs)
    raise UsageError(f"--dataset {text} needs {what}, and {manifest.model.label} gives {shapes}")


def image_input(manifest: Manifest, text: str) -> Preprocessing:
    """Return how an image becomes the model's input, at the sizes that it was exported with.

    Raises:
        UsageError: The model takes no images, or they become another shape.
    """
    wanted = registry.model(manifest.model).preprocessing
    (spec, *others) = manifest.inputs
    if wanted is None or others or len(spec.shape) != 4 or spec.shape[1] != 3:
        label = manifest.model.label
        if manifest.model.kind == "reference" or wanted is not None:
            raise UsageError(f"--dataset {text}: {label} takes no images")
        raise UsageError(
            f"--dataset {text}: nothing says how an image becomes the input of {label}",
            hint=f"--model {label}:images=imagenet, or letterbox, or crop",
        )
    height, width = spec.shape[2:]
    wanted = images.sized(wanted, height, width)
    if (wanted.height, wanted.width) != (height, width):
        raise UsageError(
            f"--dataset {text}: images become {wanted.height}x{wanted.width}, and {spec.name} is {height}x{width}"
        )
    return wanted


def read_image(file: Path, manifest: Manifest) -> dict[str, Array]:
    """Return an image file as the model's input.

    Raises:
        BrokenSample: It cannot be read.
    """
    spec = manifest.inputs[0]
    try:
        return {spec.name: images.read(file, image_input(manifest, str(file))).astype(spec.dtype, copy=False)}
    except UsageError as exc:
        raise BrokenSample(exc.message) from exc


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
