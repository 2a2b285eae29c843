"""A data set with few training images of each class, for studies of what a network remembers of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dfkd.errors import DataError, is_whole
from dfkd.real_data.access import RealImages, Split
from dfkd.real_data.labels import labels_of
from dfkd.seeding import derive_seed


def few_of_each(images: RealImages, per_class: int, seed: int) -> RealImages:
    """`images` with at most `per_class` training images of each class, drawn by `seed`; 0: all. Test images all stay.

    Raises:
        DataError: `per_class` or `seed` is no whole number, or below 0.
    """
    for option, value in (("per_class", per_class), ("seed", seed)):
        if not is_whole(value, 0):
            raise DataError(f"data.{option} must be a whole number, 0 or more, got {value!r}.")
    if not per_class:
        return images

    def opener(split: Split) -> Dataset[Any]:
        whole = images.opener(split)
        if split is Split.TEST:
            return whole
        labels = labels_of(whole)
        return Subset(whole, drawn(labels, [per_class] * (int(labels.max()) + 1), seed).tolist())

    def content(split: Split) -> str:
        whole = images.whole_content(split)
        return whole if split is Split.TEST else f"{whole}, {per_class} of each class by seed {seed}"

    name = f"{images.name}, {per_class} training images of each class"
    return replace(images, name=name, opener=opener, content=content)


def drawn(labels: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Places in `labels` (N,) of up to `counts` of each class, drawn by `seed`, class by class."""
    places = []
    for label, count in enumerate(counts):
        of_class = torch.nonzero(labels == label).flatten()
        generator = torch.Generator().manual_seed(derive_seed(seed, "few of each class", label))
        places.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(places)
