"""How a network that knows old classes learns new ones."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.errors import require
from dfkd.training.optimizer import OptimizerRecipe

LOSSES = ("balanced", "separate_heads", "deepinversion")


@dataclass(frozen=True, kw_only=True)
class IncrementalRecipe(OptimizerRecipe):
    """Settings of class-incremental learning.

    Attributes:
        new_classes: how many classes there are to learn in a step, 2 or more.
        steps: how often so many classes are learned, one step after the other.
        losses: `deepinversion`: cross-entropy and the dreams' distillation are over all classes (DI).
            `separate_heads`: each sees the old classes alone or the new ones alone (as in Learning without Forgetting,
            Li and Hoiem 2016), so that none pushes one half down on images and the other on dreams. `balanced`: so
            does the backbone, and the classifier alone learns to tell old from new, all classes counting the same (as
            in Always Be Dreaming, Smith et al. 2021).
        temperature: softmax temperature of the two distillation terms.
        dream_weight: weight of t^2 KL(old || new) on dreams.
        old_weight: weight of t^2 KL(old || new) on the new images, over the old classes.
        logit_weight: with `balanced`, if not 0: both distillation terms are this times the mean squared difference of
            the old classes' logits, which keeps their size as well, in the place of KL (as in Always Be Dreaming).
        rotation_weight: with `balanced`, weight of the new images turned by one, two or three quarters, each class
            and turn a class of its own beside those upright (self-supervised label augmentation, Lee et al. 2020). To
            tell them the backbone must learn more of the new classes' shapes. Not for images that a turn makes another
            class, as a 6 a 9.
        classifier_share: share of the updates, the last, in which `balanced` trains the classifier alone on a frozen
            backbone (R-DFCIL, Gao et al. 2022).
    """

    new_classes: int = 0
    steps: int = 1
    losses: str = "balanced"
    learning_rate: float = 0.02
    temperature: float = 2.0
    dream_weight: float = 1.0
    old_weight: float = 1.0
    logit_weight: float = 0.0
    rotation_weight: float = 0.0
    classifier_share: float = 0.0

    group = "incremental"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "2 or more, or 0 for other tasks"
        require(self.new_classes == 0 or self.new_classes > 1, "incremental.new_classes", self.new_classes, allowed)
        require(self.steps >= 1, "incremental.steps", self.steps, "1 or more")
        require(self.losses in LOSSES, "incremental.losses", self.losses, f"one of {LOSSES}")
        require(self.temperature > 0, "incremental.temperature", self.temperature, "above 0")
        for option in ("dream_weight", "old_weight", "logit_weight", "rotation_weight"):
            require(getattr(self, option) >= 0, f"incremental.{option}", getattr(self, option), "0 or more")
        require(0 <= self.classifier_share < 1, "incremental.classifier_share", self.classifier_share, "in [0, 1)")

    @property
    def classifier_updates(self) -> int:
        """Updates of the classifier alone, the last."""
        return round(self.classifier_share * self.updates) if self.losses == "balanced" else 0
