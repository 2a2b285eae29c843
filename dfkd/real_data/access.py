"""The one door to real images: whoever opens it says what for, and only five purposes are allowed.

Nothing that makes or uses dreams may import this package (a test holds that), and every opening is recorded in the
run's result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfkd.errors import DataError, listing
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.labels import labels_of


class Purpose(StrEnum):
    """What real images may be used for."""

    TEACHER_TRAINING = "teacher training"
    EVALUATION = "evaluation"
    REAL_DATA_CONTROL = "real-data control"
    NEW_CLASSES = "learning new classes"
    PRIVACY_AUDIT = "privacy audit"


class Split(StrEnum):
    """Part of a data set: what teachers are trained on, and what is only scored."""

    TRAIN = "train"
    TEST = "test"


ALLOWED = {
    Purpose.TEACHER_TRAINING: Split.TRAIN,
    Purpose.EVALUATION: Split.TEST,
    Purpose.REAL_DATA_CONTROL: Split.TRAIN,
    Purpose.NEW_CLASSES: Split.TRAIN,
    Purpose.PRIVACY_AUDIT: Split.TRAIN,
}


@dataclass
class RealImages:
    """A real data set behind the door.

    >>> RealImages("mine", lambda split: MyImages(train=split == "train"))

    Attributes:
        name: for messages.
        opener: gives a split as a data set of (normalised image (C, H, W), label).
        content: tells the images from all others, of which nothing is kept: a text, or a function that gives one for
            a split. None: every image is read and digested.
        class_names: of the labels, in their order; None where they are not known.
        digests: gives one text per image of a split, by its content. None: every image is read and digested.
        splits: that there are; some people have test images alone.
        only: numbers of the classes that were kept, in their order, among those of the whole; empty: all.
        opened: the purposes it was opened for, in order.
    """

    name: str
    opener: Callable[[Split], Dataset[Any]]
    content: str | Callable[[Split], str] | None = None
    class_names: Sequence[str] | None = None
    digests: Callable[[Split], Iterable[str]] | None = None
    splits: Sequence[Split] = tuple(Split)
    only: Sequence[int] = ()
    opened: list[str] = field(default_factory=list, init=False)
    _identities: dict[Split, str] = field(default_factory=dict, init=False, repr=False)

    def has(self, purpose: Purpose) -> bool:
        """Whether there is the split that `purpose` opens."""
        return ALLOWED[Purpose(purpose)] in self.splits

    def open(self, purpose: Purpose) -> Dataset[Any]:
        """The split that `purpose` allows: test images to evaluate, training images for all others.

        Raises:
            DataError: there is no such split.
        """
        split = self._split(purpose)
        self.opened.append(Purpose(purpose).value)
        return self.opener(split)

    def identity(self, purpose: Purpose) -> str:
        """What tells the images that `purpose` opens, and the order of their classes, from all others.

        The images of a folder are read in full the first time (`dfkd.real_data.scan`); nothing but the digest leaves.

        Raises:
            DataError: some cannot be used.
        """
        return self._identity(self._split(purpose))

    def check(self, spec: InputSpec, *purposes: Purpose) -> None:
        """Find out before the work whether a network of this input can use all images that the purposes will open.

        Raises:
            DataError: they cannot be had, or some cannot be used; it names them.
        """
        for split in dict.fromkeys(map(self._split, purposes)):
            self._identity(split)
            _require_images(self.opener(split), spec, f"{self.name}, {split}")
        if self.class_names is not None and len(self.class_names) != spec.num_classes:
            raise DataError(
                f"data: {self.name} names {len(self.class_names)} classes ({listing(self.class_names)}), but the "
                f"network has {spec.num_classes}. Give class_names one name for each."
            )

    def require_disjoint(self, other: RealImages) -> None:
        """Raise `DataError` where this and `other` share images, as two sets of different classes must not.

        A few that are equal by chance or by a slip of whoever collected them, one in a hundred, are none.
        """
        for split in (split for split in Split if split in self.splits and split in other.splits):
            own, others = (set(images._digests(split)) for images in (self, other))
            shared = len(own & others)
            if shared > min(len(own), len(others)) / 100:
                raise DataError(
                    f"data: {self.name} and {other.name} share {shared} images ({split}), so that some of their "
                    "classes are the same. Choose different classes, for instance by data.only and new_data.only."
                )

    def _split(self, purpose: Purpose) -> Split:
        purpose = Purpose(purpose)
        if not self.has(purpose):
            raise DataError(
                f"data: {self.name} has no {ALLOWED[purpose]} images, which {purpose} needs. Add them "
                "(of a folder: data.train), or leave out what needs them: a teacher has teacher.weights=FILE, a run "
                "its controls=[...]."
            )
        return ALLOWED[purpose]

    def _digests(self, split: Split) -> Iterable[str]:
        if self.digests is not None:
            return self.digests(split)
        dataset: Any = self.opener(split)
        return (_digest(dataset[index][0]) for index in range(len(dataset)))

    def whole_content(self, split: Split) -> str:
        """`content` of a split, or the digest of all its images where that is None."""
        content = self.content(split) if callable(self.content) else self.content
        return _content(self.opener(split)) if content is None else content

    def _identity(self, split: Split) -> str:
        if split not in self._identities:
            names = None if self.class_names is None else list(self.class_names)
            text = repr((self.whole_content(split), split.value, names))
            self._identities[split] = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return self._identities[split]


def _content(dataset: Any) -> str:
    """All images and labels of a data set as one digest."""
    digest = hashlib.sha256()
    for image, label in (dataset[index] for index in range(len(dataset))):
        digest.update(f"{_digest(image)} {int(label)} ".encode())
    return digest.hexdigest()


def _digest(image: Tensor) -> str:
    about = f"{image.dtype} {tuple(image.shape)}".encode()
    return hashlib.sha256(about + image.contiguous().numpy().tobytes()).hexdigest()


def _require_images(dataset: Any, spec: InputSpec, name: str) -> None:
    """Raise `DataError` unless the first item is one of (image, label), as the network takes it, and all labels are."""
    if not len(dataset):
        raise DataError(f"data: {name}: there is no image.")
    item = dataset[0]
    pair = isinstance(item, tuple | list) and len(item) == 2
    if not pair or not isinstance(item[0], Tensor) or item[0].dim() != 3 or not item[0].is_floating_point():
        raise DataError(
            f"data: {name} must hold pairs of a normalised image, a float tensor (channels, height, width), and its "
            f"label, but the first item is {_described(item)}."
        )
    if not torch.as_tensor(item[1]).numel() == 1 or torch.as_tensor(item[1]).is_floating_point():
        raise DataError(f"data: {name}: the label of an image must be the number of its class, got {item[1]!r}.")
    if tuple(item[0].shape) != spec.image_shape:
        raise DataError(
            f"data: {name}: images must have the shape input.image_shape={list(spec.image_shape)}, but the first is "
            f"{list(item[0].shape)}. Resize them as they are read, or correct input.image_shape."
        )
    labels = labels_of(dataset)
    if labels.min() < 0 or labels.max() >= spec.num_classes:
        raise DataError(
            f"data: {name}: labels must be in [0, input.num_classes={spec.num_classes}), but they are from "
            f"{labels.min()} to {labels.max()}. Number the classes from 0, or correct input.num_classes."
        )


def _described(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"({', '.join(map(_described, item))})"
    return f"a {item.dtype} tensor {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
