"""Figures that are put together from several models' measurements. Nothing here is measured as a whole."""

from __future__ import annotations

from harness.api import Composition

COMPOSITIONS: tuple[Composition, ...] = (
    Composition(
        name="sd15-image",
        what=(
            "one 512x512 image by Stable Diffusion 1.5 in 50 steps with classifier-free guidance: 2 text encodings "
            "(prompt and empty prompt), 100 UNet calls (2 a step) and 1 decoding, all at batch 1; without tokeniser, "
            "scheduler, safety checker and copies between the parts"
        ),
        calls={"sd15-text-encoder": 2, "sd15-unet": 100, "sd15-vae-decoder": 1},
    ),
    Composition(
        name="llama-answer",
        what=(
            "128 more tokens after one prompt: 1 prefill and 128 decode steps, every step counted as long as the one "
            "that was measured, at its length of key/value cache; without tokeniser and sampling"
        ),
        calls={"llama-prefill": 1, "llama-decode": 128},
    ),
    Composition(
        name="whisper-large-window",
        what=(
            "one 30 s window of speech written down in 64 tokens, greedily: 1 encoding, 1 prefill and 64 decode steps, "
            "every step counted as long as the one that was measured, at its length of key/value cache; without "
            "spectrogram and tokeniser"
        ),
        calls={"whisper-large-encoder": 1, "whisper-large-prefill": 1, "whisper-large-decode": 64},
    ),
)
