"""Controls that a claim of recovery must stand beside: the same recovery on images that are not dreams."""

from __future__ import annotations

import torch

from dfkd.dreams.bank import Dreams
from dfkd.seeding import derive_seed


def noise_images(count: int, image_shape: tuple[int, int, int], seed: int) -> Dreams:
    """`count` images of N(0, 1) noise in the teacher's normalised input space, in the place of dreams."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise control"))
    images = torch.randn(count, *image_shape, generator=generator).half()
    unknown = torch.zeros(count, dtype=torch.long)
    return Dreams(images, unknown, unknown, unknown.float())
