"""The distillation module: a student learns to answer as its teacher does, on whatever images it is given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.distillation.losses import distillation_loss, matched_features
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.freezing import frozen
from dfkd.pruning.sparsity import FixedZeros
from dfkd.training.augmentation import augment, mixup
from dfkd.training.module import SeededTraining


class DistillationModule(SeededTraining):
    """Minimises a_logits t^2 KL(teacher || student) + a_labels CE(student, argmax teacher) + a_features feature_error.

    The last is the mean over layers (DI and PPR recover by the first). Labels in the batches are not used. The
    student's weights that are zero when training starts are exactly zero after every update. The teacher is used in
    eval mode, left as it was, and not saved in checkpoints.

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
                answers = self.teacher(images)
            logits = self.network(images)
        terms = {"logits": (recipe.logits_weight, distillation_loss(logits, answers, recipe.temperature))}
        if recipe.label_weight:
            terms["labels"] = (recipe.label_weight, F.cross_entropy(logits, answers.argmax(1)))
        if recipe.feature_weight:
            terms["features"] = (recipe.feature_weight, torch.stack(errors).mean())
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return {"total": total} | {name: term for name, (_, term) in terms.items()}
