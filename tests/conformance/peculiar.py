"""A model with everything that is unusual about inputs and outputs, as a factory: what a backend has to survive."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

VOCABULARY, LENGTH, WIDTH = 32, 8, 16


class Peculiar(nn.Module):  # type: ignore[misc]  # torch carries no types here
    """One attention block over integers, steered by a scalar and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self, tokens: torch.Tensor, keep: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Take int64 and bool of (B, T) and an int64 scalar; return floats, integers, a view, and an input itself."""
        x = self.embed(tokens) + torch.sin(step.to(torch.float32))  # (B, T, C)
        q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, T, C) each: one head
        x = x + functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :]).squeeze(1)
        logits = self.head(x)  # (B, T, V)
        return logits, logits[:, -1].argmax(-1), k.transpose(2, 3), tokens


def make(batch: int = 1, seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the module and one set of inputs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(batch, LENGTH, generator=generator) < 0.7
    keep[:, 0] = True  # a row of scores that are all masked has no softmax
    inputs = {
        "tokens": torch.randint(VOCABULARY, (batch, LENGTH), generator=generator),
        "keep": keep,
        "step": torch.tensor(3),
    }
    return Peculiar(), inputs
