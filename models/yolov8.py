"""YOLOv8 detectors (Ultralytics, 2023), in the five published sizes: backbone, feature pyramid, head without anchors.

Written from the published description: C2f blocks, fast spatial pyramid pooling, a decoupled head that gives every box
side as a distribution over 16 bins (generalised focal loss, arXiv:2006.04388). Parameter and buffer names equal those
of the public checkpoints, so these load key for key. Boxes are decoded inside the graph; suppression of doubles is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from harness.api import InputSpec, Preprocessing, PublicWeights, ReferenceModel
from harness.errors import UsageError

if TYPE_CHECKING:
    import torch

CLASSES = 80
"""Of COCO."""
BINS = 16
"""Of the distribution that stands for one side's distance from the anchor, in units of the level's stride."""
STRIDES = (8, 16, 32)
GAIN, FIRST_GAIN, BRANCH_GAIN = 1.88, 0.5, 0.5
"""Of seeded weights, found by trying all sizes: logits vary by 0.4 to 0.6, and a small change of the input reaches the
scores neither lost nor amplified (0.3 to 0.9 of its relative size). See `_initialise`."""


class YoloV8(ReferenceModel):
    """What the five sizes share."""

    tags = ("vision", "detection")
    task = "detection"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "height": 640, "width": 640}
    preprocessing = Preprocessing(height=640, width=640, resize="letterbox", resize_to=640)
    depth: ClassVar[float]
    """Factor on the number of bottlenecks in a block."""
    width: ClassVar[float]
    """Factor on the number of channels."""
    channels_at_most: ClassVar[int]
    """Limit on the channels of the coarsest level, before `width`."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="images", dtype="float32", shape=("batch", 3, "height", "width")),)

    @property
    def output_names(self) -> tuple[str, ...]:
        # (batch, 4 + 80, anchors): centre x, centre y, width, height in pixels, then a score for each class.
        return ("output0",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        for name in ("height", "width"):
            size = dims.get(name, self.dims[name])
            if size % STRIDES[-1]:
                raise UsageError(
                    f"{self.name} needs a {name} that is a multiple of {STRIDES[-1]}, not {size}",
                    hint=f"--dim {name}={math.ceil(size / STRIDES[-1]) * STRIDES[-1]}",
                )
        module = _define(self.depth, self.width, self.channels_at_most)
        _initialise(module)
        return module.eval()


class YoloV8n(YoloV8):
    """Nano."""

    name = "yolov8n"
    summary = "YOLOv8 nano detector, 640x640, boxes decoded, no NMS"
    depth, width, channels_at_most = 0.33, 0.25, 1024
    public = PublicWeights(repository="Ultralytics/YOLOv8", file="yolov8n.pt", licence="AGPL-3.0")
    parameters = 3_157_200
    gflop = 8.744
    memory_gib = 0.7


class YoloV8s(YoloV8):
    """Small."""

    name = "yolov8s"
    summary = "YOLOv8 small detector, 640x640, boxes decoded, no NMS"
    depth, width, channels_at_most = 0.33, 0.50, 1024
    public = PublicWeights(repository="Ultralytics/YOLOv8", file="yolov8s.pt", licence="AGPL-3.0")
    parameters = 11_166_560
    gflop = 28.60
    memory_gib = 0.8


class YoloV8m(YoloV8):
    """Medium."""

    name = "yolov8m"
    summary = "YOLOv8 medium detector, 640x640, boxes decoded, no NMS"
    depth, width, channels_at_most = 0.67, 0.75, 768
    public = PublicWeights(repository="Ultralytics/YOLOv8", file="yolov8m.pt", licence="AGPL-3.0")
    parameters = 25_902_640
    gflop = 78.94
    memory_gib = 1.0


class YoloV8l(YoloV8):
    """Large."""

    name = "yolov8l"
    summary = "YOLOv8 large detector, 640x640, boxes decoded, no NMS"
    depth, width, channels_at_most = 1.0, 1.0, 512
    public = PublicWeights(repository="Ultralytics/YOLOv8", file="yolov8l.pt", licence="AGPL-3.0")
    parameters = 43_691_520
    gflop = 165.1
    memory_gib = 1.4


class YoloV8x(YoloV8):
    """Extra large."""

    name = "yolov8x"
    summary = "YOLOv8 extra-large detector, 640x640, boxes decoded, no NMS"
    depth, width, channels_at_most = 1.0, 1.25, 512
    public = PublicWeights(repository="Ultralytics/YOLOv8", file="yolov8x.pt", licence="AGPL-3.0")
    parameters = 68_229_648
    gflop = 257.8
    memory_gib = 1.8


def _initialise(module: torch.nn.Module) -> None:
    """Draw convolutions so that seeded outputs depend on the input as strongly as a trained network's.

    With torch's own initialisation the signal dies: two inputs give the same output to seven digits, and no drift could
    show. Here each filter has zero mean and a variance of gain^2 / fan-in (scaled weight standardisation,
    arXiv:2101.08692), since SiLU's positive mean else grows into a constant that drowns the input; and residual
    branches are damped by the root of their number, so that a deeper block is not a louder one.
    """
    import torch
    from torch import nn

    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
                weight = nn.init.normal_(layer.weight)
                weight -= weight.mean((1, 2, 3), keepdim=True)
                weight *= (FIRST_GAIN if name == "model.0.conv" else GAIN) / math.sqrt(weight[0].numel())
            elif isinstance(layer, nn.ModuleList) and any(getattr(part, "residual", False) for part in layer):
                for bottleneck in layer:
                    bottleneck.cv2.bn.weight.fill_(BRANCH_GAIN / math.sqrt(len(layer)))


def _define(depth: float, width: float, channels_at_most: int) -> torch.nn.Module:
    # The classes are made here because their bases need torch, which only workers import.
    import torch
    from torch import Tensor, nn

    def scaled(channels: int) -> int:
        return math.ceil(min(channels, channels_at_most) * width / 8) * 8

    def repeats(count: int) -> int:
        return max(round(count * depth), 1)

    class Conv(nn.Module):
        def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
            self.act = nn.SiLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:  # (B, channels_in, H, W) -> (B, channels, H/stride, W/stride)
            return self.act(self.bn(self.conv(x)))

    class Bottleneck(nn.Module):
        def __init__(self, channels: int, residual: bool) -> None:
            super().__init__()
            self.cv1 = Conv(channels, channels, 3)
            self.cv2 = Conv(channels, channels, 3)
            self.residual = residual

        def forward(self, x: Tensor) -> Tensor:
            y = self.cv2(self.cv1(x))
            return x + y if self.residual else y

    class C2f(nn.Module):
        """Half of the channels go through a chain of bottlenecks; every link of the chain reaches the output."""

        def __init__(self, channels_in: int, channels: int, count: int, residual: bool = False) -> None:
            super().__init__()
            half = channels // 2
            self.cv1 = Conv(channels_in, 2 * half)
            self.cv2 = Conv((2 + count) * half, channels)
            self.m = nn.ModuleList(Bottleneck(half, residual) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            links = list(self.cv1(x).chunk(2, 1))
            for bottleneck in self.m:
                links.append(bottleneck(links[-1]))
            return self.cv2(torch.cat(links, 1))

    class SPPF(nn.Module):
        """One 5x5 maximum pool applied three times in a row: windows of 5, 9 and 13."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.cv1 = Conv(channels, channels // 2)
            self.cv2 = Conv(channels * 2, channels)
            self.m = nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            pooled = [self.cv1(x)]
            for _ in range(3):
                pooled.append(self.m(pooled[-1]))
            return self.cv2(torch.cat(pooled, 1))

    class DFL(nn.Module):
        """The mean of each side's distribution, as a fixed 1x1 convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
            self.conv.weight.copy_(torch.arange(BINS).view(1, BINS, 1, 1))

        def forward(self, x: Tensor) -> Tensor:  # (B, 4 * BINS, A) -> (B, 4, A)
            batch, _, anchors = x.shape
            return self.conv(x.view(batch, 4, BINS, anchors).transpose(1, 2).softmax(1)).view(batch, 4, anchors)

    class Detect(nn.Module):
        """Boxes (`cv2`) and classes (`cv3`) in branches of their own at each of the three levels."""

        def __init__(self, levels: tuple[int, ...]) -> None:
            super().__init__()

            def branch(channels_in: int, channels: int, channels_out: int) -> nn.Sequential:
                last = nn.Conv2d(channels, channels_out, 1)
                return nn.Sequential(Conv(channels_in, channels, 3), Conv(channels, channels, 3), last)

            boxes, classes = max(16, levels[0] // 4, 4 * BINS), max(levels[0], min(CLASSES, 100))
            self.cv2 = nn.ModuleList(branch(channels, boxes, 4 * BINS) for channels in levels)
            self.cv3 = nn.ModuleList(branch(channels, classes, CLASSES) for channels in levels)
            self.dfl = DFL()

        def forward(self, levels: list[Tensor]) -> Tensor:  # A = (1 + 1/4 + 1/16) HW/64 anchors -> (B, 84, A)
            sides = torch.cat([cv2(x).flatten(2) for cv2, x in zip(self.cv2, levels, strict=True)], 2)
            scores = torch.cat([cv3(x).flatten(2) for cv3, x in zip(self.cv3, levels, strict=True)], 2)
            anchors, strides = self._anchors(levels)
            near, far = self.dfl(sides).chunk(2, 1)  # distances to left and top, to right and bottom: (B, 2, A) each
            centre = anchors + (far - near) / 2
            return torch.cat((centre * strides, (near + far) * strides, scores.sigmoid()), 1)

        def _anchors(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
            """Return the cells' centres in units of their stride, (2, A), and the strides, (1, A)."""
            centres, strides = [], []
            for x, stride in zip(levels, STRIDES, strict=True):
                rows, columns = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5 for size in x.shape[2:])
                grid = torch.meshgrid(columns, rows, indexing="xy")
                centres.append(torch.stack(grid).flatten(1))
                strides.append(torch.full_like(centres[-1][:1], stride))
            return torch.cat(centres, 1), torch.cat(strides, 1)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c1, c2, c3, c4, c5 = (scaled(channels) for channels in (64, 128, 256, 512, 1024))
            # Published numbers of the layers; those left out only double a map's size or join two.
            self.model = nn.ModuleDict(
                {
                    "0": Conv(3, c1, 3, 2),
                    "1": Conv(c1, c2, 3, 2),
                    "2": C2f(c2, c2, repeats(3), residual=True),
                    "3": Conv(c2, c3, 3, 2),
                    "4": C2f(c3, c3, repeats(6), residual=True),
                    "5": Conv(c3, c4, 3, 2),
                    "6": C2f(c4, c4, repeats(6), residual=True),
                    "7": Conv(c4, c5, 3, 2),
                    "8": C2f(c5, c5, repeats(3), residual=True),
                    "9": SPPF(c5),
                    "12": C2f(c5 + c4, c4, repeats(3)),
                    "15": C2f(c4 + c3, c3, repeats(3)),
                    "16": Conv(c3, c3, 3, 2),
                    "18": C2f(c3 + c4, c4, repeats(3)),
                    "19": Conv(c4, c4, 3, 2),
                    "21": C2f(c4 + c5, c5, repeats(3)),
                    "22": Detect((c3, c4, c5)),
                }
            )
            self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

        def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 84, A)
            layer, join = self.model, torch.cat
            fine = layer["4"](layer["3"](layer["2"](layer["1"](layer["0"](images)))))  # (B, c3, H/8, W/8)
            middle = layer["6"](layer["5"](fine))  # (B, c4, H/16, W/16)
            coarse = layer["9"](layer["8"](layer["7"](middle)))  # (B, c5, H/32, W/32)
            middle = layer["12"](join((self.upsample(coarse), middle), 1))
            fine = layer["15"](join((self.upsample(middle), fine), 1))
            middle = layer["18"](join((layer["16"](fine), middle), 1))
            coarse = layer["21"](join((layer["19"](middle), coarse), 1))
            return layer["22"]([fine, middle, coarse])

    return Detector()
