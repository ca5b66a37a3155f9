"""Llama 3 (arXiv:2407.21783) from transformers' classes: reading a prompt, and one step with a key/value cache.

Configurations are written out from the published `config.json` of each size. Parameter names equal those of the
published checkpoints: where the output layer shares the embedding's weight it has no name of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from harness.api import InputSpec, ModelOptions, PublicWeights, ReferenceModel
from models import key_value_cache
from models.key_value_cache import PAST, PRESENT

if TYPE_CHECKING:
    import numpy as np
    import torch

Size = Literal["tiny", "1b", "3b", "8b"]


class LlamaOptions(ModelOptions, frozen=True, kw_only=True):
    """Which of the published models' shapes."""

    size: Annotated[
        Size, msgspec.Meta(description="tiny is a toy of the same graph; 1b, 3b: Llama 3.2; 8b: Llama 3.1")
    ] = "1b"


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between the sizes."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    rope_factor: float
    parameters: int
    prefill_gflop: float
    decode_gflop: float
    memory_gib: float
    """Of 3b and 8b not measured but computed as what 1b's comes to: the weights, an output layer of their own before
    it is tied, and 0.4 GiB."""
    public: tuple[PublicWeights, ...] = ()
    """The parts of the published checkpoint."""


def _published(name: str, version: str, *files: str) -> tuple[PublicWeights, ...]:
    licence = f"Llama {version} Community License, to be accepted on the hub"
    return tuple(PublicWeights(repository=f"meta-llama/{name}", file=file, licence=licence) for file in files)


def _parts(count: int) -> list[str]:
    return [f"model-{part:05d}-of-{count:05d}.safetensors" for part in range(1, count + 1)]


_SHAPES: Mapping[Size, _Shape] = {
    "tiny": _Shape(
        hidden=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        head_dim=16,
        intermediate=128,
        vocabulary=256,
        tied=True,
        rope_factor=32.0,
        parameters=90_432,
        prefill_gflop=0.0273,
        decode_gflop=0.000246,
        memory_gib=0.5,
    ),
    "1b": _Shape(
        hidden=2048,
        layers=16,
        heads=32,
        key_value_heads=8,
        head_dim=64,
        intermediate=8192,
        vocabulary=128_256,
        tied=True,
        rope_factor=32.0,
        parameters=1_235_814_400,
        prefill_gflop=251.8,
        decode_gflop=2.488,
        memory_gib=6.0,
        public=_published("Llama-3.2-1B", "3.2", "model.safetensors"),
    ),
    "3b": _Shape(
        hidden=3072,
        layers=28,
        heads=24,
        key_value_heads=8,
        head_dim=128,
        intermediate=8192,
        vocabulary=128_256,
        tied=True,
        rope_factor=32.0,
        parameters=3_212_749_824,
        prefill_gflop=728.0,
        decode_gflop=6.47,
        memory_gib=13.8,
        public=_published("Llama-3.2-3B", "3.2", *_parts(2)),
    ),
    "8b": _Shape(
        hidden=4096,
        layers=32,
        heads=32,
        key_value_heads=8,
        head_dim=128,
        intermediate=14_336,
        vocabulary=128_256,
        tied=False,
        rope_factor=8.0,
        parameters=8_030_261_248,
        prefill_gflop=1796.0,
        decode_gflop=15.08,
        memory_gib=30.3,
        public=_published("Llama-3.1-8B", "3.1", *_parts(4)),
    ),
}


