"""Dead leaves: overlapping shapes with colours and textures of their own, on a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfkd.procedural.canvas import ImageShape, by_picture, coordinates, log_uniform, palettes, rotated, uniform

MOST_LEAVES = 13
EXPONENTS = torch.tensor([2.0, 2.0, 8.0, 0.8])  # of ellipses, twice as often, boxes and stars


def leaves(count: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
    """Pictures (N, C, H, W) of 1 to 13 leaves each (the model of Lee, Mumford and Huang 2001, with few leaves).

    A leaf is the superellipse |u|^p + |v|^p < r^p in coordinates of its own, its rim waved in one of four; its colour
    is shaded or striped along u. Half of the pictures get a little grain.
    """
    channels, height, width = image_shape
    x, y = coordinates(height, width)
    span = torch.tensor([width, height]) / min(height, width)
    colours = palettes(generator, count, MOST_LEAVES + 2, channels)
    angle = uniform(generator, 0, 2 * math.pi, count)
    slope = uniform(generator, 0, 1.4, count)
    along, _ = rotated(x, y, by_picture(angle))
    share = (0.5 + along * by_picture(slope)).clamp(0, 1)[:, None]
    picture = torch.lerp(by_picture(colours[:, 0]), by_picture(colours[:, 1]), share)

    number = torch.randint(1, MOST_LEAVES + 1, (count,), generator=generator)
    radii = log_uniform(generator, 0.05, 0.55, count, MOST_LEAVES)
    radii = radii.masked_fill(torch.arange(MOST_LEAVES) >= number[:, None], 0)
    large_first = uniform(generator, 0, 1, count, 1) < 0.6
    radii = torch.where(large_first, radii.sort(1, descending=True).values, radii)
    for layer in range(MOST_LEAVES):
        shown = (number > layer).nonzero().squeeze(1)
        centre = 0.28 * torch.randn(len(shown), 2, generator=generator) * span
        cover, texture = _leaf(x, y, centre, radii[shown, layer], min(height, width), generator)
        colour = (by_picture(colours[shown, layer + 2]) * texture).clamp_(0, 1)
        picture[shown] = torch.lerp(picture[shown], colour, cover)
    grain = uniform(generator, 0.01, 0.05, count) * (uniform(generator, 0, 1, count) < 0.5)
    noise = torch.randn(picture.shape, generator=generator)
    return picture.addcmul_(noise, grain[:, None, None, None]).clamp_(0, 1)


def _leaf(
    x: Tensor, y: Tensor, centre: Tensor, radius: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cover and brightness, each (N, 1, H, W), of one leaf per picture."""
    count = len(radius)
    angle = by_picture(uniform(generator, 0, math.pi, count))
    flatness = by_picture(log_uniform(generator, 0.25, 1, count))
    power = by_picture(EXPONENTS[torch.randint(len(EXPONENTS), (count,), generator=generator)])
    softness = by_picture(uniform(generator, 0.8, 2.5, count))
    radius = by_picture(radius)
    u, v = rotated(x - by_picture(centre[:, 0]), y - by_picture(centre[:, 1]), angle)
    v = v / flatness
    distance = (u.abs().pow(power) + v.abs().pow(power)).pow(1 / power) / radius

    waved = (uniform(generator, 0, 1, count) < 0.25).nonzero().squeeze(1)
    waves = by_picture(torch.randint(2, 6, (len(waved),), generator=generator))
    phase = by_picture(uniform(generator, 0, 2 * math.pi, len(waved)))
    distance[waved] /= 1 + 0.4 * torch.cos(waves * torch.atan2(v[waved], u[waved]) + phase)
    cover = ((1 - distance) * radius * side / softness + 0.5).clamp_(0, 1)  # soft over about `softness` pixels

    kind = uniform(generator, 0, 1, count)
    shade = by_picture(uniform(generator, -0.6, 0.6, count) * ((kind >= 0.2) & (kind < 0.7)))
    shade_across = by_picture(uniform(generator, -0.6, 0.6, count) * ((kind >= 0.2) & (kind < 0.7)))
    texture = 1 + (shade * u + shade_across * v) / radius
    striped = (kind < 0.2).nonzero().squeeze(1)
    depth = by_picture(uniform(generator, 0.1, 0.5, len(striped)))
    frequency = by_picture(log_uniform(generator, 2, 12, len(striped)))
    phase = by_picture(uniform(generator, 0, 2 * math.pi, len(striped)))
    texture[striped] = 1 + depth * torch.sin(2 * math.pi * frequency * u[striped] + phase)
    return cover[:, None], texture[:, None]
