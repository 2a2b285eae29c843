"""Julia sets: detail at every scale from one recursion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfkd.procedural.canvas import ImageShape, blended, by_picture, coordinates, log_uniform, palettes, rotated, uniform

STEPS = 24
ESCAPED = 16.0  # |z|^2 from which on z leaves for good


def fractals(count: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
    """Pictures (N, C, H, W) of Julia sets: z <- z^2 + c, coloured by how soon |z| grows large.

    c lies near the rim of the Mandelbrot set's heart, c = e^it / 2 - e^2it / 4, where Julia sets are richest. The
    colours follow a smooth count of steps around a palette of six; where z stays, the smallest |z|^2 on its way.
    """
    channels, height, width = image_shape
    x, y = coordinates(height, width)
    turn = uniform(generator, 0, 2 * math.pi, count)
    size = uniform(generator, 0.98, 1.15, count)
    real = by_picture(size * (turn.cos() / 2 - (2 * turn).cos() / 4))
    imaginary = by_picture(size * (turn.sin() / 2 - (2 * turn).sin() / 4))
    zoom = by_picture(log_uniform(generator, 0.3, 3.0, count))
    shift = 0.4 * torch.randn(count, 2, generator=generator)
    u, v = rotated(x, y, by_picture(uniform(generator, 0, 2 * math.pi, count)))
    a, b = u * zoom + by_picture(shift[:, 0]), v * zoom + by_picture(shift[:, 1])
    steps, least = torch.zeros_like(a), torch.full_like(a, ESCAPED)
    for _ in range(STEPS):
        a, b = a * a - b * b + real, 2 * a * b + imaginary
        square = a * a + b * b
        # 1 until it escapes, then the rest of a step by how far it got; 0 ever after, for z is held.
        left = (1 - (square / ESCAPED).clamp_min(1).log2().clamp_min(1e-9).log2() / 2).clamp(0, 1)
        steps += torch.where(square < ESCAPED, 1.0, left)
        least = torch.minimum(least, square)
        outside = square >= 1e6
        a, b = a.masked_fill(outside, 1e3), b.masked_fill(outside, 1e3)
    inside = by_picture(uniform(generator, 0.2, 1.5, count)) * least.sqrt()
    position = torch.where(square < ESCAPED, inside, by_picture(uniform(generator, 0.1, 0.5, count)) * steps.sqrt())
    return blended(palettes(generator, count, 6, channels), position).clamp_(0, 1)
