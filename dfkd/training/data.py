"""The base of every data module here: a stream of batches that continues exactly where a checkpoint was taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dfkd.seeding import derive_seed


class SeededBatches(Sampler[list[int]]):
    """Indices of the batches number `start` to `batches` of a stream that passes over `count` images again and again.

    The order within each pass is a function of (seed, pass); the last incomplete batch of a pass is left out.
    """

    def __init__(self, count: int, batch_size: int, batches: int, seed: int, start: int = 0) -> None:
        self.count, self.batch_size, self.batches = count, min(batch_size, count), batches
        self.seed, self.start = seed, start

    @property
    def per_pass(self) -> int:
        """Batches in one pass."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order, current = torch.empty(0), -1
        for batch in range(self.start, self.batches):
            number, place = divmod(batch, self.per_pass)
            if number != current:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "pass", number))
                order, current = torch.randperm(self.count, generator=generator), number
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class SeededDataModule(lightning.LightningDataModule):
    """Streams `batches` batches of `training_set()`, in one Lightning epoch.

    The number of batches that the trainer has consumed travels in its checkpoints, so a training that continues from
    one at any step sees the batches that an undisturbed one sees.

    Args:
        batch_size: images per batch.
        batches: length of the stream.
        seed: of the order.
        num_workers: processes that read images.
    """

    def __init__(self, batch_size: int, batches: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.num_workers = num_workers
        self.consumed = 0

    def training_set(self) -> Dataset:
        """The data set to stream from, of (image, label)."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.batches, self.consumed)

    def one_pass(self) -> DataLoader:
        """The batches of the first pass."""
        return self._loader(None, 0)

    def _loader(self, batches: int | None, start: int) -> DataLoader:
        dataset = self.training_set()
        sampler = SeededBatches(len(dataset), self.batch_size, 0, self.seed, start)  # type: ignore[arg-type]
        sampler.batches = sampler.per_pass if batches is None else batches
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.trainer.global_step if self.trainer is not None else self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]
