"""What a quantised graph's scales are found on: never what it is judged on. The worker's half; numpy only.

A sample is a set of inputs, a batch. Samples are the user's own, those of a data set, or drawn from a seed that no
judged set is drawn from; whatever equals a judged one is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from harness import inputs, protocol, registry, weights
from harness.artifact import Artifact
from harness.datasets import KINDS, BrokenSample, Dataset, open_dataset
from harness.errors import UsageError

Tensors = Mapping[str, np.ndarray]
OnStep = Callable[[str, int | None, int | None], None]

SEED = 1 << 20
"""Added to the run's seed for drawn samples: more than there are judged sets."""
FEW = 8
"""Samples below which ranges are anyone's guess."""
DIGEST = 12
"""Characters of a set's digest in a report."""


def calibration_sets(source: Artifact, request: protocol.Convert) -> inputs.Sets:
    """Return the samples to calibrate on, at most as many as were asked for, none of them judged.

    Raises:
        UsageError: They do not fit the model, or all of them are judged.
    """
    judged = [source.input_set(index) for index in range(source.manifest.input_sets)]
    # So many more that leaving out the judged ones costs no sample.
    found = _offered(source, request, request.samples + len(judged))
    apart = [index for index in range(len(found)) if not _among(found[index], judged)]
    chosen = apart[: request.samples]
    if not chosen:
        raise UsageError(
            f"--calibration {request.calibration} holds the judged inputs only", hint="calibrate on other samples"
        )
    out = len(found) - len(apart)
    notes = [*found.notes, *([f"{out} calibration samples were left out: they are judged"] if out else [])]
    if len(chosen) < FEW:
        notes.append(
            f"{len(chosen)} calibration samples are few: what is larger in others is cut off; give {FEW} or more"
        )
    return inputs.Sets(count=len(chosen), make=lambda index: found[chosen[index]], files=found.files, notes=notes)


class Reader:
    """What ONNX Runtime's calibration pulls samples from; it needs `get_next` only."""

    def __init__(self, sets: inputs.Sets, progress: OnStep) -> None:
        self._next = 0
        self._sets = sets
        self._progress = progress
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of the samples that were read; empty where none was, since their ranges were known."""
        return self._hash.hexdigest()[:DIGEST] if self._next else ""

    def get_next(self) -> Tensors | None:
        if self._next == len(self._sets):
            return None
        self._progress("calibrating", self._next + 1, len(self._sets))
        self._next += 1
        one = self._sets[self._next - 1]
        for name, array in one.items():
            self._hash.update(f"{name} {array.dtype} {array.shape}".encode())
            self._hash.update(np.ascontiguousarray(array).tobytes())
        return one

    def __len__(self) -> int:
        return len(self._sets)

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError  # asked for only where samples are read in strides, which we do not ask for


def _offered(source: Artifact, request: protocol.Convert, most: int) -> inputs.Sets:
    manifest = source.manifest
    if request.calibration and request.calibration.partition(":")[0] in KINDS:
        return _of_dataset(open_dataset(request.calibration), source, most)
    model = registry.model(manifest.model)
    if not model.inputs:  # known only once it was built
        weights.load(model, request.weights, manifest.dims, manifest.seed, manifest.model)
    ask = protocol.Export(
        model=manifest.model,
        dims=manifest.dims,
        weights=request.weights,
        inputs=request.calibration,
        seed=manifest.seed + SEED,
        opset=manifest.opset,
        input_sets=most,
        threads=1,
        folder=request.folder,
    )
    return inputs.sets(model, ask, manifest.dims, most)


def _of_dataset(dataset: Dataset, source: Artifact, most: int) -> inputs.Sets:
    dataset.refuse_artifact(source.manifest)
    batch = source.inputs[0].shape[0]
    rows: list[Tensors] = []
    broken: list[str] = []
    for item in _items(dataset, most * batch):
        try:
            rows.append(dataset.inputs(item, source.manifest))
        except BrokenSample as exc:
            broken.append(str(exc))
        if len(rows) == most * batch:
            break
    count = len(rows) // batch
    if not count:
        raise UsageError(
            f"--calibration {dataset.text}: expected at least {batch} items for one batch, got {len(rows)}"
            + (f", and {len(broken)} that cannot be read: {broken[0]}" if broken else "")
        )
    notes = [f"{len(broken)} calibration items cannot be read and were left out: {broken[0]}"] if broken else []

    def make(index: int) -> inputs.Tensors:
        part = rows[index * batch : (index + 1) * batch]
        return {spec.name: np.stack([row[spec.name] for row in part]) for spec in source.inputs}

    return inputs.Sets(count=count, make=make, notes=notes)


def _items(dataset: Dataset, most: int) -> Iterator[int]:
    """Yield items of samples drawn at random, the same each time; a few more than are wanted, for those that break."""
    each = dataset.items_per_sample
    for sample in np.random.default_rng(1).permutation(len(dataset))[: 2 * most].tolist():
        yield from range(sample * each, (sample + 1) * each)


def _among(one: Tensors, others: list[dict[str, np.ndarray]]) -> bool:
    return any(all(np.array_equal(array, other[name]) for name, array in one.items()) for other in others)
