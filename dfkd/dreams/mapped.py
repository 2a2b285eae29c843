"""Dreams that stay on disk: read from their files when they are asked for, so that memory holds one batch of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from dfkd.files import load_tensors


class MappedDreams(Dataset[Any]):
    """`(image, label)` pairs of a growing list of dream batches, in memory-mapped files.

    Args:
        files: batches to begin with, in order.

    Raises:
        ArtifactError: a file is missing or damaged; each is checked whole when it is added.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.files: list[Path] = []
        self.ends: list[int] = []
        for path in files:
            self.add(path)

    def add(self, path: Path) -> None:
        """Append a batch that a `DreamBank` wrote."""
        tensors, _ = load_tensors(path)
        self.files.append(path)
        self.ends.append(len(self) + len(tensors["labels"]))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def sizes(self) -> list[int]:
        """Images of each file."""
        return [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        places: dict[int, list[int]] = {}
        for index in indices:
            places.setdefault(bisect_right(self.ends, index), []).append(index)
        for number, wanted in places.items():
            start = self.ends[number - 1] if number else 0
            with safe_open(self.files[number], framework="pt") as file:
                images, labels = file.get_slice("images"), file.get_tensor("labels")
                for index in wanted:
                    found[index] = images[index - start], labels[index - start]
        return [found[index] for index in indices]
