"""Whisper large-v3 (Radford et al. 2022, arXiv:2212.04356) from transformers' classes, in the parts that run apart.

The encoder runs once for 30 seconds of sound, the decoder once over the prompt and then once for each token, with a
cache of its own keys and values and one of those that it made of the encoder's states. The configuration is written
out from the published `config.json`; parameter names equal those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from harness.api import InputSpec, ModelOptions, PublicWeights, ReferenceModel
from harness.errors import ExportError
from models import key_value_cache
from models.key_value_cache import PAST, PRESENT

if TYPE_CHECKING:
    import numpy as np
    import torch

Size = Literal["full", "tiny"]


class WhisperOptions(ModelOptions, frozen=True, kw_only=True):
    """How large."""

    size: Annotated[Size, msgspec.Meta(description="full: large-v3; tiny: a toy of the same graph")] = "full"


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between the sizes."""

    width: int
    layers: int
    heads: int
    mel_bins: int
    frames: int
    """Of the encoder's output; its input has twice as many."""
    vocabulary: int
    longest: int
    """Tokens that the decoder has positions for."""
    padding_token: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


_SHAPES: Mapping[Size, _Shape] = {
    "full": _Shape(
        width=1280,
        layers=32,
        heads=20,
        mel_bins=128,
        frames=1500,
        vocabulary=51_866,
        longest=448,
        padding_token=50_256,
    ),
    "tiny": _Shape(width=64, layers=2, heads=2, mel_bins=16, frames=50, vocabulary=256, longest=192, padding_token=0),
}


class _Facts(msgspec.Struct, frozen=True):
    """What one part of one size states about itself."""

    parameters: int
    gflop: float
    memory_gib: float


