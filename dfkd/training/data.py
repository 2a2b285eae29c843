"""The base of every data module here: a stream of batches that continues exactly where a checkpoint was taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfkd.seeding import derive_seed


@dataclass(frozen=True)
class Stream:
    """Which batches a data module gives.

    Attributes:
        batch_size: images per batch.
        batches: length of the stream.
        seed: of the order.
        num_workers: processes that read images; they do not change what is read.
    """

    batch_size: int
    batches: int
    seed: int = 0
    num_workers: int = 0


class SeededBatches(Sampler[list[int]]):
    """Indices of the batches number `start` to the last of a stream of epochs over `count` images.

    The order within each epoch is a function of (seed, epoch); the last incomplete batch of an epoch is left out.
    """

    def __init__(self, count: int, stream: Stream, start: int = 0) -> None:
        self.count, self.batch_size, self.batches = count, min(stream.batch_size, count), stream.batches
        self.seed, self.start = stream.seed, start

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order, current = torch.empty(0), -1
        for batch in range(self.start, self.batches):
            epoch, place = divmod(batch, self.per_epoch)
            if epoch != current:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
                order, current = torch.randperm(self.count, generator=generator), epoch
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class SeededDataModule(lightning.LightningDataModule):
    """Streams batches of `training_set()`, in one Lightning epoch.

    The number of batches that the trainer has consumed travels in its checkpoints, so a training that continues from
    one at any step sees the batches that an undisturbed one sees.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.consumed = 0

    def training_set(self) -> Dataset[Any]:
        """The data set to stream from, of (image, label)."""
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Images per batch: as the stream asks, or all that there are."""
        return min(self.stream.batch_size, len(self.training_set()))  # type: ignore[arg-type]

    def example(self) -> Tensor:
        """One image, (C, H, W)."""
        image: Tensor = self.training_set()[0][0]
        return image

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.stream, self.consumed)

    def first_epoch(self) -> DataLoader[Any]:
        """The batches of the first epoch, however short the stream is."""
        batches = SeededBatches(len(self.training_set()), self.stream).per_epoch  # type: ignore[arg-type]
        return self._loader(replace(self.stream, batches=batches), 0)

    def _loader(self, stream: Stream, start: int) -> DataLoader[Any]:
        dataset = self.training_set()
        sampler = SeededBatches(len(dataset), stream, start)  # type: ignore[arg-type]
        return DataLoader(dataset, batch_sampler=sampler, num_workers=stream.num_workers)

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.trainer.global_step if self.trainer is not None else self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]
