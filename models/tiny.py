"""A network small enough that a whole comparison of it takes seconds: for tests and for trying the tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.api import InputSpec, Preprocessing, ReferenceModel

if TYPE_CHECKING:
    import torch


class Tiny(ReferenceModel):
    """Two convolutions and a linear layer: the operators that every backend has."""

    name = "tiny"
    summary = "two convolutions and a linear layer, 32x32; for tests and a first try"
    tags = ("test",)
    parameters = 5_450
    gflop = 0.00081
    memory_gib = 0.5
    task = "classification"
    preprocessing = Preprocessing(
        height=32, width=32, resize="crop", resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="input", dtype="float32", shape=("batch", 3, 32, 32)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),  # (B, 16, 16, 16)
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),  # (B, 32, 8, 8)
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # (B, 32, 1, 1)
            nn.Flatten(),
            nn.Linear(32, 10),  # (B, 10)
        ).eval()
