"""Which models are compared at which shapes: the product of models and sizes, as the workloads of a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import registry
from harness.devices import CUDA
from harness.errors import UsageError
from harness.modelspec import BATCH, LARGEST, ModelSpec, parse_models
from harness.plan import Variant, find_baseline
from harness.records import Settings, Workload


def asked_models(models: list[str], suite: str | None, root: Path) -> list[ModelSpec]:
    """Return the models of a suite and those asked for one by one, each once.

    Raises:
        UsageError: A name that nobody knows, a file that is not there, or nothing at all.
    """
    texts = [*(registry.suite(suite) if suite else ()), *models]
    found: list[ModelSpec] = []
    for spec in parse_models(texts, root):
        if spec not in found:
            found.append(spec)
    return found


def plan_workloads(specs: list[ModelSpec], variants: list[Variant], settings: Settings) -> list[Workload]:
    """Return one workload for each model, point of the sweep over its free dimensions, and device or target.

    Raises:
        UsageError: A dimension or an input that none of the models has, or a baseline that is not among the cases.
    """
    refuse_unknown(specs, settings.dims, settings.shapes)
    workloads: list[Workload] = []
    for spec in specs:
        for dims, (device, target) in itertools.product(_points(spec, settings), _places(settings)):
            key = _key(spec, dims, device=device if len(settings.devices) > 1 else None, target=target)
            taken = sum(one.key.partition("#")[0] == key for one in workloads)
            workloads.append(
                Workload(
                    key=f"{key}#{taken + 1}" if taken else key,
                    model=spec,
                    asked=dims,
                    dims=dims,
                    batch=dims.get(BATCH, 1),
                    device=device,
                    target=target,
                    baseline=find_baseline(variants, settings.baseline, graph_only=spec.kind == "onnx"),
                )
            )
    return workloads


def _places(settings: Settings) -> list[tuple[str, str | None]]:
    """Return what each workload is measured on, or compiled for."""
    if settings.targets:
        return [(f"{CUDA}:0", target) for target in settings.targets]
    return [(device, None) for device in settings.devices]


def dynamic_ranges(workload: Workload, settings: Settings) -> dict[str, tuple[int, int]]:
    """Return what an engine for the whole sweep must take: free dimension -> smallest and largest size.

    The dimensions that the sweep varies; where it varies none, the batch, from 1 to twice what was asked for. The
    largest size is at least 2, because compilers take a dimension of 1 for a constant.
    """
    sizes_of = sweep(workload.model, settings.dims, settings.shapes)
    swept = {name: sizes for name, sizes in sizes_of.items() if len(sizes) > 1}
    if not swept:
        return {BATCH: (1, max(2, 2 * workload.dims.get(BATCH, 1)))}
    return {name: (min(sizes), max(2, *sizes)) for name, sizes in swept.items()}


def sweep(spec: ModelSpec, dims: Mapping[str, list[int]], shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the sizes of every dimension that is known: the model's defaults, then the command's, then the item's.

    Raises:
        UsageError: A shape does not fit the model.
    """
    if spec.kind != "reference":
        return {**dims, **{name: [size] for name, size in spec.dims.items()}}
    defaults = registry.model_class(spec.name).dims
    shaped = _dims_of_shapes(spec, shapes)
    for name, sizes in shaped.items():
        if name in dims and dims[name] != sizes:
            raise UsageError(f"--shape sets {name} to {sizes[0]}, and it is asked for as {dims[name]}; give one")
    return {
        name: [spec.dims[name]] if name in spec.dims else shaped.get(name) or dims.get(name) or [size]
        for name, size in defaults.items()
    }


def _points(spec: ModelSpec, settings: Settings) -> list[dict[str, int]]:
    sizes = sweep(spec, settings.dims, settings.shapes)
    return [dict(zip(sizes, point, strict=True)) for point in itertools.product(*sizes.values())]


def _dims_of_shapes(spec: ModelSpec, shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for entry in registry.model(spec).inputs:
        given = shapes.get(entry.name)
        if given is None:
            continue
        if len(given) != len(entry.shape):
            raise _misfit(spec, entry.name, entry.shape, given)
        for expected, size in zip(entry.shape, given, strict=True):
            known = out.setdefault(expected, [size]) if isinstance(expected, str) else [expected]
            if known != [size]:
                raise _misfit(spec, entry.name, entry.shape, given)
    return out


def _misfit(spec: ModelSpec, name: str, expected: tuple[int | str, ...], given: list[int]) -> UsageError:
    wanted, got = "x".join(map(str, expected)), "x".join(map(str, given))
    return UsageError(f"--shape {name}={got} does not fit {spec.label}: expected {wanted}")


def refuse_unknown(specs: list[ModelSpec], dims: Iterable[str], shapes: Iterable[str]) -> None:
    """Refuse sizes that no model takes. What a user's own model takes is known once it is read.

    Raises:
        UsageError: The name of a dimension or of an input that none of the models has.
    """
    if any(spec.kind != "reference" for spec in specs):
        return
    known = {name for spec in specs for name in registry.model_class(spec.name).dims}
    for name in dims:
        if name not in known:
            raise registry.unknown("dimension", name, known)
    inputs = {entry.name for spec in specs for entry in registry.model(spec).inputs} if shapes else set()
    for name in shapes:
        if name not in inputs:
            raise registry.unknown("input", name, inputs)


def _key(spec: ModelSpec, dims: Mapping[str, int], *, device: str | None, target: str | None) -> str:
    usual: Mapping[str, int] = {BATCH: 1}
    if spec.kind == "reference":
        usual = registry.model_class(spec.name).dims
    sizes = (f"{name}={size}" for name, size in dims.items() if usual.get(name) != size)
    places = [f"on {device}"] if device else [f"for {target}"] if target else []
    return " ".join([spec.label, *sizes, *places])


def parse_sizes(where: str, text: str) -> list[int]:
    """Return the sizes of a sweep, such as `1,4,32`, in ascending order and each once.

    Raises:
        UsageError: One of them is not a whole number from 1 to 2^20.
    """
    sizes: set[int] = set()
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal() or not 1 <= int(word) <= LARGEST:
            raise UsageError(f"{where}: '{word}' is not a number from 1 to {LARGEST}", hint="several: 1,4,32")
        sizes.add(int(word))
    return sorted(sizes)


def parse_dims(texts: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the values of `--dim NAME=SIZE,SIZE` as free dimension -> sizes.

    Raises:
        UsageError: One of them is not of that form, or a dimension is given twice.
    """
    out: dict[str, list[int]] = {}
    for text in texts:
        name, equals, sizes = (part.strip() for part in text.partition("="))
        if not name or not equals or name in out:
            problem = "is given twice" if name in out else "is not of the form NAME=SIZE"
            raise UsageError(f"--dim {text} {problem}", hint="--dim sequence=128,512")
        out[name] = parse_sizes(f"--dim {name}", sizes)
    return out


def parse_shapes(texts: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the values of `--shape NAME=2x3x224x224` as input -> shape.

    Raises:
        UsageError: One of them is not of that form, or an input is given twice.
    """
    out: dict[str, list[int]] = {}
    for text in texts:
        name, _, shape = (part.strip() for part in text.partition("="))
        sizes = shape.lower().split("x")
        if not name or name in out or not all(size.isdecimal() and 1 <= int(size) <= LARGEST for size in sizes):
            problem = "is given twice" if name in out else "is not of the form NAME=2x3x224x224"
            raise UsageError(f"--shape {text} {problem}", hint="--shape input=2x3x224x224")
        out[name] = [int(size) for size in sizes]
    return out
