"""The data module that streams real images. Only teacher training and the real-data control are given one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from dfkd.seeding import derive_seed
from dfkd.training.data import SeededDataModule, Stream


class RealDataModule(SeededDataModule):
    """Streams `(images, labels)` batches of a real data set.

    Args:
        dataset: of (normalised image (C, H, W), label).
        stream: which batches.
    """

    def __init__(self, dataset: Dataset[Any], stream: Stream) -> None:
        super().__init__(stream)
        self.dataset = dataset

    def training_set(self) -> Dataset[Any]:
        return self.dataset


def random_subset(dataset: Dataset[Any], count: int, seed: int) -> Subset[Any]:
    """`count` of the images (all, if there are fewer), drawn by `seed`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "real-data control"))
    order = torch.randperm(len(dataset), generator=generator)  # type: ignore[arg-type]
    return Subset(dataset, order[:count].tolist())
