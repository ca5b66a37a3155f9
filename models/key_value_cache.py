"""What graphs with a key/value cache share: its tensors' names, and the cache itself around tensors that are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PAST = "past_key_values"
PRESENT = "present"


def names(prefix: str, layers: int, *sides: str) -> list[str]:
    """Return `prefix.LAYER.key` and `.value` of all layers, the names that exporters commonly use.

    Of a decoder that also attends to an encoder each layer has `sides`: `prefix.LAYER.SIDE.key` and so on.
    """
    parts = [f"{side}.{part}" if side else part for side in sides or ("",) for part in ("key", "value")]
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in parts]


def holding(keys: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> Any:
    """Return a `transformers` cache that holds one key and one value tensor a layer, (B, heads, length, head).

    The library's own way appends them to an empty cache, which copies all of it: eager would pay that at every token.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for key, value in zip(keys, values, strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache
