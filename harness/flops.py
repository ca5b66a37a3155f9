"""Count the floating-point operations of a module. Imports torch: for workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def count(module: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> float | None:
    """Return those of one forward pass in 1e9: matrix products and convolutions, a multiply-add counted as two.

    Nothing is computed: shapes go through the module, as torch's fake tensors. None where that cannot be, because
    what the module does depends on values.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # The counter has no formula for attention's kernels on a CPU; written out, attention is two matrix products.
    attention = sdpa_kernel(SDPBackend.MATH)
    try:
        with torch.no_grad(), attention, FakeTensorMode(allow_non_fake_inputs=True) as fake, counter:
            module(*[fake.from_tensor(torch.tensor(array)) for array in tensors.values()])
    except Exception:  # a figure for the report is not worth a failed export
        return None
    return float(counter.get_total_flops()) / 1e9
