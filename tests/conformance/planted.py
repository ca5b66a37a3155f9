"""A module in which one product is many times as expensive as all else, as a user's own file would hold it."""

from __future__ import annotations

import torch
from torch import nn

WIDTH, INNER = 64, 2048


class Planted(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """A small product, a large one, a small one, with cheap operators around them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.large = nn.Linear(INNER, INNER)
        self.after = nn.Linear(WIDTH, 8)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.before(x))  # (16, WIDTH)
        wide = x.reshape(1, -1).repeat(16, INNER // (16 * WIDTH))  # (16, INNER)
        x = torch.tanh(self.large(wide)).reshape(-1, WIDTH)
        return self.after(self.norm(x))


def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Return the module with random weights, and an example of its input."""
    torch.manual_seed(0)
    return Planted().eval(), (torch.randn(16, WIDTH),)
