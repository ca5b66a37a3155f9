"""The contracts of models: what an export needs of one, reference or the user's own. Part of `harness.api`.

Everything here is importable without any framework: implementations import theirs inside methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import torch


Task = Literal["classification", "detection", "embedding", "tokens", "image", "latent", "tensor"]


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that a model takes: `--model NAME:key=value`. A model adds its own as fields with a description."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of a model, its free dimensions by name."""

    name: str
    dtype: str
    """numpy's name."""
    shape: tuple[int | str, ...]
    """A string names a free dimension: `("batch", 3, 224, 224)`."""
    low: int = 0
    """Integers are drawn from [low, high)."""
    high: int = 2

    def at(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with its free dimensions filled in."""
        return tuple(dims[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """Where trained weights can be had, and under which terms."""

    repository: str
    """On the Hugging Face hub: `ORG/NAME`."""
    file: str
    """A safetensors file or a checkpoint in it."""
    licence: str
    """Of the weights, as their publisher states it; often not that of the code."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes one item of a model's image input."""

    height: int
    width: int
    resize: Literal["crop", "letterbox"]
    """`crop`: the shorter side to `resize_to`, then the centre. `letterbox`: the longer side, the rest padded grey."""
    resize_to: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of RGB values in [0, 1]."""


class Model(ABC):
    """What an export needs of a model, reference or the user's own. Only workers build one."""

    task: Task = "tensor"
    """How outputs are judged beyond their elements; see `harness.agreement`. `tensor`: not at all."""
    preprocessing: Preprocessing | None = None
    """For `--inputs` with images; None where the model takes none."""
    tokenizer_file: Path | None = None
    """What the user named; see `harness.declared`."""

    @property
    def tokenizer(self) -> Path | None:
        """The `tokenizer.json` that makes the model's input ids of text; None where there is none here."""
        return self.tokenizer_file

    @property
    @abstractmethod
    def inputs(self) -> tuple[InputSpec, ...]:
        """Inputs in the order of `forward`'s arguments. Of a user's own model known after `build()`."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in the order of `forward`'s results; empty: the exporter names them."""
        return ()

    @abstractmethod
    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module in eval mode, initialised from torch's current random state.

        `dims` are the sizes of all free dimensions; a module of ordinary kind does not depend on them.
        """

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw one set of inputs: name -> array, in the order of `forward`'s arguments.

        Floating-point values are standard normal, as normalised data nearly is; integers are uniform in their range.
        """
        import numpy as np

        generator = np.random.default_rng(seed)

        def draw(spec: InputSpec) -> np.ndarray:
            if np.issubdtype(np.dtype(spec.dtype), np.floating):
                return generator.standard_normal(spec.at(dims), dtype=np.float32).astype(spec.dtype, copy=False)
            return generator.integers(spec.low, spec.high, spec.at(dims)).astype(spec.dtype)

        return {spec.name: draw(spec) for spec in self.inputs}

    def own_names(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a public file's tensors under this model's names, those of other parts left out."""
        return dict(tensors)


class GraphModel(Model):
    """A model that exists as an ONNX graph only. Its reference is ONNX Runtime without graph optimisation."""

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from harness.errors import UnsupportedError

        raise UnsupportedError("needs a torch module, and this model is an ONNX file")

    @abstractmethod
    def write(self, path: Path, dims: Mapping[str, int], dynamic: Mapping[str, tuple[int, int]]) -> None:
        """Write the graph to `path` with its free dimensions fixed to `dims`, but for those in `dynamic`.

        Raises:
            UsageError: A free dimension is not set, or one is set that the graph does not have.
            ExportError: The file is damaged, its external data is missing, or its opset is too new.
        """


class ReferenceModel(Model):
    """A model that comes with harness, or with a package that registers it."""

    name: ClassVar[str]
    summary: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    dims: ClassVar[Mapping[str, int]] = {"batch": 1}
    """Free dimensions and their sizes unless the user says otherwise."""
    Options: ClassVar[type[ModelOptions]] = ModelOptions
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules beyond torch that `build()` imports; a missing one is said before anything starts."""
    install: ClassVar[str] = "pip install 'harness[models]'"
    """The command that brings them."""
    public: PublicWeights | None = None
    """Trained weights that load key for key; of a toy size there are none."""
    default_weights: ClassVar[Literal["seeded", "pretrained"]] = "seeded"
    """What it has unless the user says otherwise."""
    parameters: int
    """Number of trainable parameters with these options; a test checks it against the built module."""
    gflop: float
    """Floating-point operations of one forward pass at the default sizes, in 1e9, a multiply-add counted as two."""
    memory_gib: float
    """Largest resident memory while it is exported at the default sizes, measured with torch 2.13 on a CPU."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        self.options = options or self.Options()

    @property
    def trained(self) -> bool:
        """Whether trained weights can be had: published ones, or those that `load_public()` makes."""
        return self.public is not None

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module with its trained weights: by default `public`'s file, loaded key for key.

        Raises:
            ExportError: They cannot be had, or do not fit; the message says how to get the file by hand.
        """
        from harness import weights

        return weights.load_public(self, dims)


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A figure put together from measured parts, such as an image: a text encoder, many UNet steps, a decoder."""

    name: str
    what: str
    """What one of it is, and how it is put together: shown beside the figure."""
    calls: Mapping[str, int]
    """Model -> how often it is called for one. Parts are taken at their default sizes."""
