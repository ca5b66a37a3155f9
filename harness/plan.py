"""What the user asked for, as cases. The grammar of `--backends` is defined here.

    items   = item ("," item)*
    item    = "all" | name ["@" version] [":" option ("," option)*]
    option  = key "=" value

A comma separates both items and options without ambiguity: a token in which `=` comes before any `:` is an
option of the item to its left; every other token starts an item. Values hold no comma. `all` stands for every
registered backend with default options. The same item may be given twice; it is then measured twice. With a version
that release is measured, in an environment of its own; without one, whichever is installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from packaging.version import InvalidVersion, Version

from harness import choices, registry
from harness.api import BackendOptions, Scalar
from harness.errors import UsageError
from harness.records import Settings

ALL = "all"
AT = "@"
FP32 = "fp32"
SLUG_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One backend with its options, under the id that the table shows."""

    id: str
    backend: str
    release: str | None = None
    """The version that was asked for; None: whichever is installed."""
    options: dict[str, Scalar]
    """Only what the user set, converted to the options' types."""
    asked_by_name: bool
    """False where `all` brought it in: then it may be unavailable without failing the command."""

    @property
    def item(self) -> str:
        """The backend as it was asked for, without options: `onnxruntime@1.24.4`."""
        return self.backend if self.release is None else f"{self.backend}{AT}{self.release}"

    def parsed(self) -> BackendOptions:
        """Return the options with defaults filled in."""
        return msgspec.convert(self.options, type=registry.backend(self.backend).Options)

    @property
    def slug(self) -> str:
        """A name for log files and folders, short enough for any file system and unlike that of any other id."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.id)
        if len(name) <= SLUG_CHARACTERS and re.fullmatch(r"[A-Za-z0-9._,:=#@-]+", self.id):
            return name
        # Cut, or with characters that another id may have in the same place: the id's digest tells them apart.
        return f"{name[:SLUG_CHARACTERS]}-{hashlib.sha256(self.id.encode()).hexdigest()[:8]}"


def chosen_for(variant: Variant, pythons: Mapping[str, str]) -> str | None:
    """Return the interpreter that the user named for a variant: for its release, or for all of its backend."""
    return pythons.get(variant.item) or pythons.get(variant.backend)


def parse_variants(texts: list[str]) -> list[Variant]:
    """Parse the values of `--backends`.

    Raises:
        UsageError: Unknown backend or option, a value of the wrong type, conflicting options, or nothing asked for.
    """
    items: list[tuple[str, list[str], bool]] = []
    for token in (part.strip() for text in texts for part in text.split(",")):
        if not token:
            continue
        head, colon, rest = token.partition(":")
        if "=" in head:
            if not items or not items[-1][2]:
                raise UsageError(
                    f"option '{token}' belongs to no backend", hint="write it after one: --backends tvm:trials=64"
                )
            items[-1][1].append(token)
        elif head == ALL and colon:
            raise UsageError(f"'{token}': 'all' takes no options", hint="name a backend: --backends all,tvm:trials=64")
        elif head == ALL:
            items += [(name, [], False) for name in registry.backend_names()]
        else:
            items.append((head, [rest] if colon else [], True))
    if not items:
        raise UsageError(
            "no backend was asked for", hint="--backends all, or one of: " + ", ".join(registry.backend_names())
        )
    return _number([_variant(*item) for item in items])


def _variant(item: str, options: list[str], asked_by_name: bool) -> Variant:
    name, release = _released(item)
    kind = registry.backend(name)
    raw: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key or not value:
            raise UsageError(f"'{name}:{option}' is not an option; write {name}:key=value")
        if key not in kind.Options.__struct_fields__:
            raise registry.unknown(f"option of {name}", key, kind.Options.__struct_fields__)
        if key in raw:
            raise UsageError(f"option '{key}' of {name} is given twice")
        raw[key] = value
    try:
        parsed = msgspec.convert(raw, type=kind.Options, strict=False)
    except msgspec.ValidationError as exc:
        raise choices.refusal(exc, kind.Options, raw, of=name, hint=f"harness backends {name}") from exc
    values: dict[str, Scalar] = {key: getattr(parsed, key) for key in raw}
    for key, chosen in values.items():
        if isinstance(chosen, float) and not math.isfinite(chosen):  # JSON has neither infinity nor NaN
            raise UsageError(f"options of {name}: {key}={raw[key]}: a finite number is wanted")
    kind.check(parsed)
    text = ",".join(f"{key}={_text(value)}" for key, value in values.items())
    plain = Variant(id=item, backend=name, release=release, options=values, asked_by_name=asked_by_name)
    return dataclasses.replace(plain, id=f"{plain.item}:{text}" if text else plain.item)


def _released(item: str) -> tuple[str, str | None]:
    """Return the backend and the release of an item."""
    name, at, text = item.partition(AT)
    if not at:
        return name, None
    kind = registry.backend(name)
    if kind.distribution(kind.Options(), "cpu") is None:
        raise UsageError(
            f"'{item}': {name} is no package of releases that could be chosen",
            hint=f"leave out {AT}{text}, or name an interpreter that has it: --python {name}=/path/to/python",
        )
    try:
        return name, str(Version(text))  # `1.31` and `1.31.0` stay two texts: a package has one of them
    except InvalidVersion as exc:
        raise UsageError(f"'{item}': '{text}' is not a version", hint=f"such as {name}{AT}1.2.3") from exc


def _number(variants: list[Variant]) -> list[Variant]:
    seen: Counter[str] = Counter()
    out = []
    for variant in variants:
        seen[variant.id] += 1
        count = seen[variant.id]
        out.append(variant if count == 1 else dataclasses.replace(variant, id=f"{variant.id}#{count}"))
    return out


def _text(value: Scalar) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_precisions(variants: list[Variant], precisions: Sequence[str]) -> list[Variant]:
    """Return each variant once for every precision; one that names its own stays as it is.

    `fp32` is what a backend does when nothing is said, and is not written into the id. Of several precisions those
    that a backend lacks are rows, not failures: nobody named that pair.
    """
    out: list[Variant] = []
    named = len(precisions) == 1
    for variant in variants:
        if variant.parsed().precision is not None:
            out.append(variant)
            continue
        for precision in precisions:
            sibling = variant if precision == FP32 else _sibling(variant, f"precision={precision}")
            out.append(
                dataclasses.replace(sibling, asked_by_name=variant.asked_by_name and (named or precision == FP32))
            )
    return _distinct(out)


def _sibling(variant: Variant, option: str) -> Variant:
    words = ",".join([*(f"{key}={_text(value)}" for key, value in variant.options.items()), option])
    return dataclasses.replace(parse_variants([f"{variant.item}:{words}"])[0], asked_by_name=False)


def _distinct(variants: list[Variant]) -> list[Variant]:
    plain = [dataclasses.replace(variant, id=variant.id.partition("#")[0]) for variant in variants]
    return _number(plain)


def with_dynamic(variants: list[Variant]) -> list[Variant]:
    """Return the variants with the dynamic sibling of each after it: one engine for all shapes of the sweep.

    A backend without engines takes any shape as it is and has no sibling.
    """
    out: list[Variant] = []
    for variant in variants:
        out.append(variant)
        if registry.backend(variant.backend).capabilities.saves_engines and not variant.parsed().dynamic:
            sibling = _sibling(variant, "dynamic=true")
            if sibling.id not in {one.id for one in variants}:
                out.append(sibling)
    return _distinct(out)


def asked_variants(settings: Settings) -> list[Variant]:
    """Return the cases of every workload of a run.

    Raises:
        UsageError: As `parse_variants()`.
    """
    variants = with_precisions(parse_variants(settings.asked), settings.precisions)
    return with_dynamic(variants) if settings.dynamic else variants


def find_baseline(variants: list[Variant], wanted: str | None, *, graph_only: bool = False) -> str:
    """Return the id of the case that all others are compared with.

    The one asked for, by its id in any spelling or by its backend's name, first the one without options; else the
    registry's default baseline; else the first. With `graph_only` there is no torch module, and so the default is the
    first that compiles an ONNX graph.

    Raises:
        UsageError: The baseline that was asked for is not among the cases.
    """
    ids = [variant.id for variant in variants]
    if wanted is None and graph_only:
        graphs = (v.id for v in variants if registry.backend(v.backend).capabilities.source == "onnx")
        return next(graphs, ids[0])
    if wanted is None:
        plain = [v for v in variants if v.backend == registry.BASELINE and set(v.options) <= {"precision"}]
        return next((v.id for v in [*(v for v in plain if not v.options), *plain]), ids[0])
    # Cases may be written in several ways: `ms=2` and `ms=2.0` are one.
    spelling = wanted
    if ":" in wanted and wanted not in ids:
        spelling = ",".join(variant.id for variant in parse_variants([wanted]))
    if spelling not in ids and ":" in wanted:  # the same options in another order
        (asked,) = parse_variants([wanted])
        spelling = next((v.id for v in variants if (v.item, v.options) == (asked.item, asked.options)), spelling)
    match = spelling if spelling in ids else next((v.id for v in variants if wanted in (v.item, v.backend)), None)
    if match is None:
        raise UsageError(f"baseline '{wanted}' is not among the cases", hint="it must be one of: " + ", ".join(ids))
    return match