class _Whisper(ReferenceModel):
    """What the three parts have in common."""

    tags = ("speech",)
    Options = WhisperOptions
    requires = ("transformers",)
    options: WhisperOptions
    half: ClassVar[Literal["encoder", "decoder"]]
    facts: ClassVar[Mapping[Size, _Facts]]

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self._shape = _SHAPES[self.options.size]
        facts = self.facts[self.options.size]
        self.parameters, self.gflop, self.memory_gib = facts.parameters, facts.gflop, facts.memory_gib
        if self.options.size == "full":
            self.public = PublicWeights(  # the toy has none
                repository="openai/whisper-large-v3", file="model.safetensors", licence="Apache-2.0"
            )

    def own_names(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of the published checkpoint that this part has: the encoder's or the decoder's."""
        return {name: tensor for name, tensor in tensors.items() if name.startswith(f"model.{self.half}.")}

    def _check(self, tokens: int) -> None:
        if tokens > self._shape.longest:
            raise ExportError(f"{self.name} has positions for {self._shape.longest} tokens, not for {tokens}")


class WhisperLargeEncoder(_Whisper):
    """Sound to states: 32 layers over 1500 frames."""

    name = "whisper-large-encoder"
    summary = "Whisper large-v3 encoder, 30 s of sound as a log-mel spectrogram"
    half = "encoder"
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(636_968_960, 2274.0, 3.0),
        "tiny": _Facts(118_656, 0.01295, 0.5),
    }

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = ("batch", self._shape.mel_bins, 2 * self._shape.frames)
        return (InputSpec(name="input_features", dtype="float32", shape=shape),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("last_hidden_state",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return _modules()[0](WhisperEncoder(_config(self._shape))).eval()


class WhisperLargePrefill(_Whisper):
    """The decoder over its prompt: language, task and time tokens, by default four."""

    name = "whisper-large-prefill"
    task = "tokens"
    summary = "Whisper large-v3 decoder: reads a prompt of 4 tokens, fills both key/value caches"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "sequence": 4}
    half = "decoder"
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(906_521_600, 321.6, 5.2),
        "tiny": _Facts(162_048, 0.0027, 0.5),
    }

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self._shape
        return (
            InputSpec(name="decoder_input_ids", dtype="int64", shape=("batch", "sequence"), high=shape.vocabulary),
            InputSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", shape.frames, shape.width)),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits", *key_value_cache.names(PRESENT, self._shape.layers, "decoder", "encoder"))

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        self._check(dims["sequence"])
        return _modules()[1](WhisperDecoder(_config(self._shape))).eval()


class WhisperLargeDecode(_Whisper):
    """One step of the decoder: one token in, its logits and the grown cache of its own keys and values out."""

    name = "whisper-large-decode"
    task = "tokens"
    summary = "Whisper large-v3 decoder: one token with a key/value cache of 128 and one of the encoder's 1500 frames"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "past": 128}
    half = "decoder"
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(906_521_600, 1.868, 4.4),
        "tiny": _Facts(162_048, 0.000354, 0.5),
    }

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self._shape
        lengths: Mapping[str, int | str] = {"decoder": "past", "encoder": shape.frames}
        return (
            InputSpec(name="decoder_input_ids", dtype="int64", shape=("batch", 1), high=shape.vocabulary),
            InputSpec(name="position_ids", dtype="int64", shape=("batch", 1)),
            *(
                InputSpec(
                    name=name,
                    dtype="float32",
                    shape=("batch", shape.heads, lengths[name.split(".")[2]], shape.head_dim),
                )
                for name in key_value_cache.names(PAST, shape.layers, "decoder", "encoder")
            ),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        # The encoder's part of the cache does not change.
        return ("logits", *key_value_cache.names(PRESENT, self._shape.layers, "decoder"))

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw one set of inputs. The token stands right after the cache."""
        drawn = super().example_inputs(dims, seed)
        drawn["position_ids"][...] = dims["past"]
        return drawn

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        self._check(dims["past"] + 1)
        return _modules()[2](WhisperDecoder(_config(self._shape))).eval()


def _config(shape: _Shape) -> Any:
    """Return a `transformers.WhisperConfig`."""
    from transformers import WhisperConfig

    return WhisperConfig(
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        num_mel_bins=shape.mel_bins,
        max_source_positions=shape.frames,
        max_target_positions=shape.longest,
        vocab_size=shape.vocabulary,
        pad_token_id=shape.padding_token,
        bos_token_id=shape.padding_token + 1,
        eos_token_id=shape.padding_token + 1,
        decoder_start_token_id=shape.padding_token + 2,
    )


def _modules() -> tuple[Any, Any, Any]:
    """Return the modules' classes; made here because their base needs torch, which only workers import."""
    from torch import Tensor, nn
    from transformers import EncoderDecoderCache

    class Encoder(nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"encoder": encoder})

        def forward(self, input_features: Tensor) -> Tensor:  # (B, mel bins, 2 * frames) -> (B, frames, width)
            return self.model["encoder"](input_features).last_hidden_state

    class Decoder(nn.Module):
        def __init__(self, decoder: Any) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"decoder": decoder})

        def logits(self, states: Any) -> Tensor:
            # The output layer is the embedding's weight; serving needs its result at the last position only.
            weight = self.model["decoder"].embed_tokens.weight
            return nn.functional.linear(states.last_hidden_state[:, -1:], weight)  # (B, 1, vocabulary)

    class Prefill(Decoder):
        def forward(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
            # (B, T), (B, frames, width) -> (B, 1, vocabulary), caches of T and of frames
            states = self.model["decoder"](
                decoder_input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=True
            )
            own, encoder = states.past_key_values.self_attention_cache, states.past_key_values.cross_attention_cache
            pairs = zip(own.layers, encoder.layers, strict=True)
            return (
                self.logits(states),
                *(part for pair in pairs for layer in pair for part in (layer.keys, layer.values)),
            )

    class Decode(Decoder):
        def forward(self, decoder_input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            # (B, 1), (B, 1), caches of P and of frames -> (B, 1, vocabulary), cache of P + 1
            own = key_value_cache.holding(past[::4], past[1::4])
            encoder = key_value_cache.holding(past[2::4], past[3::4])
            states = self.model["decoder"](
                decoder_input_ids,
                position_ids=position_ids,
                # The layers attend to the encoder if this is there at all; its keys and values are in the cache.
                encoder_hidden_states=past[2],
                past_key_values=EncoderDecoderCache(own, encoder),
                use_cache=True,
            )
            return (self.logits(states), *(part for layer in own.layers for part in (layer.keys, layer.values)))

    return Encoder, Prefill, Decode
