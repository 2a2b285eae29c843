"""The distillation module: a student learns its teacher's logits, on whatever images it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.distillation.batch_norm import aligned_batch_norm
from dfkd.distillation.losses import distillation_loss, matched_features
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.freezing import contiguous, frozen
from dfkd.pruning.schedule import cubic_share
from dfkd.pruning.sparsity import SparsityMask
from dfkd.quantization.grid import LatentWeights
from dfkd.training.augmentation import augment, cutmix, mixup
from dfkd.training.module import TeacherStudentModule
from dfkd.training.ranks import whole_batch_norm

PRUNINGS = 25  # steps in which a student is pruned while it learns


def pruning_steps(updates: int, gradual: float) -> dict[int, float]:
    """Which share of the final amount is pruned before which update."""
    steps = ((k * gradual * updates / PRUNINGS, cubic_share(k, PRUNINGS)) for k in range(1, PRUNINGS + 1))
    return {int(update): share for update, share in steps}


class DistillationModule(TeacherStudentModule):
    """Minimises a_logits t^2 KL(teacher || student) + a_labels CE(student, argmax teacher) + a_features feature_error.

    The last is the mean over layers (DI and PPR recover by the first). Labels in the batches are not used. What is
    pruned, by then or before the training, is exactly zero after every update; what is quantised is on its grid. The
    teacher is used in eval mode, left as it was, and not saved in checkpoints.

    Args:
        student: trained in place.
        teacher: what it learns from.
        recipe, seed: as in `SeededTraining`.
        prune: prunes the student in place to a share, in (0, 1], of the final amount; where it is given, the student is
            pruned at the updates of `pruning_steps`.
        latent: the weights behind those of a quantised student, which are what is pruned and what the steps are taken
            by.
    """

    recipe: DistillationRecipe

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        recipe: DistillationRecipe,
        seed: int = 0,
        prune: Callable[[nn.Module, float], None] | None = None,
        latent: LatentWeights | None = None,
    ) -> None:
        super().__init__(student, teacher, recipe, seed)
        self.latent = latent
        self._prune = prune
        self._steps = pruning_steps(recipe.updates, recipe.gradual) if prune is not None else {}
        self._mask: SparsityMask | None = None

    @property
    def pruned_from(self) -> int:
        """The update from whose end on the student is pruned in full."""
        return max(self._steps) + 1 if self._steps else 0

    def train(self, mode: bool = True) -> DistillationModule:
        super().train(mode)
        if self.recipe.batch_norm == "frozen":
            for layer in batch_norm_layers(self.network).values():
                layer.eval()
        return self

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        configured["optimizer"].register_step_post_hook(lambda *_: self.hold())
        return configured

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.latent is not None:
            self.latent.show()  # only now, since Lightning makes forward and backward within the optimiser's step

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        due = self._prune is not None and self.global_step in self._steps
        if not due and self._mask is not None:
            return
        if self.latent is not None:
            self.latent.show()  # on a grid many weights are of one size, and many that are not pruned are zero
        if self._prune is not None and due:
            with contiguous(self.network):
                self._prune(self.network, self._steps[self.global_step])
        self._mask = SparsityMask(self.network)  # of a checkpoint's weights, which are loaded by now
        if self.latent is not None:
            self.latent.hide(refine=False)

    def on_train_end(self) -> None:
        self.hold()  # an average of weights, the student by now, remembers what was pruned, and is on no grid

    def hold(self) -> None:
        """Set to zero again what is pruned by now, and bring to its grid what is quantised."""
        if self._mask is not None:
            self._mask()
        if self.latent is not None:
            self.latent.hide()

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        images = augment(images, recipe.crop_padding, recipe.flip)
        if recipe.mixup:
            images = mixup(images, recipe.mixup)
        if recipe.cutmix:
            images = cutmix(images, recipe.cutmix)
        images = self.share(images)
        errors: list[Tensor] = []
        with ExitStack() as together:
            if recipe.batch_norm == "aligned":
                together.enter_context(aligned_batch_norm(self.teacher, self.network, ranks=self.ranks))
            else:
                together.enter_context(whole_batch_norm(self.network, self.ranks))
            if recipe.feature_weight:
                errors = together.enter_context(matched_features(self.teacher, self.network, self.ranks))
            with torch.no_grad(), frozen(self.teacher):
                expected = self.teacher(images)
            logits = self.network(images)
        terms = {"logits": (recipe.logits_weight, distillation_loss(logits, expected, recipe.temperature))}
        if recipe.label_weight:
            terms["labels"] = (recipe.label_weight, F.cross_entropy(logits, expected.argmax(1)))
        if recipe.feature_weight:
            terms["features"] = (recipe.feature_weight, torch.stack(errors).mean())
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return {"total": total} | {name: term for name, (_, term) in terms.items()}
