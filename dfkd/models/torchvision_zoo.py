"""Any torchvision classifier by name, with any number of classes and input channels and a stem for small images."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models import VGG, DenseNet, MobileNetV2, ResNet, ShuffleNetV2

from dfkd.errors import ConfigError, ModelError, is_whole, listing, require


def torchvision_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, small_image_stem: bool = False, **arguments: Any
) -> nn.Module:
    """A torchvision classifier with random weights.

    Args:
        name: as in `torchvision.models.list_models`, for instance `resnet18` or `vgg19_bn`.
        num_classes: size of the output.
        in_channels: channels of the input; other than 3 replaces the first convolution.
        small_image_stem: for images of about 32 pixels: no early downsampling (ResNet, Wide-ResNet, DenseNet,
            MobileNetV2, ShuffleNetV2), or a single linear layer as the classifier (VGG).
        arguments: passed on to the torchvision builder. GoogLeNet and Inception are built without auxiliary heads.

    Raises:
        ConfigError: torchvision has no such classifier, a size is not positive, or an argument is not its builder's.
        ModelError: `small_image_stem` is not defined for this family.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ConfigError(
            f"model.name must be a torchvision classifier, got {name!r}. There are: {listing(names, 100)}."
        )
    for option, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        require(is_whole(value), f"model.{option}", value, "a whole number, 1 or more")
    if name in ("googlenet", "inception_v3"):  # by themselves they give three outputs in training, and warn
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    if "weights" in arguments:
        raise ConfigError("model.weights is no option: give teacher.weights=torchvision:NAME.")
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"torchvision cannot build {name} with {arguments}: {error}. Correct or leave them out."
        ) from error
    if small_image_stem:
        _fit_to_small_images(model, num_classes)
    if in_channels != 3:
        _set_in_channels(model, in_channels)
    return model


def _fit_to_small_images(model: nn.Module, num_classes: int) -> None:
    if isinstance(model, ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif isinstance(model, DenseNet):
        model.features.conv0 = nn.Conv2d(3, model.features.conv0.out_channels, 3, padding=1, bias=False)
        model.features.pool0 = nn.Identity()
    elif isinstance(model, ShuffleNetV2):
        model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
    elif isinstance(model, MobileNetV2):
        strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        for convolution in strided[:2]:
            convolution.stride = (1, 1)
    elif isinstance(model, VGG):
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
    else:
        raise ModelError(
            f"model.small_image_stem is not defined for {type(model).__name__}: it is for ResNet, Wide-ResNet, "
            "DenseNet, MobileNetV2, ShuffleNetV2 and VGG. Set it to false, or bring your own model by model._target_."
        )


def _set_in_channels(model: nn.Module, in_channels: int) -> None:
    path, old = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
