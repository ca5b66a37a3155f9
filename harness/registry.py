"""Names -> classes. The one place that lists backends, models and reports; nothing is imported until asked for.

Other people's packages add theirs through the entry points `harness.backends`, `harness.models` and
`harness.reports`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.api import Backend, ReferenceModel, Report


@dataclass(frozen=True)
class Entry:
    """Where a class lives, as `module:Class`, and the command that installs what it needs."""

    where: str
    install: str = ""


BACKENDS = {
    "eager": Entry("backends.eager:Eager", "pip install 'harness[torch]'"),
    "onnxruntime": Entry("backends.onnxruntime:OnnxRuntime", "pip install 'harness[onnxruntime]'"),
    "tensorrt": Entry("backends.tensorrt:TensorRT", "pip install 'harness[tensorrt]'"),
    "tensorrt-rtx": Entry("backends.tensorrt_rtx:TensorRTRTX", "pip install 'harness[tensorrt-rtx]'"),
    "torch-compile": Entry("backends.torch_compile:TorchCompile", "pip install 'harness[torch]'"),
    "tvm": Entry("backends.tvm:TVM", "pip install 'harness[tvm]'"),
}

BASELINE = "eager"
"""What all others are compared with unless the user names another."""

MODELS = {
    "resnet50": Entry("models.resnet:ResNet50"),
    "tiny": Entry("models.tiny:Tiny"),
}

REPORTS = {
    "csv": Entry("reports.csv:Csv"),
    "json": Entry("reports.json:Json"),
    "markdown": Entry("reports.markdown:Markdown"),
    "terminal": Entry("reports.terminal:Terminal"),
}


def backend_names() -> list[str]:
    """Return the names of all registered backends, sorted."""
    return sorted(_table("backends", BACKENDS))


def model_names() -> list[str]:
    """Return the names of all registered models, sorted."""
    return sorted(_table("models", MODELS))


def report_names() -> list[str]:
    """Return the names of all registered report formats, sorted."""
    return sorted(_table("reports", REPORTS))


def backend(name: str) -> type[Backend]:
    """Return a backend's class.

    Raises:
        UsageError: No backend has this name, and the message suggests one; or its module cannot be imported.
    """
    return cast("type[Backend]", _load("backend", name, _table("backends", BACKENDS)))


def model(name: str) -> ReferenceModel:
    """Return a model.

    Raises:
        UsageError: No model has this name; the message suggests one.
    """
    return cast("type[ReferenceModel]", _load("model", name, _table("models", MODELS)))()


def report(name: str) -> Report:
    """Return a report.

    Raises:
        UsageError: No report has this name; the message suggests one.
    """
    return cast("type[Report]", _load("report format", name, _table("reports", REPORTS)))()


def install_hint(name: str) -> str:
    """Return the command that installs what a backend needs, or an empty string."""
    entry = _table("backends", BACKENDS).get(name)
    return entry.install if entry else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not in a table, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(f"unknown {kind} '{name}'{guess} Known: {', '.join(names)}")


def _table(group: str, own: dict[str, Entry]) -> dict[str, Entry]:
    found = {point.name: Entry(point.value) for point in entry_points(group=f"harness.{group}")}
    return found | own


def _load(kind: str, name: str, table: dict[str, Entry]) -> object:
    if name not in table:
        raise unknown(kind, name, table)
    where = table[name].where
    module, _, attribute = where.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as exc:  # other people's code may raise anything while it is imported
        raise UsageError(
            f"the {kind} '{name}' cannot be imported from {where}: {type(exc).__name__}: {exc}",
            hint="repair or uninstall the package that registers it",
        ) from exc
