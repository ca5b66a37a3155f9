"""On which kind of device each of a model's operators computes, found without computing anything.

A copy of the module without values runs on torch's `meta` device, which stands for the one that was asked for: what
`forward` does elsewhere shows. The session's own module and the device are left alone: the first run stays cold.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

from backends.torch_cuda import Place
from harness.api import CompileRequest

if TYPE_CHECKING:
    import torch

META = "meta"


def placement(module: torch.nn.Module, request: CompileRequest, place: Place) -> dict[str, int]:
    """Return device kind -> how many operators compute there, by where their results lie.

    Where values decide what is computed, or on a CPU, where there is nothing to find: how many modules have weights
    there. A compiler may fuse operators, leave some out, and make a constant where it is used.
    """
    if place.stream is None:
        return layers(module)
    try:
        found = _operators(module, request)
    except Exception:  # a model may do anything that needs values; then its weights are all that is known
        return layers(module)
    return {place.device.type if kind == META else kind: count for kind, count in found.items()} or layers(module)


def layers(module: torch.nn.Module) -> dict[str, int]:
    """Return device kind -> how many modules have parameters or buffers of their own there."""
    found: Counter[str] = Counter()
    for part in module.modules():
        found.update({tensor.device.type for tensor in _own(part)})
    return dict(found)


def _own(part: torch.nn.Module) -> list[torch.Tensor]:
    return [*part.parameters(recurse=False), *part.buffers(recurse=False)]


def _operators(module: torch.nn.Module, request: CompileRequest) -> Counter[str]:
    import torch
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[str] = Counter()

    class Count(TorchDispatchMode):  # type: ignore[misc]  # torch is Any to the type checker
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is torch.ops.aten._to_copy.default and _leaves_meta(args[0], kwargs.get("device")):
                args = (torch.zeros(args[0].shape, dtype=args[0].dtype),)  # there are no values to copy
            result = func(*args, **kwargs)
            tensors = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            found.update({tensor.device.type for tensor in tensors})
            return result

    with torch.inference_mode(False), torch.no_grad():  # in inference mode operators are not taken apart on their way
        shadow = _without_values(module)
        inputs = [
            torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=META) for spec in request.artifact.inputs
        ]
        with Count():
            shadow(*inputs)
    return found


def _leaves_meta(tensor: torch.Tensor, device: Any) -> bool:
    return bool(tensor.device.type == META and device is not None and device.type != META)


def _without_values(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose tensors lie on the meta device; the module's own are not copied on the way."""
    import torch

    memo: dict[int, Any] = {}
    for part in module.modules():
        plain = [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
        for tensor in (*_own(part), *plain):
            bare = torch.empty_like(tensor, device=META)
            memo[id(tensor)] = torch.nn.Parameter(bare, False) if isinstance(tensor, torch.nn.Parameter) else bare
    return copy.deepcopy(module, memo)
