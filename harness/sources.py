"""Data that the user names, for judging and for calibration: opened and held against the models before work starts."""

from __future__ import annotations

from collections.abc import Sequence

from harness import registry
from harness.datasets import DIGITS, KINDS, Dataset, open_dataset
from harness.errors import UsageError
from harness.modelspec import ModelSpec
from harness.paths import users_path


def dataset_source(text: str, specs: Sequence[ModelSpec]) -> str:
    """Open what `--dataset` names, hold it against the models as far as that is possible before an export.

    Returns:
        The text with absolute paths.

    Raises:
        UsageError: It cannot be read, or its labels are of another kind than a model's answers.
    """
    kind, colon, paths = text.partition(":")
    absolute = ",".join(str(users_path(path)) for path in paths.split(",")) if paths else ""
    dataset = open_dataset(f"{kind}{colon}{absolute}")
    for spec in specs:
        refuse_model(dataset, spec)
    return dataset.text


def refuse_model(dataset: Dataset, spec: ModelSpec) -> None:
    """Hold a data set against a model, as far as that is possible before an export.

    Raises:
        UsageError: Its labels are of another kind than the model's answers.
    """
    if spec.kind == "reference":  # what a user's own model answers shows in its outputs only
        dataset.refuse_model(registry.model(spec), spec.label)


def calibration_source(text: str | None, specs: Sequence[ModelSpec], dataset: str | None = None) -> str | None:
    """Return the user's calibration inputs with absolute paths: a file, a folder, or a data set such as `pairs:FILE`.

    Raises:
        UsageError: They are not there, do not fit the models, or are those that engines are judged on.
    """
    if text is None:
        return None
    if text.partition(":")[0] not in KINDS:
        if not users_path(text).exists():
            raise UsageError(
                f"--calibration {text}: there is no such file",
                hint="it takes an .npz file, a folder of such or of images, or a data set as --dataset does",
            )
        return str(users_path(text))
    try:
        source = dataset_source(text, specs)
    except UsageError as exc:
        raise UsageError(exc.message.replace("--dataset", "--calibration"), hint=exc.hint) from exc
    if source in (dataset, DIGITS):
        raise UsageError(
            f"--calibration {text}: its samples are those that engines are judged on", hint="calibrate on other samples"
        )
    return source
