"""Real images as an input of a stage: opened for one purpose, known by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from dfkd.models.input_spec import InputSpec
from dfkd.real_data import Purpose, RealImages
from dfkd.stages.stage import plain


@dataclass(frozen=True)
class Images:
    """Real images behind their door.

    Attributes:
        data: the data set.
        purpose: what it is opened for, which says what part of it.
        spec: how pixels become a network's input.
    """

    data: RealImages
    purpose: Purpose
    spec: InputSpec

    def identity(self) -> dict[str, Any]:
        """The digest of the part that the purpose opens, and how pixels are normalised."""
        return {"content": self.data.identity(self.purpose), "input": plain(self.spec)}

    def check(self) -> None:
        """Find out now whether all images can be used (`DataError`)."""
        self.data.check(self.spec, self.purpose)

    def open(self) -> Dataset[Any]:
        """The images, (normalised image (C, H, W), label)."""
        return self.data.open(self.purpose)


@dataclass(frozen=True)
class ImagesInARow:
    """Images of different classes, learned one after the other: those of each part are numbered behind the part before.

    Attributes:
        parts: the images, each with its own classes in its `spec`.
        first: number of the first class.
    """

    parts: tuple[Images, ...]
    first: int = 0

    def identity(self) -> dict[str, Any]:
        """Those of the parts."""
        return {"parts": [part.identity() for part in self.parts], "first": self.first}

    def check(self) -> None:
        """Find out now whether all images can be used (`DataError`)."""
        for part in self.parts:
            part.check()

    def open(self) -> Dataset[Any]:
        """The images of all parts, (normalised image (C, H, W), label)."""
        before, found = self.first, []
        for part in self.parts:
            found.append(Shifted(part.open(), before))
            before += part.spec.num_classes
        return ConcatDataset(found)


class Shifted(Dataset[Any]):
    """Images whose classes are numbered behind `by` others."""

    def __init__(self, images: Dataset[Any], by: int) -> None:
        self.images, self.by = images, by

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, int(label) + self.by
