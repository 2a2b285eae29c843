"""Which classes a data set has, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from dfkd.errors import DataError, is_whole
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.labels import labels_of


def check_classes(classes: int, spec: InputSpec, name: str, only: Sequence[int]) -> None:
    """Raise `DataError` unless the classes that are kept, `only` or all, are as many as the network's."""
    if not isinstance(only, Sequence) or isinstance(only, str) or not all(is_whole(label, 0) for label in only):
        raise DataError(f"data.only must be a list of classes' numbers, got {only!r}.")
    if any(label not in range(classes) for label in only) or len(set(only)) != len(only):
        raise DataError(f"data.only must be different classes of {name}, each in [0, {classes}), got {list(only)}.")
    classes = len(only) or classes
    if classes != spec.num_classes:
        raise DataError(
            f"data: {name} has {classes} classes, but input.num_classes is {spec.num_classes}. "
            "Use the data that the network was trained for, or data=none."
        )


class OfClasses(Dataset[Any]):
    """The images of some classes of a data set, numbered anew in the order that the classes are given in."""

    def __init__(self, images: Dataset[Any], classes: Sequence[int]) -> None:
        labels = labels_of(images).tolist()
        self.images = images
        self.number = {label: number for number, label in enumerate(classes)}
        self.places = [place for place, label in enumerate(labels) if label in self.number]
        self.targets = [self.number[labels[place]] for place in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[self.places[index]]
        return image, self.number[int(label)]
