"""Where a module's weights come from: a seed, a public checkpoint, the user's file, an artifact.

Imports torch, so only workers call this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from harness import registry
from harness.api import GraphModel, Model, PublicWeights, ReferenceModel
from harness.artifact import Artifact, sha256
from harness.checkpoints import read_state_dict
from harness.errors import ExportError, StoreError, UsageError
from harness.modelspec import ModelSpec
from harness.public import Fetched, cached, fetch, unreachable

if TYPE_CHECKING:
    import torch

SEEDED, PRETRAINED, OWN = "seeded", "pretrained", "own"
SHOWN = 3
"""How many keys of each kind an error names."""
FILLS = frozenset(
    {
        "bernoulli_",
        "constant_",
        "erfinv_",
        "exponential_",
        "fill_",
        "kaiming_uniform_",
        "log_normal_",
        "normal_",
        "random_",
        "uniform_",
        "zero_",
    }
)
"""In-place fills that a parameter can go without before it is loaded."""
COUNTERS = ".num_batches_tracked"
"""Buffers that older checkpoints lack, and that inference does not read."""


@dataclass(frozen=True)
class Loaded:
    """A module with its weights, and what the report says about them."""

    module: torch.nn.Module
    label: str
    sha256: str | None = None
    sources: list[str] = field(default_factory=list)
    """The user's files that it came from."""


class Provenance(NamedTuple):
    """Where trained weights came from."""

    label: str
    sha256: str | None
    sources: list[str]


@runtime_checkable
class Traced(Protocol):
    """A model that can say where the weights came from that its `load_public()` loaded last."""

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module: ...

    def provenance(self) -> Provenance: ...


__all__ = [
    "Loaded",
    "Provenance",
    "Traced",
    "fill",
    "listed",
    "load",
    "load_public",
    "read_state_dict",
    "restore",
    "unreachable",
]


def load(model: Model, weights: str, dims: Mapping[str, int], seed: int, spec: ModelSpec) -> Loaded:
    """Build a module and give it the weights that were asked for: `seeded`, `pretrained`, `own` or a file's path.

    Raises:
        UsageError: This model has no such weights, or the file is not one of weights.
        ExportError: They cannot be had, or belong to another architecture.
    """
    import torch

    if isinstance(model, GraphModel):
        if weights == OWN:
            raise UsageError(f"{spec.label} is an ONNX file: there is no module to load")
        raise _impossible(model, weights, spec)
    torch.manual_seed(seed)
    if weights == SEEDED:
        if not _has_config(model):
            raise _impossible(model, weights, spec)
        return Loaded(model.build(dims).eval(), SEEDED)
    if weights == PRETRAINED or (weights == OWN and _own_is_trained(model)):
        return _trained(model, dims, weights, spec)
    if weights == OWN:
        if isinstance(model, ReferenceModel):
            raise _impossible(model, weights, spec)
        return Loaded(model.build(dims).eval(), f"{OWN} of {spec.label}")
    path = Path(weights).expanduser().absolute()
    module = _built_bare(model, dims)
    fill(module, _renamed(model, module, read_state_dict(path)), f"{path.name} does not fit {spec.label}")
    return Loaded(module.eval(), path.name, sha256(path), [str(path)])


def _trained(model: Model, dims: Mapping[str, int], weights: str, spec: ModelSpec) -> Loaded:
    if isinstance(model, Traced):
        module = model.load_public(dims)
        label, digest, sources = model.provenance()
        return Loaded(module.eval(), label, digest, sources)
    if not isinstance(model, ReferenceModel) or model.public is None:
        raise _impossible(model, weights, spec)
    if type(model).load_public is not ReferenceModel.load_public:
        module = model.load_public(dims)
        return Loaded(module.eval(), *_published(model.public, cached(model.public)))
    module, provenance = _public(model, dims)
    return Loaded(module, *provenance)


def load_public(model: ReferenceModel, dims: Mapping[str, int]) -> torch.nn.Module:
    """Return a reference model with its public weights, fetched through the hub's client and loaded key for key.

    Raises:
        ExportError: They cannot be had, or do not fit; the message says how to get the file by hand.
    """
    return _public(model, dims)[0]


def _public(model: ReferenceModel, dims: Mapping[str, int]) -> tuple[torch.nn.Module, Provenance]:
    public = model.public
    if public is None:
        raise UsageError(f"{model.name} has no public weights", hint="--weights seeded, or --weights FILE")
    fetched = fetch(public)
    module = _built_bare(model, dims)
    tensors = _renamed(model, module, read_state_dict(fetched.path))
    fill(module, tensors, f"{public.repository}/{public.file} does not fit {model.name}")
    return module.eval(), _published(public, fetched)


