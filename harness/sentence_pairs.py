"""`pairs:FILE.tsv`: pairs of sentences with a score of how alike they are, as in the STS benchmark.

A line holds two sentences and a number between tabs; the number may come first or last. A first line of names is left
out. The tokenizer is the model's own: a `tokenizer.json` that it names.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness import registry
from harness.artifact import Manifest
from harness.datasets import Dataset, output_of
from harness.errors import UsageError
from harness.model import Model, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Floats = NDArray[np.float64]

COLUMNS = 3
HINT = "a line is: sentence TAB sentence TAB score"
IDS, MASK, KINDS = "input_ids", "attention_mask", "token_type_ids"


class SentencePairs(Dataset):
    """Two items a sample: its sentences. The answers are their embeddings."""

    task: ClassVar[Task] = "embedding"
    items_per_sample = 2

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path = Path(text.partition(":")[2])
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"--dataset {text}: {self._path} cannot be read: {exc}", hint=HINT) from exc
        rows = list(csv.reader([line for line in lines if line.strip()], delimiter="\t", quoting=csv.QUOTE_NONE))
        self._sentences: list[str] = []
        scores: list[float] = []
        for number, row in enumerate(rows, 1):
            parsed = _parsed(row)
            if parsed is None and number == 1 and len(row) == COLUMNS:
                continue  # the names of the columns
            if parsed is None:
                raise UsageError(f"--dataset {text}: line {number} is no pair with a score: {row!r:.80}", hint=HINT)
            self._sentences += parsed[:2]
            scores.append(parsed[2])
        if len(scores) < COLUMNS:
            raise UsageError(f"--dataset {text} holds {len(scores)} pairs; there is no order in so few", hint=HINT)
        self.scores: Floats = np.array(scores, dtype=np.float64)
        if np.ptp(self.scores) == 0:
            raise UsageError(f"--dataset {text}: all scores are {scores[0]:g}, so there is no order to find")
        self._tokenizer: Any = None  # of the library tokenizers, which is imported by workers

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def label(self) -> str:
        return self._path.stem

    def refuse_model(self, model: Model, name: str) -> None:
        super().refuse_model(model, name)
        if model.tokenizer is None:
            raise UsageError(f"--dataset {self.text}: there is no tokenizer for {name}", hint="--model minilm-l6")

    def refuse_artifact(self, manifest: Manifest) -> None:
        if registry.model(manifest.model).tokenizer is None:
            name = manifest.model.label
            raise UsageError(
                f"--dataset {self.text}: there is no tokenizer for {name}",
                hint=f"--model {name}:tokenizer=path/to/tokenizer.json",
            )
        output_of(manifest, lambda shape: len(shape) == 2, "embeddings of shape (batch, width)", self.text)
        if unknown := [spec.name for spec in manifest.inputs if spec.name not in (IDS, MASK, KINDS)]:
            raise UsageError(f"--dataset {self.text}: nothing is known for the input {', '.join(unknown)}")

    def inputs(self, item: int, manifest: Manifest) -> dict[str, Array]:
        if self._tokenizer is None:
            self._tokenizer = self._opened(manifest)
        encoded = self._tokenizer.encode(self._sentences[item])
        values = {IDS: encoded.ids, MASK: encoded.attention_mask, KINDS: encoded.type_ids}
        return {spec.name: np.array(values[spec.name], dtype=spec.dtype) for spec in manifest.inputs}

    def _opened(self, manifest: Manifest) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as exc:
            raise UsageError("reading sentences needs tokenizers", hint="pip install 'harness[datasets]'") from exc
        tokenizer = Tokenizer.from_file(str(registry.model(manifest.model).tokenizer))
        length = manifest.inputs[0].shape[1]
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length)
        return tokenizer

    def answers(self, outputs: Mapping[str, Array], items: Sequence[int]) -> Floats:
        rows = next(array for array in outputs.values() if array.ndim == 2)
        return rows[: len(items)].astype(np.float64)


def _parsed(row: list[str]) -> tuple[str, str, float] | None:
    if len(row) != COLUMNS:
        return None
    for place in (COLUMNS - 1, 0):
        first, second = (text for index, text in enumerate(row) if index != place)
        try:
            score = float(row[place])
        except ValueError:
            continue
        return (first, second, score) if np.isfinite(score) else None
    return None
