"""Wide residual networks WRN-d-k of Zagoruyko and Komodakis 2016, for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import is_whole, require


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes_shape = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return residual + shortcut


class WideResNet(nn.Module):
    """WRN-depth-widen_factor: three stages of pre-activation blocks with 16k, 32k and 64k channels.

    Args:
        depth: number of layers, 6n + 4 (16, 22, 28, 40, ...).
        widen_factor: the k of WRN-d-k.
        num_classes: size of the output.
        in_channels: channels of the input.

    Shapes:
        (B, in_channels, H, W) to (B, num_classes); any H and W of 4 or more.

    Raises:
        ConfigError: `depth` is not 6n + 4, or a size is not positive.
    """

    def __init__(self, depth: int, widen_factor: int = 1, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        require(is_whole(depth, 10) and (depth - 4) % 6 == 0, "depth", depth, "6n + 4 (10, 16, 22, 28, 40, ...)")
        sizes = {"widen_factor": widen_factor, "num_classes": num_classes, "in_channels": in_channels}
        for option, value in sizes.items():
            require(is_whole(value), option, value, "a whole number, 1 or more")
        blocks = (depth - 4) // 6
        channels = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.layer1 = _stage(channels[0], channels[1], blocks, stride=1)
        self.layer2 = _stage(channels[1], channels[2], blocks, stride=2)
        self.layer3 = _stage(channels[2], channels[3], blocks, stride=2)
        self.bn = nn.BatchNorm2d(channels[3])
        self.linear = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))