def _renamed(model: Model, module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # What was saved from the module itself has its names already, and no others.
    own, given = ({name for name in names if not name.endswith(COUNTERS)} for names in (module.state_dict(), tensors))
    return tensors if own == given else model.own_names(tensors)


def _published(public: PublicWeights, fetched: Fetched | None) -> Provenance:
    commit = f" at {fetched.revision[:12]}" if fetched and fetched.revision else ""
    return Provenance(
        f"{PRETRAINED} {public.repository} ({public.file}){commit}", fetched.sha256 if fetched else None, []
    )


def restore(artifact: Artifact) -> torch.nn.Module:
    """Rebuild an artifact's module with its weights, in eval mode, without initialising parameters at random first.

    Raises:
        StoreError: The weights are damaged or do not fit the module.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    manifest, path = artifact.manifest, artifact.weights_path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(manifest.seed)  # a factory may be given it, or read it
        module = _built_bare(registry.model(manifest.model), manifest.dims)
    state = module.state_dict()
    # A buffer that is not part of the state dict is loaded too where the artifact holds it.
    own = {**dict(module.named_buffers(remove_duplicate=False)), **state}
    repair = "harness cache clear --exports"
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        wrong = sorted((set(state) - names) | (names - set(own)))
        if wrong:
            raise StoreError(f"{path} does not fit {manifest.model.label}: keys differ: {wrong[:SHOWN]}", hint=repair)
        with torch.no_grad():
            for name in sorted(names):
                # Opened for each tensor: the pages of a mapping count as this process' memory until it is closed.
                with safe_open(path, framework="pt") as file:
                    own[name].copy_(file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as exc:
        raise StoreError(f"{path} cannot be loaded: {exc}", hint=repair) from exc
    return module.eval()


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], failure: str) -> None:
    """Copy tensors into a module key for key, converting their precision.

    A file may leave out counters of batch normalisation and all names but one of a tied weight.

    Raises:
        ExportError: Keys or shapes differ; the message starts with `failure` and names how many, and the first few.
    """
    state = module.state_dict()
    tensors = _within_wrapper(state, tensors)
    tied = {_place(state[name]) for name in tensors if name in state}
    missing = [
        name
        for name in state
        if name not in tensors and not name.endswith(COUNTERS) and _place(state[name]) not in tied
    ]
    constants = {name for name, _ in module.named_buffers()} - set(state)
    unexpected = [name for name in tensors if name not in state and name not in constants]
    different = [
        f"{name} (expected {_shape(state[name])}, got {_shape(tensor)})"
        for name, tensor in tensors.items()
        if name in state and not _fits(state[name], tensor)
    ]
    if missing or unexpected or different:
        groups = {"missing": missing, "unexpected": unexpected, "of another shape or type": different}
        raise ExportError(f"{failure}: {listed(groups)}", hint="give weights of the same architecture and size")
    module.load_state_dict({name: tensor for name, tensor in tensors.items() if name in state}, strict=False)


def listed(groups: Mapping[str, Sequence[str]]) -> str:
    """Return how many keys of each kind there are, and the first few: `2 missing: a, b; 1 unexpected: c`."""
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for what, names in groups.items()
        if names
    )


def _within_wrapper(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return tensors under the names that they have where the module only wraps the one they were saved from."""
    outer = {name.partition(".")[0] for name in state}
    if len(outer) != 1 or any(name in state for name in tensors):
        return tensors
    renamed = {f"{next(iter(outer))}.{name}": tensor for name, tensor in tensors.items()}
    return renamed if any(name in state for name in renamed) else tensors


def _fits(own: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(own.shape == other.shape and own.is_floating_point() == other.is_floating_point())


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what is equal for two names of one tensor. Empty tensors have no place and are their own."""
    return (tensor.data_ptr() or id(tensor), tensor.numel())


def _own_is_trained(model: Model) -> bool:
    return isinstance(model, Traced) and not isinstance(model, ReferenceModel)


def _has_config(model: Model) -> bool:
    return isinstance(model, (ReferenceModel, Traced))


def _impossible(model: Model, weights: str, spec: ModelSpec) -> UsageError:
    possible = []
    if _has_config(model):
        possible.append(SEEDED)
    if isinstance(model, Traced) or (isinstance(model, ReferenceModel) and model.public):
        possible.append(PRETRAINED)
    if not isinstance(model, ReferenceModel):
        possible.append(OWN)
    if not isinstance(model, GraphModel):
        possible.append("a weights file")
    return UsageError(f"{spec.label} has no {weights} weights", hint=f"possible: {', '.join(possible)}")


def _built_bare(model: Model, dims: Mapping[str, int]) -> torch.nn.Module:
    with _without_random_fills():
        return model.build(dims)


@contextmanager
def _without_random_fills() -> Iterator[None]:
    """Leave parameters as they were allocated where an initialiser would fill them in place.

    Only parameters: each of them is loaded afterwards. A buffer may be left out of a state dict: it is always filled.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Bare(TorchFunctionMode):  # type: ignore[misc]  # torch is Any to the type checker
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            target = args[0] if args else kwargs.get("tensor")
            if name in FILLS and isinstance(target, torch.nn.Parameter):
                return target
            return func(*args, **kwargs)

    with Bare():
        yield
