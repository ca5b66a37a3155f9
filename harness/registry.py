"""Names -> classes. The one place that lists backends, models and reports; nothing is imported until asked for.

Other people's packages add theirs through the entry points `harness.backends`, `harness.models` and
`harness.reports`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast  # Any: what a view returns is known to who asks for it

import msgspec

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.api import Backend, Composition, Model, ReferenceModel, Report
    from harness.history.publishing import SiteReport
    from harness.modelspec import ModelSpec
    from harness.plotting import Drawing


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
    "attention": Entry("models.micro:Attention"),
    "bert-base": Entry("models.bert:BertBase"),
    "bert-large": Entry("models.bert:BertLarge"),
    "conv-bn-silu": Entry("models.micro:ConvBnSilu"),
    "digits": Entry("models.digits:Digits"),
    "gemm": Entry("models.micro:Gemm"),
    "layernorm-sigmoid": Entry("models.micro:LayerNormSigmoid"),
    "llama-decode": Entry("models.llama:LlamaDecode"),
    "llama-prefill": Entry("models.llama:LlamaPrefill"),
    "minilm-l6": Entry("models.bert:MiniLML6"),
    "resnet50": Entry("models.resnet:ResNet50"),
    "sd15-text-encoder": Entry("models.stable_diffusion:SD15TextEncoder"),
    "sd15-unet": Entry("models.stable_diffusion:SD15UNet"),
    "sd15-vae-decoder": Entry("models.stable_diffusion:SD15VaeDecoder"),
    "sd21-unet": Entry("models.stable_diffusion:SD21UNet"),
    "tiny": Entry("models.tiny:Tiny"),
    "whisper-large-decode": Entry("models.whisper:WhisperLargeDecode"),
    "whisper-large-encoder": Entry("models.whisper:WhisperLargeEncoder"),
    "whisper-large-prefill": Entry("models.whisper:WhisperLargePrefill"),
    "yolov8l": Entry("models.yolov8:YoloV8l"),
    "yolov8m": Entry("models.yolov8:YoloV8m"),
    "yolov8n": Entry("models.yolov8:YoloV8n"),
    "yolov8s": Entry("models.yolov8:YoloV8s"),
    "yolov8x": Entry("models.yolov8:YoloV8x"),
}

OWN = {
    "exported": Entry("models.exported_program:ExportedProgram"),
    "factory": Entry("models.factory:Factory"),
    "hub": Entry("models.hub:Hub"),
    "onnx": Entry("models.onnx_file:OnnxFile"),
}
"""The user's own models, by the kind of `ModelSpec`."""

SUITES = {
    "vision": ("resnet50", "yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x"),
    "nlp": (
        "minilm-l6",
        "bert-base",
        "bert-base:sequence=512",
        "bert-large",
        "bert-large:sequence=512",
        "llama-prefill",
        "llama-decode",
    ),
    "diffusion": ("sd15-text-encoder", "sd15-unet", "sd15-vae-decoder", "sd21-unet"),
    "speech": ("whisper-large-encoder", "whisper-large-prefill", "whisper-large-decode"),
    "micro": (
        "gemm",
        "attention",
        "attention:sequence=1024",
        "attention:sequence=2048",
        "conv-bn-silu",
        "layernorm-sigmoid",
    ),
    "quick": ("tiny", "gemm", "conv-bn-silu", "minilm-l6", "yolov8n"),
}
"""Sets of models for `--suite`; `reference` is all of them."""
WHOLE = "reference"

COMPOSITIONS = Entry("models.compositions:COMPOSITIONS")

VIEWS = {
    "check": Entry("reports.tracking:check"),
    "claims": Entry("reports.claims:findings"),
    "claims-list": Entry("reports.claims:listing"),
    "difference": Entry("reports.tracking:difference"),
    "listing": Entry("reports.tracking:listing"),
    "remarks": Entry("reports.gate:remarks"),
    "trends": Entry("reports.tracking:trends"),
}
"""How the history and the claims are shown: functions that return text."""
ADVICE = Entry("reports.recommendation:render")
"""How a recommendation is shown."""
SITE = Entry("reports.site:SITE")
"""The pages of a published history."""
DRAWINGS = Entry("reports.drawings:drawings")
"""The charts of a run, one by one."""

REPORTS = {
    "csv": Entry("reports.csv:Csv"),
    "html": Entry("reports.html:Html", "pip install 'harness[plots]'"),
    "json": Entry("reports.json:Json"),
    "junit": Entry("reports.junit:Junit"),
    "latex": Entry("reports.latex:Latex"),
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


def model_class(name: str) -> type[ReferenceModel]:
    """Return the class of a reference model.

    Raises:
        UsageError: No model has this name; the message suggests one.
    """
    return cast("type[ReferenceModel]", _load("model", name, _table("models", MODELS)))


def model(spec: ModelSpec) -> Model:
    """Return a model, reference or the user's own, not built yet.

    Raises:
        UsageError: No model has this name; the message suggests one.
    """
    if spec.kind == "reference":
        kind = model_class(spec.name)
        return kind(msgspec.convert(spec.options, type=kind.Options))
    own = cast("Callable[[ModelSpec], Model]", _load("kind of model", spec.kind, OWN))
    return own(spec)


def default_weights(spec: ModelSpec) -> str:
    """Return the weights of a model unless the user says otherwise: its own where it is the user's."""
    return model_class(spec.name).default_weights if spec.kind == "reference" else "own"


def suite(name: str) -> tuple[str, ...]:
    """Return the models of a suite, in the grammar of `--model`.

    Raises:
        UsageError: No suite has this name; the message suggests one.
    """
    if name == WHOLE:
        return tuple(dict.fromkeys(item for key, items in SUITES.items() if key != "quick" for item in items))
    if name not in SUITES:
        raise unknown("suite", name, [*SUITES, WHOLE])
    return SUITES[name]


def compositions() -> tuple[Composition, ...]:
    """Return the figures that are put together from several models' measurements."""
    return cast("tuple[Composition, ...]", _load("table", "compositions", {"compositions": COMPOSITIONS}))


def report(name: str) -> Report:
    """Return a report.

    Raises:
        UsageError: No report has this name; the message suggests one.
    """
    return cast("type[Report]", _load("report format", name, _table("reports", REPORTS)))()


def view(name: str) -> Callable[..., Any]:
    """Return what turns a part of the history into text, or into what a workflow is told."""
    return cast("Callable[..., Any]", _load("view", name, VIEWS))


def advice_report() -> Callable[..., str]:
    """Return what turns an `Advice` and the summary that it is drawn from into text."""
    return cast("Callable[..., str]", _load("table", "advice", {"advice": ADVICE}))


def site() -> SiteReport:
    """Return what draws the pages of a published history."""
    return cast("SiteReport", _load("table", "site", {"site": SITE}))


def drawings() -> Callable[..., list[Drawing]]:
    """Return what turns the summary of a run into its charts."""
    return cast("Callable[..., list[Drawing]]", _load("table", "drawings", {"drawings": DRAWINGS}))


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
    return _registered(f"harness.{group}", tuple(sys.path)) | own


@functools.cache
def _registered(group: str, path: tuple[str, ...]) -> dict[str, Entry]:
    # Reads a file of every distribution on the path: once is enough, unless the path changes.
    return {point.name: Entry(point.value) for point in entry_points(group=group)}


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
