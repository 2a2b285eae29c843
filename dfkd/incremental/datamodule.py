"""Images of new classes side by side with what reminds the network of the old ones: dreams, or in a control images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfkd.seeding import derive_seed
from dfkd.training.data import SeededBatches, SeededDataModule, Stream


class PairedDataModule(SeededDataModule):
    """Streams `(images (B, 2, C, H, W), labels (B, 2))`: at 0 the new classes, at 1 the memory of the old ones.

    Each of the two has epochs of its own. Without a memory there is 0 alone.

    Args:
        new: images of the new classes, with their labels among all classes.
        memory: dreams of the old classes, or in a control their images; None: nothing.
        stream: which batches.
    """

    def __init__(self, new: Dataset[Any], memory: Dataset[Any] | None, stream: Stream) -> None:
        super().__init__(stream)
        self.sets = [new] if memory is None else [new, memory]

    @property
    def batch_size(self) -> int:
        return min(self.stream.batch_size, *(len(part) for part in self.sets))  # type: ignore[arg-type]

    def example(self) -> Tensor:
        image: Tensor = self.sets[0][0][0]
        return image

    def train_dataloader(self) -> DataLoader[Any]:
        seeds = self.stream.seed, derive_seed(self.stream.seed, "memory")
        batches = [
            SeededBatches(len(part), replace(self.stream, batch_size=self.batch_size, seed=seed), self.consumed)  # type: ignore[arg-type]
            for part, seed in zip(self.sets, seeds, strict=False)
        ]
        return DataLoader(_SideBySide(self.sets), batch_sampler=_Zipped(batches), num_workers=self.stream.num_workers)


class _SideBySide(Dataset[Any]):
    def __init__(self, sets: list[Dataset[Any]]) -> None:
        self.sets = sets

    def __getitem__(self, places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        found = [part[place] for part, place in zip(self.sets, places, strict=True)]
        return torch.stack([image.float() for image, _ in found]), torch.tensor([int(label) for _, label in found])


class _Zipped(Sampler[list[tuple[int, ...]]]):
    def __init__(self, batches: list[SeededBatches]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches[0])

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for together in zip(*self.batches, strict=True):
            yield list(zip(*together, strict=True))
