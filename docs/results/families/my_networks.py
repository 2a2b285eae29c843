"""The networks of `docs/results.md`, "Networks of other families", that are no one's but its own."""

from functools import partial

from torch import nn
from torchvision.models import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig


def vgg(num_classes: int = 10) -> nn.Module:
    """VGG with eight convolutions, batch norm and biases, 32x32 pixels."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 0, 64, 64, 0, 128, 128, 0, 256, 256):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def densenet(num_classes: int = 10) -> nn.Module:
    """DenseNet with 16 dense layers of growth 16."""
    return DenseNet(growth_rate=16, block_config=(4, 6, 6), num_init_features=32, num_classes=num_classes)


def efficientnet(num_classes: int = 10) -> nn.Module:
    """EfficientNet's blocks (depthwise, squeeze-excite, SiLU, dropout, stochastic depth) for 32x32 pixels."""
    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    setting = [
        block(1, 3, 1, 32, 16, 1),
        block(4, 3, 1, 16, 24, 2),
        block(4, 3, 2, 24, 40, 2),
        block(4, 5, 2, 40, 80, 2),
        block(4, 3, 1, 80, 96, 1),
    ]
    return EfficientNet(setting, dropout=0.2, stochastic_depth_prob=0.1, num_classes=num_classes, last_channel=256)


def digits_cnn(num_classes: int = 10) -> nn.Module:
    """Four convolutions with LeakyReLU for digits of 8x8 pixels and one channel."""
    layers: list[nn.Module] = []
    channels = 1
    for width, stride in ((16, 1), (32, 2), (32, 1), (64, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.LeakyReLU(0.1))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
