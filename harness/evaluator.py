"""The worker's half of judging an engine on labelled data: read samples, run them batch by batch, keep the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.api import Session
from harness.artifact import Artifact
from harness.datasets import BrokenSample, Dataset, open_dataset
from harness.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OnStep = Callable[[str, int | None, int | None], None]


def screen(text: str, artifact: Artifact, most: int, progress: OnStep) -> tuple[list[int], dict[int, str]]:
    """Read every sample once, without running anything, and return those that can be judged and those that cannot.

    Raises:
        UsageError: The data set does not fit the model.
    """
    dataset = open_dataset(text)
    dataset.refuse_artifact(artifact.manifest)
    sound, broken = [], {}
    chosen = dataset.chosen(most)
    for done, sample in enumerate(chosen):
        progress(f"reading {dataset.label}", done, len(chosen))
        try:
            for item in _items(dataset, [sample]):
                _fitting(dataset, item, artifact)
            sound.append(sample)
        except BrokenSample as exc:
            broken[sample] = str(exc)
    return sound, broken


def evaluate(dataset: Dataset, session: Session, artifact: Artifact, samples: Sequence[int]) -> NDArray[np.float64]:
    """Return the answers of a session for these samples, in their order.

    The last batch is filled up with its last item: engines take whole batches.

    Raises:
        RunError: The session failed.
    """
    batch = artifact.inputs[0].shape[0]
    items = _items(dataset, samples)
    answers = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        rows = [_fitting(dataset, item, artifact) for item in part]
        rows += [rows[-1]] * (batch - len(rows))
        session.bind({spec.name: np.stack([row[spec.name] for row in rows]) for spec in artifact.inputs})
        session.execute()
        session.synchronize()
        answers.append(dataset.answers(session.outputs(), part))
    return np.concatenate(answers)


def _items(dataset: Dataset, samples: Sequence[int]) -> list[int]:
    each = dataset.items_per_sample
    return [each * sample + offset for sample in samples for offset in range(each)]


def _fitting(dataset: Dataset, item: int, artifact: Artifact) -> dict[str, NDArray[np.generic]]:
    inputs = dataset.inputs(item, artifact.manifest)
    for spec in artifact.inputs:
        array = inputs[spec.name]
        if (array.dtype.name, array.shape) != (spec.dtype, spec.shape[1:]):
            raise UsageError(
                f"--dataset {dataset.text}: an item of input '{spec.name}' is {array.dtype}{list(array.shape)}, and "
                f"the model takes {spec.dtype}{list(spec.shape[1:])}"
            )
    return inputs
