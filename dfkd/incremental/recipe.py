"""How a network that knows old classes learns new ones."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.errors import require
from dfkd.training.optimizer import OptimizerRecipe


@dataclass(frozen=True, kw_only=True)
class IncrementalRecipe(OptimizerRecipe):
    """Settings of class-incremental learning.

    Attributes:
        new_classes: how many classes there are to learn, 2 or more.
        temperature: softmax temperature of the two distillation terms.
        dream_weight: weight of t^2 KL(old || new) on dreams.
        old_weight: weight of t^2 KL(old || new) on the new images, over the old classes.
        separate_heads: each term sees the old classes alone or the new ones alone (as in Learning without Forgetting,
            Li and Hoiem 2016), so that none pushes one half down on images and the other on dreams. Else the
            cross-entropy and the dreams' term are over all classes (DI).
    """

    new_classes: int = 0
    learning_rate: float = 0.02
    temperature: float = 2.0
    dream_weight: float = 1.0
    old_weight: float = 1.0
    separate_heads: bool = False

    group = "incremental"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = "2 or more, or 0 for other tasks"
        require(self.new_classes == 0 or self.new_classes > 1, "incremental.new_classes", self.new_classes, allowed)
        require(self.temperature > 0, "incremental.temperature", self.temperature, "above 0")
        for option in ("dream_weight", "old_weight"):
            require(getattr(self, option) >= 0, f"incremental.{option}", getattr(self, option), "0 or more")
