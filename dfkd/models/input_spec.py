"""What a network takes and gives: the shape and normalisation of its input, and its number of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.errors import ConfigError, is_number, is_whole, require
from dfkd.models.check import check_network


@dataclass(frozen=True)
class InputSpec:
    """The teacher's input (C, H, W), its classes, and its normalisation (pixel - mean) / std of pixels in [0, 1].

    Raises:
        ConfigError: a size is not positive, mean and std have another length than there are channels, or they are not
            of pixels in [0, 1].
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        require_image_shape(self.image_shape)
        require(is_whole(self.num_classes, 2), "input.num_classes", self.num_classes, "a whole number, 2 or more")
        channels = self.image_shape[0]
        for option, values in (("mean", self.mean), ("std", self.std)):
            fits = isinstance(values, tuple | list) and len(values) == channels and all(map(is_number, values))
            require(fits, f"input.{option}", values, f"a list of {channels} numbers, one per channel")
        scale = "of pixels in [0, 1]; divide by 255 what is said of pixels from 0 to 255"
        require(all(0 <= mean <= 1 for mean in self.mean), "input.mean", list(self.mean), scale)
        require(
            all(0 < std <= 1 for std in self.std), "input.std", list(self.std), f"above 0 in every channel, {scale}"
        )

    def valid_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest normalised value of each channel, each (C, 1, 1)."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] (..., C, H, W), normalised."""
        return torch.lerp(*self.valid_range(), pixels)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) as pixels in [0, 1]."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images.float() * std + mean).clamp(0, 1)


def require_image_shape(shape: object) -> None:
    """Raise `ConfigError` unless `shape` is one of images."""
    fits = isinstance(shape, tuple | list) and len(shape) == 3 and all(map(is_whole, shape))
    require(fits, "input.image_shape", shape, "[channels, height, width]")


def count_classes(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The number of classes that `model` gives for images of `image_shape`.

    Raises:
        ConfigError: `image_shape` is none.
        ModelError: the model cannot be used; see `dfkd.models.check.check_network`.
    """
    require_image_shape(image_shape)
    return check_network(model, image_shape)


def check_model(model: nn.Module, spec: InputSpec) -> None:
    """Raise unless `model` takes the images and gives the classes that `spec` says (`ModelError`, `ConfigError`)."""
    classes = count_classes(model, spec.image_shape)
    if classes != spec.num_classes:
        raise ConfigError(
            f"input.num_classes must be {classes}, the number of outputs of the model ({type(model).__name__}), got "
            f"{spec.num_classes}. Correct it, or give the model group the right class count."
        )