class _Llama(ReferenceModel):
    """What reading a prompt and decoding have in common: configuration, weights, the cache's names."""

    tags = ("nlp", "generation")
    task = "tokens"
    Options = LlamaOptions
    requires = ("transformers",)
    options: LlamaOptions

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self._shape = _SHAPES[self.options.size]
        self.parameters = self._shape.parameters
        self.memory_gib = self._shape.memory_gib
        self.public = next(iter(self._shape.public), None)  # each size has its own

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits", *key_value_cache.names(PRESENT, self._shape.layers))

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers import LlamaForCausalLM

        return self._wrap(LlamaForCausalLM(_config(self._shape)))

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module with its trained weights, put together where they are published in parts.

        Raises:
            ExportError: They cannot be had, or do not fit; the message says how to get the file by hand.
        """
        from harness.checkpoints import read_state_dict
        from harness.public import fetch
        from harness.weights import fill

        if len(self._shape.public) < 2:
            return super().load_public(dims)
        tensors: dict[str, torch.Tensor] = {}
        for part in self._shape.public:
            tensors |= read_state_dict(fetch(part).path)
        module = self.build(dims)
        fill(module, tensors, f"{self._shape.public[0].repository} does not fit {self.name}")
        return module

    @abstractmethod
    def _wrap(self, causal: Any) -> torch.nn.Module:
        """Return a module of plain tensors around a `LlamaForCausalLM`."""


class LlamaPrefill(_Llama):
    """Read a prompt: logits of its last position, which is all that serving needs, and the cache."""

    name = "llama-prefill"
    summary = "Llama 3.2 1B (or 3B, 8B): reads a prompt of 128 tokens, fills the key/value cache"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "sequence": 128}

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.gflop = self._shape.prefill_gflop

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), high=self._shape.vocabulary),)

    def _wrap(self, causal: Any) -> torch.nn.Module:
        return _modules()[0](causal).eval()


class LlamaDecode(_Llama):
    """One step of generation: one token in, its logits and the grown cache out."""

    name = "llama-decode"
    summary = "Llama 3.2 1B (or 3B, 8B): one token with a key/value cache of 128"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "past": 128}

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.gflop = self._shape.decode_gflop

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        cache = ("batch", self._shape.key_value_heads, "past", self._shape.head_dim)
        return (
            InputSpec(name="input_ids", dtype="int64", shape=("batch", 1), high=self._shape.vocabulary),
            InputSpec(name="position_ids", dtype="int64", shape=("batch", 1)),
            *(
                InputSpec(name=name, dtype="float32", shape=cache)
                for name in key_value_cache.names(PAST, self._shape.layers)
            ),
        )

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw one set of inputs. The token stands right after the cache.

        Standard normal keys and values are of the scale of real ones: normalised states through an initialised layer.
        """
        drawn = super().example_inputs(dims, seed)
        drawn["position_ids"][...] = dims["past"]
        return drawn

    def _wrap(self, causal: Any) -> torch.nn.Module:
        return _modules()[1](causal).eval()


def _config(shape: _Shape) -> Any:
    """Return a `transformers.LlamaConfig`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": shape.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )


def _modules() -> tuple[Any, Any]:
    """Return the classes of the two modules; made here because their base needs torch, which only workers import."""
    from torch import Tensor, nn

    class Language(nn.Module):
        def __init__(self, causal: Any) -> None:
            super().__init__()
            self.model = causal.model
            # A shared weight under a second name would be stored twice, and part ways when it is loaded again.
            self.lm_head = None if causal.config.tie_word_embeddings else causal.lm_head

        def answer(self, states: Any) -> tuple[Tensor, ...]:
            last = states.last_hidden_state[:, -1:]  # (B, 1, hidden)
            if self.lm_head is None:
                logits = nn.functional.linear(last, self.model.embed_tokens.weight)
            else:
                logits = self.lm_head(last)
            layers = states.past_key_values.layers  # of keys and values: (B, key/value heads, length, head)
            return (logits, *(part for layer in layers for part in (layer.keys, layer.values)))

    class Prefill(Language):
        def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:  # (B, T) -> (B, 1, vocabulary), cache of T
            return self.answer(self.model(input_ids, use_cache=True))

    class Decode(Language):
        def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            # (B, 1), (B, 1), cache of P -> (B, 1, vocabulary), cache of P + 1
            cache = key_value_cache.holding(past[::2], past[1::2])
            return self.answer(self.model(input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True))

    return Prefill, Decode
