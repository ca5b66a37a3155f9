"""Sets of inputs: drawn by the model, or the user's own from .npz files or images, held against the model's inputs."""

from __future__ import annotations

import re
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness import images, protocol
from harness.api import InputSpec, Model, Preprocessing
from harness.errors import UsageError

INPUT_SEED = 1000
"""Input set `i` is drawn with this plus the run's seed plus `i`, so that inputs and weights differ."""
SETS_AT_MOST = 64
ARRAYS = ".npz"
WRITE = "write it with numpy.savez(file, name=array)"
NAMELESS = re.compile(r"arr_\d+")
"""What numpy calls arrays that were saved without a name."""

Tensors = dict[str, np.ndarray]


class ExampleModel(Model):
    """A model that brings one set of inputs. Set 0 is that; the others hold the same elements, drawn again.

    So they are of one distribution, and valid wherever any element may stand anywhere: ids stay ids, masks masks.
    """

    @property
    @abstractmethod
    def examples(self) -> Mapping[str, np.ndarray]:
        """The inputs that it brings, in the order of `forward`'s arguments; known after `build()`.

        Empty where it brings none after all: then sets are drawn as for any model.
        """

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> Tensors:
        if not self.examples:
            return super().example_inputs(dims, seed)
        generator = np.random.default_rng(seed)

        def draw(spec: InputSpec, elements: np.ndarray) -> np.ndarray:
            shape = spec.at(dims)
            if elements.shape == shape:
                return generator.permutation(elements.reshape(-1)).reshape(shape)
            return generator.choice(elements.reshape(-1), shape) if elements.size else np.zeros(shape, elements.dtype)

        return {spec.name: draw(spec, self.examples[spec.name]) for spec in self.inputs}


@dataclass(frozen=True, kw_only=True)
class Sets:
    """All sets of inputs. Drawn ones are made when they are asked for: a large set need not stay in memory."""

    count: int
    make: Callable[[int], Tensors]
    files: list[str] = field(default_factory=list)
    """The user's files that they came from."""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensors:
        return self.make(index)


def sets(model: Model, request: protocol.Export, dims: Mapping[str, int], most: int = SETS_AT_MOST) -> Sets:
    """Return the sets that a request asks for: the user's own, `most` of them, or drawn ones.

    Raises:
        UsageError: The user's own do not fit the model.
    """
    if request.inputs is not None:
        return _read(Path(request.inputs), model.inputs, dims, model.preprocessing, most)
    examples: Tensors | None = None
    said = []
    if isinstance(model, ExampleModel) and model.examples:
        brought = dict(model.examples)
        examples = brought if all(brought[spec.name].shape == spec.at(dims) for spec in model.inputs) else None
        first = "input sets hold" if examples is None else "input set 0 is the model's own example; the others hold"
        said = [f"{first} the elements of the model's example, drawn again"]

    def make(index: int) -> Tensors:
        if index == 0 and examples is not None:
            return examples
        return model.example_inputs(dims, INPUT_SEED + request.seed + index)

    return Sets(count=request.input_sets, make=make, notes=said)


def read(
    path: Path, specs: Sequence[InputSpec], dims: Mapping[str, int], preprocessing: Preprocessing | None
) -> list[Tensors]:
    """Return the sets in an .npz file, in a folder of them, or in a folder of images, in order of their names.

    Raises:
        UsageError: There are none, or one does not fit; the message names the file and the input, what was expected
            and what was got.
    """
    found = _read(path, specs, dims, preprocessing)
    return [found[index] for index in range(len(found))]


def _read(
    path: Path,
    specs: Sequence[InputSpec],
    dims: Mapping[str, int],
    preprocessing: Preprocessing | None,
    most: int = SETS_AT_MOST,
) -> Sets:
    arrays, pictures = _files(path)
    if arrays and pictures:
        raise UsageError(f"{path} holds both {ARRAYS} files and images", hint="put them in folders of their own")
    if pictures:
        return _from_images(path, pictures, specs, dims, preprocessing, most)
    used = arrays[:most]
    left = [f"the first {len(used)} of {len(arrays)} input files are used"] if len(arrays) > len(used) else []
    return _given([_checked(file, _arrays(file, specs), specs, dims) for file in used], used, left)


