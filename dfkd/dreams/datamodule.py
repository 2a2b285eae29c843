"""The data module that streams dreams to a student. It knows no real image."""

from __future__ import annotations

import lightning
from torch.utils.data import DataLoader, TensorDataset

from dfkd.dreams.bank import Dreams
from dfkd.training.fit import shuffled_loader


class DreamDataModule(lightning.LightningDataModule):
    """Streams `(images, labels)` batches of dreams: training ones shuffled by (seed, pass), held-out ones in order.

    Args:
        dreams: a loaded bank.
        batch_size: images per batch.
        seed: of the order.
    """

    def __init__(self, dreams: Dreams, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.dreams = dreams
        self.batch_size = batch_size
        self.seed = seed

    def train_dataloader(self) -> DataLoader:
        return shuffled_loader(_dataset(self.dreams.training), self.batch_size, self.seed)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(_dataset(self.dreams.judging), self.batch_size)


def _dataset(dreams: Dreams) -> TensorDataset:
    return TensorDataset(dreams.images, dreams.labels)
