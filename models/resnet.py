"""ResNet-50 v1.5 (He et al. 2015, arXiv:1512.03385; stride in the 3x3 convolution), as torchvision names it.

Parameter and buffer names equal torchvision's, so `resnet50` checkpoints published for it load key for key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.api import InputSpec, Preprocessing, PublicWeights, ReferenceModel

if TYPE_CHECKING:
    import torch


class ResNet50(ReferenceModel):
    """The field's reference image classifier."""

    name = "resnet50"
    summary = "ResNet-50 v1.5 image classifier, 224x224"
    tags = ("vision", "classification")
    parameters = 25_557_032
    gflop = 8.18
    task = "classification"
    memory_gib = 1.0
    preprocessing = Preprocessing(
        height=224, width=224, resize="crop", resize_to=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    public = PublicWeights(repository="timm/resnet50.tv_in1k", file="model.safetensors", licence="BSD-3-Clause")

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="input", dtype="float32", shape=("batch", 3, 224, 224)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        return _define()


def _define() -> torch.nn.Module:
    # The classes are made here because their bases need torch, which only workers import.
    from torch import Tensor, nn

    class Bottleneck(nn.Module):
        expansion = 4

        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            channels_out = channels * self.expansion
            self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(channels_out)
            self.relu = nn.ReLU(inplace=True)
            self.downsample: nn.Module | None = None
            if stride != 1 or channels_in != channels_out:
                self.downsample = nn.Sequential(
                    nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
                )

        def forward(self, x: Tensor) -> Tensor:  # (B, channels_in, H, W) -> (B, channels_out, H/stride, W/stride)
            identity = x if self.downsample is None else self.downsample(x)
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.bn3(self.conv3(x))
            return self.relu(x + identity)

    class ResNet(nn.Module):
        def __init__(self, blocks: tuple[int, ...], classes: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            channels_in = 64
            for index, count in enumerate(blocks):
                channels = 64 << index
                layer = nn.Sequential()
                for block in range(count):
                    layer.append(Bottleneck(channels_in, channels, 2 if index and not block else 1))
                    channels_in = channels * Bottleneck.expansion
                setattr(self, f"layer{index + 1}", layer)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels_in, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

        def forward(self, x: Tensor) -> Tensor:  # (B, 3, 224, 224) -> (B, 1000)
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (B, 64, 56, 56)
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 2048, 7, 7)
            return self.fc(self.avgpool(x).flatten(1))

    return ResNet((3, 4, 6, 3), 1000).eval()
