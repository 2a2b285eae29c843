"""Smooth gradients between a few colours."""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd.procedural.canvas import ImageShape, by_picture, coordinates, log_uniform, palettes, uniform

CENTRES = 5


def gradients(count: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
    """Pictures (N, C, H, W) that mix five colours by nearness to five random centres.

    A pixel's colour is that of the centres weighted by softmax(-sharpness * distance + bias): from broad gradients (low
    sharpness) to soft-edged cells (high).
    """
    channels, height, width = image_shape
    x, y = coordinates(height, width)
    span = torch.tensor([width, height]) / min(height, width)
    colours = palettes(generator, count, CENTRES, channels)
    centres = uniform(generator, -0.7, 0.7, count, CENTRES, 2) * span
    bias = torch.randn(count, CENTRES, generator=generator)
    sharpness = log_uniform(generator, 3, 60, count, 1)
    distance = torch.hypot(x - by_picture(centres[..., 0]), y - by_picture(centres[..., 1]))
    weights = (by_picture(bias) - by_picture(sharpness) * distance).softmax(1)
    return torch.einsum("nkc,nkhw->nchw", colours, weights).clamp_(0, 1)
