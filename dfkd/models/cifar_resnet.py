"""CIFAR ResNets of He et al. 2016, *Deep Residual Learning*, section 4.2 (ResNet-20/32/44/56/110)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import is_whole, require


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a parameter-free shortcut (option A: subsample, pad channels with zeros)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padded_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.padded_channels:
            before = self.padded_channels // 2
            shortcut = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, before, self.padded_channels - before),
            )
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for small images: a 3x3 stem and three stages of basic blocks.

    Args:
        depth: number of layers, 6n + 2 (20, 32, 44, 56, 110, ...).
        num_classes: size of the output.
        in_channels: channels of the input.
        width: channels of the first stage; the others have 2x and 4x as many.

    Shapes:
        (B, in_channels, H, W) to (B, num_classes); any H and W of 4 or more.

    Raises:
        ConfigError: `depth` is not 6n + 2, or a size is not positive.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        expected = "6n + 2 (8, 14, 20, 32, 44, 56, 110, ...)"
        require(is_whole(depth, 8) and (depth - 2) % 6 == 0, "depth", depth, expected)
        for option, value in (("num_classes", num_classes), ("in_channels", in_channels), ("width", width)):
            require(is_whole(value), option, value, "a whole number, 1 or more")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
