"""Single operators and small fusions, for reading a compiler's mind: each asks one question of a backend."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from harness.api import InputSpec, ModelOptions, ReferenceModel

if TYPE_CHECKING:
    import torch

HEADS, HEAD_SIZE = 12, 64
"""Of BERT-base."""
CHANNELS, SIDE = 64, 80
"""Of a detector's finest level at 640x640."""
HIDDEN = 1024


class GemmOptions(ModelOptions, frozen=True, kw_only=True):
    """The weight's shape; the number of rows is the free dimension `m`."""

    n: Annotated[int, msgspec.Meta(ge=1, le=65536, description="columns of the weight")] = 1024
    k: Annotated[int, msgspec.Meta(ge=1, le=65536, description="rows of the weight: the length of each sum")] = 1024


class Gemm(ReferenceModel):
    """Does it use a tuned matrix product, and does it pack the constant side beforehand?"""

    name = "gemm"
    summary = "one matrix product with a constant right side, 1024x1024x1024"
    tags = ("micro",)
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "m": 1024}
    Options = GemmOptions
    options: GemmOptions
    memory_gib = 0.5

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.n, self.k = self.options.n, self.options.k
        self.parameters = self.n * self.k
        self.gflop = 2 * self.dims["m"] * self.n * self.k / 1e9

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="x", dtype="float32", shape=("batch", "m", self.k)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        import torch
        from torch import Tensor, nn

        class Product(nn.Module):
            def __init__(self, k: int, n: int) -> None:
                super().__init__()
                # Sums of k products of unit variance: divided by sqrt(k), the output has unit variance too.
                self.weight = nn.Parameter(torch.randn(k, n) / k**0.5)

            def forward(self, x: Tensor) -> Tensor:  # (B, m, k) -> (B, m, n)
                return x @ self.weight

        return Product(self.k, self.n).eval()


class Attention(ReferenceModel):
    """Does it keep attention whole, or write the matrix of scores to memory?"""

    name = "attention"
    summary = "scaled dot-product attention, 12 heads of 64, sequence 512"
    tags = ("micro", "attention")
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "sequence": 512}
    parameters = 0
    gflop = 0.805
    memory_gib = 0.5

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = ("batch", HEADS, "sequence", HEAD_SIZE)
        return tuple(InputSpec(name=name, dtype="float32", shape=shape) for name in ("query", "key", "value"))

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("context",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from torch import Tensor, nn

        class ScaledDotProduct(nn.Module):
            def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # all (B, heads, sequence, size)
                return nn.functional.scaled_dot_product_attention(query, key, value)

        return ScaledDotProduct().eval()


class ConvBnSilu(ReferenceModel):
    """Does it fold the normalisation into the weights, and the activation into the convolution?"""

    name = "conv-bn-silu"
    summary = "3x3 convolution, batch norm, SiLU: 64 channels, 80x80"
    tags = ("micro", "vision")
    parameters = 36_992
    gflop = 0.4719
    memory_gib = 0.5

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="x", dtype="float32", shape=("batch", CHANNELS, SIDE, SIDE)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from torch import nn

        convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, bias=False)
        norm = nn.BatchNorm2d(CHANNELS)
        # Fresh statistics would make the norm a multiplication by one: an error in folding it could not show.
        nn.init.normal_(norm.running_mean, std=0.5)
        nn.init.uniform_(norm.running_var, 0.25, 1.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
        return nn.Sequential(OrderedDict(conv=convolution, bn=norm, act=nn.SiLU())).eval()  # (B, 64, 80, 80) throughout


class LayerNormSigmoid(ReferenceModel):
    """Does it fuse a reduction with what follows, and read its input once?"""

    name = "layernorm-sigmoid"
    summary = "layer norm and sigmoid over 1024 features, sequence 512"
    tags = ("micro",)
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "sequence": 512}
    parameters = 2 * HIDDEN
    gflop = 0.0
    """Counted are products and convolutions: there are none, and memory bounds it."""
    memory_gib = 0.5

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="x", dtype="float32", shape=("batch", "sequence", HIDDEN)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from torch import nn

        norm = nn.LayerNorm(HIDDEN)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
        return nn.Sequential(OrderedDict(norm=norm, act=nn.Sigmoid())).eval()  # (B, sequence, HIDDEN) throughout
