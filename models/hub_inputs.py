"""What a transformers model takes, told from its configuration and its image processor's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.api import InputSpec, Preprocessing
from harness.errors import UnsupportedError

SEQUENCE = 128
"""Tokens unless the user says otherwise, or as many as the model has positions for."""
DECODER_SEQUENCE = 16
SAMPLES = 16_000
"""Of a waveform: a second at the rate that speech models are trained with."""
FACTORY = "write a factory that builds it and says its inputs: --model package.module:factory"


def inputs_of(
    kind: Any, config: Any, processor: Mapping[str, Any], name: str
) -> tuple[tuple[InputSpec, ...], dict[str, int]]:
    """Return inputs and default sizes of their free dimensions, as far as a configuration tells them.

    Raises:
        UnsupportedError: It does not tell them.
    """
    main = getattr(kind, "main_input_name", "input_ids")
    composite = main == "input_ids" and hasattr(config, "vision_config")
    # Two encoders side by side take a text and an image; a language model that sees needs image tokens in its text.
    if composite and not hasattr(kind, "get_text_features"):
        raise UnsupportedError(
            f"the inputs of hf:{name} ({kind.__name__}) cannot be told from its configuration", hint=FACTORY
        )
    inputs: list[InputSpec] = []
    dims: dict[str, int] = {}
    if main == "input_ids":
        inputs += _text(getattr(config, "text_config", None) or config, dims, "sequence", SEQUENCE)
        inputs.append(InputSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"), low=1, high=2))
    if main == "pixel_values" or composite:
        inputs.append(_image(getattr(config, "vision_config", None) or config, processor, dims))
    elif main == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        # Two frames a position: the encoder's second convolution has stride 2.
        shape = ("batch", config.num_mel_bins, 2 * config.max_source_positions)
        inputs.append(InputSpec(name=main, dtype="float32", shape=shape))
    elif main == "input_values" and hasattr(config, "conv_stride"):
        inputs.append(InputSpec(name=main, dtype="float32", shape=("batch", "samples")))
        dims["samples"] = SAMPLES
    if not inputs:
        raise UnsupportedError(f"the input '{main}' of hf:{name} cannot be told from its configuration", hint=FACTORY)
    if getattr(config, "is_encoder_decoder", False) and main != "pixel_values":
        inputs += _text(config, dims, "decoder_sequence", DECODER_SEQUENCE)
    return tuple(inputs), dims


def _text(config: Any, dims: dict[str, int], dim: str, size: int) -> list[InputSpec]:
    positions = next(
        (
            found
            for key in ("max_position_embeddings", "n_positions", "max_target_positions")
            if (found := getattr(config, key, None))
        ),
        size,
    )
    dims[dim] = min(size, positions)
    name = "input_ids" if dim == "sequence" else "decoder_input_ids"
    return [InputSpec(name=name, dtype="int64", shape=("batch", dim), high=config.vocab_size)]


def _image(config: Any, processor: Mapping[str, Any], dims: dict[str, int]) -> InputSpec:
    """Return the image's input: of the size that the configuration fixes, or of a free one."""
    channels = getattr(config, "num_channels", 3)
    size = getattr(config, "image_size", None)
    if size:
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return InputSpec(name="pixel_values", dtype="float32", shape=("batch", channels, height, width))
    usual = _size_of(processor)
    if usual:
        dims["height"], dims["width"] = usual
    return InputSpec(name="pixel_values", dtype="float32", shape=("batch", channels, "height", "width"))


def _size_of(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of what the model's own image processor makes."""
    for key in ("crop_size", "size"):
        size = processor.get(key)
        if isinstance(size, int):
            return size, size
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
            height, width = size.get("height", edge), size.get("width", edge)
            if isinstance(height, int) and isinstance(width, int):
                return height, width
    return None


def preprocessing_of(inputs: tuple[InputSpec, ...], processor: Mapping[str, Any]) -> Preprocessing | None:
    """Return how an image becomes an input, from the model's own processor: its shorter side resized, then cropped."""
    size = _size_of(processor)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if size is None or not any(spec.name == "pixel_values" for spec in inputs):
        return None
    resized = processor.get("size")
    edge = resized.get("shortest_edge") if isinstance(resized, Mapping) else resized
    normal = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3
    statistics = {"mean": tuple(mean), "std": tuple(std)} if normal and mean and std else {}
    return Preprocessing(
        height=size[0],
        width=size[1],
        resize="crop",
        resize_to=max(edge if isinstance(edge, int) else 0, *size),
        **statistics,
    )
