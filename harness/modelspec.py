"""Which models the user asked for. The grammar of `--model` is defined here.

    items     = item ("," item)*
    item      = reference [":" setting] ("," setting)*
    reference = registered name | file.onnx | file.pt2 | "hf:" ORG/NAME or folder | package.module:callable
    setting   = key "=" value                     an option of the model, or the size of one of its free dimensions

As in `--backends`, a token in which `=` comes before any `:` is a setting of the item to its left. A text that is the
path of an existing file is taken whole, commas and all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from harness.declared import SETTINGS, declared
from harness.errors import UsageError
from harness.paths import users_path

Scalar = str | int | float | bool | None
Kind = Literal["reference", "onnx", "exported", "hub", "factory"]

BATCH = "batch"
"""The free dimension that every model has unless it says otherwise."""
SUFFIXES: Mapping[str, Kind] = {".onnx": "onnx", ".pt2": "exported"}
HUB = "hf"
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LARGEST = 1 << 20


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One model, without its shape: enough for a worker to build it. Crosses the process border as JSON."""

    kind: Kind = "reference"
    name: str
    """A registered name; the absolute path of a file; `ORG/NAME` or a folder's path; `package.module:callable`."""
    options: dict[str, Scalar] = {}
    """Only what the user set, converted to the types of the model's options; of an own model what it declares."""
    dims: dict[str, int] = {}
    """Free dimensions that the item itself sets; they go before those of the whole command."""
    root: str = ""
    """The folder in which the command was given: a factory is imported from there."""

    @property
    def label(self) -> str:
        """Return what a table calls it: short, without a path."""
        name = Path(self.name).name if self.kind in ("onnx", "exported", "hub") else self.name
        return _with_settings(f"{HUB}:{name}" if self.kind == "hub" else name, self.options)

    @property
    def text(self) -> str:
        """Return it in the grammar of `--model`, sizes of dimensions left out."""
        return _with_settings(f"{HUB}:{self.name}" if self.kind == "hub" else self.name, self.options)


def parse_models(texts: list[str], root: Path) -> list[ModelSpec]:
    """Parse the values of `--model`. `root` is the folder in which they were given.

    Options of registered models are converted to their types; files must exist.

    Raises:
        UsageError: An unknown model or option, a value of the wrong type, a file that is not there, or nothing.
    """
    items: list[tuple[str, list[str]]] = []
    for text in texts:
        if _is_file(text, root):
            items.append((text, []))
            continue
        for token in (part.strip() for part in text.split(",")):
            head, colon, rest = token.partition(":")
            if not token:
                continue
            if "=" in head:
                if not items:
                    raise UsageError(f"'{token}' belongs to no model", hint="write it after one: --model gemm:batch=4")
                items[-1][1].append(token)
            elif colon and "=" in rest.partition(":")[0]:
                items.append((head, [rest]))
            else:
                reference, _, setting = token.partition(":") if "=" in rest else (token, "", "")
                if "=" in rest:  # hf:ORG/NAME:batch=4, package.module:factory:batch=4
                    reference, _, setting = token.rpartition(":")
                items.append((reference, [setting] if setting else []))
    if not items:
        raise UsageError("no model was asked for", hint="harness models lists those that come with harness")
    return [_spec(reference, settings, root) for reference, settings in items]


def _spec(reference: str, settings: list[str], root: Path) -> ModelSpec:
    kind = _kind(reference)
    raw: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"'{reference}:{setting}' is not a setting; write {reference}:key=value")
        if key in raw:
            raise UsageError(f"'{key}' of {reference} is given twice")
        raw[key] = value
    if kind == "reference":
        return _reference(reference, raw)
    name = reference
    if kind in ("onnx", "exported"):
        name = str(_existing(reference, root))
    elif kind == "hub":
        name = reference.partition(":")[2]
        folder = users_path(name, root)
        if folder.is_dir():
            name = str(folder)
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise UsageError(f"'{reference}' names neither ORG/NAME on the hub nor an existing folder")
    given = {key: raw.pop(key) for key in SETTINGS if key in raw}
    if "tokenizer" in given:
        given["tokenizer"] = str(users_path(given["tokenizer"], root))
    options: dict[str, Scalar] = {**declared(reference, given)}
    return ModelSpec(kind=kind, name=name, options=options, dims=_dims(reference, raw), root=str(root.absolute()))


def _reference(name: str, raw: dict[str, str]) -> ModelSpec:
    from harness import choices, registry

    if name not in registry.model_names():
        error = registry.unknown("model", name, registry.model_names())
        raise UsageError(error.message, hint="or your own: a .onnx or .pt2 file, package.module:factory, hf:NAME")
    kind = registry.model_class(name)
    dims = {key: value for key, value in raw.items() if key in kind.dims}
    options = {key: value for key, value in raw.items() if key not in kind.dims}
    for key in options:
        if key not in kind.Options.__struct_fields__:
            raise registry.unknown(f"setting of {name}", key, [*kind.Options.__struct_fields__, *kind.dims])
    try:
        parsed = msgspec.convert(options, type=kind.Options, strict=False)
    except msgspec.ValidationError as exc:
        raise choices.refusal(exc, kind.Options, options, of=name, hint=f"harness models {name}") from exc
    values: dict[str, Scalar] = {key: getattr(parsed, key) for key in options}
    return ModelSpec(name=name, options=values, dims=_dims(name, dims))


def _kind(reference: str) -> Kind:
    for suffix, kind in SUFFIXES.items():
        if reference.lower().endswith(suffix):
            return kind
    if reference.startswith(f"{HUB}:"):
        return "hub"
    return "factory" if _FACTORY.fullmatch(reference) else "reference"


def _existing(reference: str, root: Path) -> Path:
    path = users_path(reference, root)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}", hint="give the path of a model file: --model path/to/model.onnx")
    return path


def _is_file(text: str, root: Path) -> bool:
    path = users_path(text, root)
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _dims(reference: str, raw: Mapping[str, str]) -> dict[str, int]:
    return {key: parse_size(f"{reference}:{key}", value) for key, value in raw.items()}


def parse_size(where: str, text: str) -> int:
    """Return the size of a dimension.

    Raises:
        UsageError: It is not a whole number from 1 to 2^20.
    """
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= LARGEST:
        raise UsageError(f"{where}={text}: a size from 1 to {LARGEST} is wanted")
    return size


def _with_settings(name: str, options: Mapping[str, Scalar]) -> str:
    text = ",".join(f"{key}={_text(value)}" for key, value in options.items())
    return f"{name}:{text}" if text else name


def _text(value: Scalar) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
