"""A model with convolutions, of which torch tells a batch below 16 from others on a CPU."""

from __future__ import annotations

import torch
from torch import nn


class Pictures(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """Two convolutions, one with a stride and one of 1x1, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Take (B, 3, H, W), return (B, 4)."""
        return self.head(self.point(self.norm(self.stem(image)).relu()).relu().mean((2, 3)))


def make(batch: int = 1, seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the module and one set of inputs."""
    torch.manual_seed(seed)
    module = Pictures()
    return module, {"image": torch.randn(batch, 3, 16, 16)}
