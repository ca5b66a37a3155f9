"""A network small enough that a whole comparison of it takes seconds: for tests and for trying the tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.api import ReferenceModel

if TYPE_CHECKING:
    import torch


class Tiny(ReferenceModel):
    """Two convolutions and a linear layer: the operators that every backend has."""

    name = "tiny"
    summary = "two convolutions and a linear layer, 32x32; for tests and a first try"
    tags = ("test",)
    parameters = 5_450
    gflop = 0.00081
    task = "classification"
    output_names = ("logits",)

    def build(self) -> torch.nn.Module:
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

    def example_inputs(self, *, batch: int, seed: int) -> dict[str, np.ndarray]:
        return {"input": np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), dtype=np.float32)}
