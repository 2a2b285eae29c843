"""The one door to real images: whoever opens it says what for, and only four purposes are allowed.

Nothing that makes or uses dreams may import this package (a test holds that), and every opening is recorded in the
run's result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from torch.utils.data import Dataset


class Purpose(StrEnum):
    """What real images may be used for."""

    TEACHER_TRAINING = "teacher training"
    EVALUATION = "evaluation"
    REAL_DATA_CONTROL = "real-data control"
    NEW_CLASSES = "learning new classes"


class Split(StrEnum):
    """Part of a data set: what teachers are trained on, and what is only scored."""

    TRAIN = "train"
    TEST = "test"


ALLOWED = {
    Purpose.TEACHER_TRAINING: Split.TRAIN,
    Purpose.EVALUATION: Split.TEST,
    Purpose.REAL_DATA_CONTROL: Split.TRAIN,
    Purpose.NEW_CLASSES: Split.TRAIN,
}


@dataclass
class RealImages:
    """A real data set behind the door.

    Attributes:
        name: for messages.
        fingerprint: of the images' identity: artifacts made from other images get another key.
        opener: gives a split as a data set of (normalised image (C, H, W), label).
        opened: the purposes it was opened for, in order.
    """

    name: str
    fingerprint: str
    opener: Callable[[Split], Dataset]
    opened: list[str] = field(default_factory=list)

    def open(self, purpose: Purpose) -> Dataset:
        """The split that `purpose` allows: test images to evaluate, training images for all others."""
        purpose = Purpose(purpose)
        self.opened.append(purpose.value)
        return self.opener(ALLOWED[purpose])
