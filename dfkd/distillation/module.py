"""The distillation module: a student learns to answer as its teacher does, on whatever images it is given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.distillation.losses import distillation_loss, matched_features
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.freezing import frozen
from dfkd.pruning.sparsity import FixedZeros
from dfkd.training.augmentation import augment, mixup
from dfkd.training.module import SeededTraining


class DistillationModule(SeededTraining):
    """Minimises a_logits t^2 KL(teacher || student) + a_features mean feature_error (METHOD: DI and PPR, recovery).

    Labels in the batches are not used. The student's weights that are zero when training starts are exactly zero
    after every update. The teacher is used in eval mode, left as it was, and not saved in checkpoints.

    Args:
        student: trained in place.
        teacher: what it learns from.
        recipe, seed, stage: as in `SeededTraining`.
    """

    recipe: DistillationRecipe

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        recipe: DistillationRecipe,
        seed: int = 0,
        stage: str = "recover",
    ) -> None:
        super().__init__(student, recipe, seed, stage)
        self._zeros = FixedZeros(student)
        # In a tuple, so that the teacher is not a submodule: neither trained nor saved with the student.
        self._teacher = (teacher,)

    @property
    def teacher(self) -> nn.Module:
        """The network to learn from."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        self._teacher_home = next(self.teacher.parameters()).device

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.to(self.device)

    def teardown(self, stage: str) -> None:
        self.teacher.to(self._teacher_home)

    def train(self, mode: bool = True) -> DistillationModule:
        super().train(mode)
        if self.recipe.batch_norm == "frozen":
            for layer in batch_norm_layers(self.network).values():
                layer.eval()
        return self

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        configured["optimizer"].register_step_post_hook(self._zeros)
        return configured

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        images = augment(images, recipe.crop_padding, recipe.flip)
        if recipe.mixup:
            images = mixup(images, recipe.mixup)
        matching: AbstractContextManager[list[Tensor]] = nullcontext([])
        if recipe.feature_weight:
            matching = matched_features(self.teacher, self.network)
        with matching as errors:
            with torch.no_grad(), frozen(self.teacher):
                teacher_logits = self.teacher(images)
            logits = distillation_loss(self.network(images), teacher_logits, recipe.temperature)
        if not recipe.feature_weight:
            return {"total": recipe.logits_weight * logits, "logits": logits}
        features = torch.stack(errors).mean()
        total = recipe.logits_weight * logits + recipe.feature_weight * features
        return {"total": total, "logits": logits, "features": features}
