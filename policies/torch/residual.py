"""The residual block of torchvision's resnet18, with batch or group normalisation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import relu

Norm = Literal["group", "batch"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (B, inner, h, w) -> (B, outer, h / stride, w / stride)."""

    def __init__(self, inner: int, outer: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(outer, norm)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(outer, norm)
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), norm_layer(outer, norm))
        else:
            self.downsample = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        inside: Tensor = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(inside + self.downsample(x))


def norm_layer(channels: int, norm: Norm) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels) if norm == "group" else nn.BatchNorm2d(channels)
