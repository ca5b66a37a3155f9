"""A torch module in half precision, one definition for torch backends and for the graphs that are exported from it.

Imports torch, so only workers call this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NARROW: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16"}
"""Precision -> the dtype of weights and arithmetic."""


def between_casts(module: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Return a module that takes and gives what `module` does, and computes in half precision between two casts.

    The module itself is narrowed, not a copy of it.
    """
    import torch
    from torch.utils import _pytree

    dtype = getattr(torch, NARROW[precision])

    class Narrowed(torch.nn.Module):  # type: ignore[misc]  # its base is Any to the type checker
        def __init__(self) -> None:
            super().__init__()
            self.module = module.to(dtype)

        def forward(self, *arguments: torch.Tensor) -> Any:  # whatever the module returns
            narrow = [one.to(dtype) if one.is_floating_point() else one for one in arguments]
            return _pytree.tree_map_only(
                torch.Tensor, lambda one: one.float() if one.dtype == dtype else one, self.module(*narrow)
            )

    return Narrowed().eval()
