"""What the families of procedural pictures share: coordinates, random numbers and colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ImageShape = tuple[int, int, int]


def coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x (1, W) and y (H, 1) of the pixels' centres; 0 in the middle, in units of the shorter side."""
    side = min(height, width)
    x = (torch.arange(width) + 0.5 - width / 2) / side
    y = (torch.arange(height) + 0.5 - height / 2) / side
    return x[None, :], y[:, None]


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def log_uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Random numbers in [low, high) whose logarithm is uniform."""
    return uniform(generator, math.log(low), math.log(high), *shape).exp()


def palettes(generator: torch.Generator, count: int, colours: int, channels: int) -> Tensor:
    """`colours` that go together for each of `count` pictures, (count, colours, channels) in [0, 1].

    A colour is a grey tone, drawn with dark and bright tones more often than middle ones, plus the picture's hue and a
    hue of its own, both scaled by the picture's saturation.
    """
    tone = torch.sin(uniform(generator, 0, math.pi / 2, count, colours, 1)).square()  # arcsine law
    hue = 0.18 * torch.randn(count, 1, channels, generator=generator)
    own = 0.15 * torch.randn(count, colours, channels, generator=generator)
    saturation = uniform(generator, 0.2, 1.0, count, 1, 1)
    return (tone + saturation * (hue + own)).clamp(0, 1)


def by_picture(values: Tensor) -> Tensor:
    """(N, ...) values shaped to meet (N, ..., H, W)."""
    return values[..., None, None]


def rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along and across the direction `angle`, each as x and y broadcast with it."""
    cosine, sine = angle.cos(), angle.sin()
    return cosine * x + sine * y, cosine * y - sine * x


def blended(colours: Tensor, position: Tensor) -> Tensor:
    """Pictures (N, C, H, W) coloured along a closed palette.

    Args:
        colours: (N, K, C), mixed linearly between neighbours, the last and the first among them.
        position: (N, H, W), of which a step of 1 goes once around the palette.
    """
    count, number, channels = colours.shape
    place = (position - position.floor()) * number
    first = place.long().clamp_max(number - 1)
    share = (place - first)[:, None]
    flat = colours.transpose(1, 2)  # (N, C, K)

    def looked_up(index: Tensor) -> Tensor:
        wanted = index.reshape(count, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, wanted).view(count, channels, *position.shape[1:])

    return torch.lerp(looked_up(first), looked_up((first + 1) % number), share)