def _given(tensors: list[Tensors], files: list[Path], said: list[str]) -> Sets:
    return Sets(count=len(tensors), make=tensors.__getitem__, files=[str(file) for file in files], notes=said)


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the .npz files and the images: the one that was given, or all in the folder."""
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint=f"--inputs FILE{ARRAYS}, or a folder of them or of images")
    try:
        candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    files = [file.absolute() for file in candidates if file.is_file() and not file.name.startswith(".")]
    arrays = [file for file in files if file.suffix.lower() == ARRAYS]
    pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    if not arrays and not pictures:
        known = f"{ARRAYS}, {', '.join(images.SUFFIXES)}"
        raise UsageError(
            f"{path} {'holds no inputs' if path.is_dir() else 'is not a file of inputs'}; known are {known}"
        )
    return arrays, pictures


# ---- arrays


def _arrays(file: Path, specs: Sequence[InputSpec]) -> Tensors:
    names = [spec.name for spec in specs]
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{file} cannot be read: it is no {ARRAYS} archive", hint=WRITE)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as exc:
        if "allow_pickle" in str(exc):
            raise UsageError(f"{file} holds Python objects, which are never unpickled; save plain arrays") from exc
        raise UsageError(f"{file} cannot be read: {exc}", hint=WRITE) from exc
    if arrays and len(arrays) == len(names) and all(NAMELESS.fullmatch(name) for name in arrays):
        arrays = dict(zip(names, arrays.values(), strict=True))
    if set(arrays) != set(names):
        raise UsageError(
            f"{file}: expected the inputs {', '.join(names)}, got {', '.join(arrays) or 'none'}",
            hint=f"numpy.savez(file, {', '.join(f'{name}=...' for name in names)})",
        )
    return {name: arrays[name] for name in names}


def _checked(file: Path, arrays: Tensors, specs: Sequence[InputSpec], dims: Mapping[str, int]) -> Tensors:
    return {spec.name: _fitting(file, spec, arrays[spec.name], dims) for spec in specs}


def _fitting(file: Path, spec: InputSpec, array: np.ndarray, dims: Mapping[str, int]) -> np.ndarray:
    expected = spec.at(dims)
    if array.shape != expected:
        raise UsageError(
            f"{file}: input '{spec.name}': expected the shape {list(expected)}, got {list(array.shape)}",
            hint=_size_hint(spec, array.shape, dims),
        )
    wanted = np.dtype(spec.dtype)
    floating = np.issubdtype(array.dtype, np.floating)
    if floating and not np.isfinite(array).all():
        raise UsageError(f"{file}: input '{spec.name}' holds NaN or infinite values")
    if array.dtype == wanted:
        return array
    integers = np.issubdtype(array.dtype, np.integer) and np.issubdtype(wanted, np.integer)
    if not integers and not (floating and np.issubdtype(wanted, np.floating)):
        raise UsageError(f"{file}: input '{spec.name}': expected {wanted}, got {array.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    # Rounding a float is what a model of that precision does anyway; an integer is an id, which must not change.
    if not (np.array_equal(cast, array) if integers else np.isfinite(cast).all()):
        raise UsageError(
            f"{file}: input '{spec.name}': expected {wanted}, got {array.dtype} with values that do not fit into it"
        )
    return cast


def _size_hint(spec: InputSpec, got: tuple[int, ...], dims: Mapping[str, int]) -> str | None:
    if len(got) != len(spec.shape):
        return None
    pairs = list(zip(spec.shape, got, strict=True))
    if any(isinstance(size, int) and size != given for size, given in pairs):
        return None
    changes = {size: given for size, given in pairs if isinstance(size, str) and dims[size] != given}
    return " ".join(f"--dim {name}={size}" for name, size in changes.items())


# ---- images


def _from_images(
    path: Path,
    pictures: list[Path],
    specs: Sequence[InputSpec],
    dims: Mapping[str, int],
    preprocessing: Preprocessing | None,
    most: int,
) -> Sets:
    if preprocessing is None or len(specs) != 1:
        raise UsageError(
            f"{path}: this model takes no images; its inputs are {', '.join(spec.name for spec in specs)}",
            hint=f"give arrays: --inputs FILE{ARRAYS}",
        )
    spec = specs[0]
    shape = spec.at(dims)
    if not preprocessing.height and len(shape) == 4:
        preprocessing = images.sized(preprocessing, *shape[2:])
    item = (3, preprocessing.height, preprocessing.width)
    if shape[1:] != item:
        raise UsageError(f"{path}: images become {list(item)}, input '{spec.name}' takes {list(shape[1:])}")
    batch = shape[0]
    count = min(len(pictures) // batch, most)
    if not count:
        raise UsageError(f"{path}: expected at least {batch} images for one batch, got {len(pictures)}")
    used = pictures[: count * batch]
    left = [f"the first {len(used)} of {len(pictures)} images are used"] if len(pictures) > len(used) else []
    batches = [used[start : start + batch] for start in range(0, len(used), batch)]
    stacked = [np.stack([images.read(file, preprocessing) for file in chosen]) for chosen in batches]
    return _given([{spec.name: array.astype(spec.dtype, copy=False)} for array in stacked], used, left)


# ---- what models say of themselves


def dims(model: Model) -> dict[str, int]:
    """Return the free dimensions of a model that have a size unless the user sets one."""
    return dict(getattr(model, "dims", {}))


def notes(model: Model) -> list[str]:
    """Return what a model wants the report to say."""
    return list(getattr(model, "notes", ()))


def sources(model: Model) -> list[str]:
    """Return the user's files that a model was read from."""
    return list(getattr(model, "sources", ()))
