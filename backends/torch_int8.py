"""Whether Inductor really computes a quantised module in int8: by what its passes count while they compile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.api import CompileRequest, Scalar
from harness.errors import FallbackError

if TYPE_CHECKING:
    import torch

INT8 = "int8"
COUNTERS = ("qconv_weight_prepack_matcher_count", "qlinear_weight_prepack_matcher_count")
"""One up for each product whose weights were laid out for oneDNN's int8 kernel, which then computes it."""


def lowered(module: torch.nn.Module, request: CompileRequest) -> dict[str, Scalar]:
    """Return how many products a module has in int8, and how many of them the code has int8 kernels for.

    To be called in the process that has just compiled it. Empty in other precisions.

    Raises:
        FallbackError: There is none: all of it would run in float32.
    """
    if request.precision != INT8:
        return {}
    from torch._dynamo.utils import counters

    from harness.torch_quantising import products  # whose imports only a worker needs

    asked, found = products(module), sum(counters["inductor"][name] for name in COUNTERS)
    if not found:
        raise FallbackError(
            f"asked for int8, but Inductor found an int8 kernel for none of the {asked} quantised products",
            hint="they need an x86 processor and a torch with oneDNN: python -c "
            "'import torch; print(torch.backends.mkldnn.is_available())'",
        )
    return {"int8_products": asked, "int8_kernels": int(found)}


def left_in_float(facts: Mapping[str, Scalar]) -> list[str]:
    """Say which part of a quantised module runs in float32 though its weights are int8."""
    asked, found = facts.get("int8_products"), facts.get("int8_kernels")
    if not isinstance(asked, int) or not isinstance(found, int) or found >= asked:
        return []
    return [f"{asked - found} of {asked} quantised products have no int8 kernel and are computed in float32"]
