"""The data module that streams dreams to a student. It knows no real image."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, TensorDataset

from dfkd.dreams.bank import Dreams
from dfkd.training.data import SeededDataModule, Stream


class DreamDataModule(SeededDataModule):
    """Streams `(images, labels)` batches: of the training dreams to train on, of the held-out dreams to test.

    Args:
        dreams: a loaded bank.
        stream: which batches.
    """

    def __init__(self, dreams: Dreams, stream: Stream) -> None:
        super().__init__(stream)
        self.dreams = dreams

    def training_set(self) -> TensorDataset:
        return _dataset(self.dreams.training)

    def held_out_set(self) -> TensorDataset:
        """The held-out dreams."""
        return _dataset(self.dreams.held_out)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out_set(), self.stream.batch_size)


def _dataset(dreams: Dreams) -> TensorDataset:
    return TensorDataset(dreams.images, dreams.labels)
