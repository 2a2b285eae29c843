"""Controls that a claim of recovery must stand beside: the same recovery on images that are not dreams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd.dreams.bank import Dreams
from dfkd.models.input_spec import InputSpec
from dfkd.procedural import pictures
from dfkd.seeding import derive_seed


def noise_images(count: int, image_shape: tuple[int, int, int], seed: int) -> Dreams:
    """`count` images of N(0, 1) noise in the teacher's normalised input space, in the place of dreams."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise control"))
    images = torch.randn(count, *image_shape, generator=generator).half()
    return _unlabelled(images)


def procedural_images(count: int, spec: InputSpec, seed: int, families: Sequence[str]) -> Dreams:
    """`count` procedural pictures (`dfkd.procedural`) in the teacher's normalised input space, in the place of dreams.

    They are what inversion starts from: what dreams give beyond them is what inversion gives.
    """
    pixels = pictures(count, spec.image_shape, derive_seed(seed, "procedural control"), families)
    return _unlabelled(spec.from_pixels(pixels).half())


def _unlabelled(images: Tensor) -> Dreams:
    unknown = torch.zeros(len(images), dtype=torch.long)
    return Dreams(images, unknown, unknown, unknown.float())
