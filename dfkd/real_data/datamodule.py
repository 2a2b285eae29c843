"""The data module that streams real images. Only teacher training and the real-data control are given one."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from dfkd.seeding import derive_seed
from dfkd.training.fit import shuffled_loader


class RealDataModule(lightning.LightningDataModule):
    """Streams `(images, labels)` batches of a real data set, shuffled by (seed, pass).

    Args:
        dataset: of (normalised image (C, H, W), label).
        batch_size: images per batch.
        seed: of the order.
        num_workers: processes that read images.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader:
        return shuffled_loader(self.dataset, self.batch_size, self.seed, self.num_workers)


def random_subset(dataset: Dataset, count: int, seed: int) -> Subset:
    """`count` of the images (all, if there are fewer), drawn by `seed`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "real-data control"))
    order = torch.randperm(len(dataset), generator=generator)  # type: ignore[arg-type]
    return Subset(dataset, order[:count].tolist())
