"""What a network takes and gives: the shape and normalisation of its input, and its number of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.errors import ConfigError, ModelError, require
from dfkd.models.freezing import frozen


@dataclass(frozen=True)
class InputSpec:
    """The teacher's input (C, H, W), its classes, and its normalisation (pixel - mean) / std of pixels in [0, 1].

    Raises:
        ConfigError: a size is not positive, or mean and std have another length than there are channels.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.image_shape)
        require(len(shape) == 3 and min(shape) >= 1, "input.image_shape", list(shape), "[channels, height, width]")
        require(self.num_classes >= 2, "input.num_classes", self.num_classes, "2 or more")
        for option, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == shape[0], f"input.{option}", list(values), f"a list of {shape[0]}, one per channel")
        require(min(self.std) > 0, "input.std", list(self.std), "above 0 in every channel")

    def valid_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest normalised value of each channel, each (C, 1, 1)."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) as pixels in [0, 1]."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images.float() * std + mean).clamp(0, 1)


def count_classes(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The number of classes that `model` gives for images of `image_shape`.

    Raises:
        ModelError: the model cannot take such images, or does not give logits (B, classes).
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), frozen(model):
            logits = model(torch.zeros(2, *image_shape, device=device))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot take images of input.image_shape={list(image_shape)}: {error}. "
            "Set input.image_shape to what the network was trained on, or for small images use a small-image stem."
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{type(model).__name__} must give one row of logits (batch, classes) per image, got {found} for 2 images. "
            "Wrap it in a module that returns the class logits."
        )
    return logits.shape[1]


def check_model(model: nn.Module, spec: InputSpec) -> None:
    """Raise unless `model` takes the images and gives the classes that `spec` says (`ModelError`, `ConfigError`)."""
    classes = count_classes(model, spec.image_shape)
    if classes != spec.num_classes:
        raise ConfigError(
            f"input.num_classes must be {classes}, the number of outputs of the model ({type(model).__name__}), got "
            f"{spec.num_classes}. Correct it, or give the model group the right class count."
        )
