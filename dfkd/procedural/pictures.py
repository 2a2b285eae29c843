"""Batches of procedural pictures, of one family or of several in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dfkd.errors import require
from dfkd.procedural.canvas import ImageShape
from dfkd.procedural.fractals import fractals
from dfkd.procedural.gradients import gradients
from dfkd.procedural.leaves import leaves
from dfkd.procedural.spectra import spectra
from dfkd.seeding import derive_seed

Family = Callable[[int, ImageShape, torch.Generator], Tensor]
FAMILIES: dict[str, Family] = {"leaves": leaves, "gradients": gradients, "spectra": spectra, "fractals": fractals}

PIXELS_AT_ONCE = 2**17  # more would leave the processor's cache


def pictures(count: int, image_shape: ImageShape, seed: int, families: Sequence[str] = ("leaves",)) -> Tensor:
    """`count` procedural pictures, (N, C, H, W) float32 in [0, 1], a function of the arguments alone.

    Args:
        count: how many.
        image_shape: (C, H, W), any.
        seed: of every random draw.
        families: names in `FAMILIES`; picture n is of family n modulo their number.

    Raises:
        ConfigError: a family is not known, or none is named.
    """
    known = set(families) <= FAMILIES.keys() and len(families) > 0
    require(known, "families", list(families), f"one or more of {tuple(FAMILIES)}")
    sheet = torch.empty(count, *image_shape)
    at_once = max(1, PIXELS_AT_ONCE // (image_shape[1] * image_shape[2]))
    for number, name in enumerate(families):
        places = torch.arange(number, count, len(families))
        generator = torch.Generator().manual_seed(derive_seed(seed, "pictures", number, name))
        for part in places.split(at_once):
            sheet[part] = FAMILIES[name](len(part), image_shape, generator)
    return sheet
