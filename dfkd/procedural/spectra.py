"""Coloured noise whose spectrum falls with frequency, as that of natural images does."""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd.procedural.canvas import ImageShape, by_picture, uniform


def spectra(count: int, image_shape: ImageShape, generator: torch.Generator) -> Tensor:
    """Pictures (N, C, H, W) with amplitude 1 / f^a, a uniform in [0.5, 2] (natural images: about 1, Field 1987).

    Frequencies may be stretched along one axis. The channels share most of their noise, as colours do in photographs;
    each picture then gets a mean and a contrast.
    """
    channels, height, width = image_shape
    noise = torch.randn(count, channels, height, width, generator=generator)
    common = torch.randn(count, 1, height, width, generator=generator)
    colour = by_picture(uniform(generator, 0.1, 1.0, count, 1))
    fall = by_picture(uniform(generator, 0.5, 2.0, count))
    stretch = by_picture(torch.exp2(uniform(generator, -1, 1, count)))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = torch.hypot(rows * stretch, columns / stretch).clamp_min(1 / max(height, width))
    amplitude = frequency.pow(-fall)[:, None]
    picture: Tensor = torch.fft.irfft2(torch.fft.rfft2(common + colour * noise) * amplitude, s=(height, width))
    variance, mean = torch.var_mean(picture, (1, 2, 3), correction=0, keepdim=True)
    picture = (picture - mean) * variance.clamp_min(1e-12).rsqrt()
    tint = 0.1 * torch.randn(count, channels, generator=generator)
    mean = by_picture(uniform(generator, 0.25, 0.75, count, 1) + tint)
    contrast = by_picture(uniform(generator, 0.1, 0.3, count, 1))
    return (mean + contrast * picture).clamp_(0, 1)
