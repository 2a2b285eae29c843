"""Training a teacher on real images: for demonstrations and studies; users bring their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dfkd.errors import require
from dfkd.training.augmentation import augment
from dfkd.training.module import SeededTraining
from dfkd.training.optimizer import OptimizerRecipe
from dfkd.training.ranks import whole_batch_norm


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe(OptimizerRecipe):
    """Settings of a supervised training.

    Attributes:
        label_smoothing: share of the target spread over all classes.
        start: weights to start from, a file or `torchvision:NAME`; the classifier starts anew where they have one for
            other classes. None: random weights.
    """

    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    start: str | None = None

    group = "teacher.training"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_smoothing < 1, "teacher.training.label_smoothing", self.label_smoothing, "in [0, 1)")


class TeacherTraining(SeededTraining):
    """Minimises the cross-entropy of augmented images and their labels."""

    recipe: TeacherRecipe

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        images, labels = (
            self.share(augment(images, self.recipe.crop_padding, self.recipe.flip)),
            self.ranks.share(labels),
        )
        with whole_batch_norm(self.network, self.ranks):
            logits = self.network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        return {"total": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
