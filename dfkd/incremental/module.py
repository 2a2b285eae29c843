"""The module that learns new classes, and what it minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.distillation.losses import distillation_loss
from dfkd.incremental.recipe import IncrementalRecipe
from dfkd.models.freezing import frozen
from dfkd.training.augmentation import augment
from dfkd.training.module import TeacherStudentModule
from dfkd.training.ranks import whole_batch_norm


def incremental_losses(
    new_logits: Tensor,
    labels: Tensor,
    old_logits: Tensor,
    dream_logits: Tensor,
    old_dream_logits: Tensor,
    t: float,
    separate_heads: bool = False,
) -> dict[str, Tensor]:
    """The three terms of DeepInversion's class-incremental learning, without their weights.

    `dreams`: t^2 KL(old || new) on dreams, over all classes; the old network gives the new ones no chance. `new`:
    cross-entropy of the new images, over all classes. `old`: t^2 KL(old || new) on the new images, over the old
    classes alone.

    Args:
        new_logits: (B, old + new) of the learning network on the new images.
        labels: their classes (B,), in [0, old + new).
        old_logits: (B, old) of the old network on them.
        dream_logits: (D, old + new) of the learning network on dreams.
        old_dream_logits: (D, old) of the old network on them.
        t: temperature, above 0.
        separate_heads: `new` is over the new classes alone, and `dreams` over the old ones alone.
    """
    classes = old_logits.shape[1]
    first = classes if separate_heads else 0
    seen = dream_logits[:, :classes] if separate_heads else dream_logits
    predicted = F.log_softmax(seen / t, 1)[:, :classes]
    expected = F.log_softmax(old_dream_logits / t, 1)
    return {
        "dreams": t**2 * F.kl_div(predicted, expected, reduction="batchmean", log_target=True),
        "new": F.cross_entropy(new_logits[:, first:], labels - first),
        "old": distillation_loss(new_logits[:, :classes], old_logits, t),
    }


class ClassIncrementalLearning(TeacherStudentModule):
    """Minimises CE(new images) + a_old KL(old classes, new images) + a_dreams KL(dreams), see `incremental_losses`.

    Batches are those of `PairedDataModule`. The network sees new images and dreams as one batch, so that its batch
    norms keep statistics of both.

    Args:
        network: the old network with room for the new classes, trained in place.
        old: the network that knows the old classes; used in eval mode and left as it was.
        recipe, seed: as in `SeededTraining`.
        memory_is_real: a control: the memory holds images, and their labels are learned by cross-entropy.
    """

    recipe: IncrementalRecipe

    def __init__(
        self,
        network: nn.Module,
        old: nn.Module,
        recipe: IncrementalRecipe,
        seed: int = 0,
        memory_is_real: bool = False,
    ) -> None:
        super().__init__(network, old, recipe, seed)
        self._memory_is_real = memory_is_real

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        kinds = images.transpose(0, 1)
        together = augment(kinds.flatten(0, 1), recipe.crop_padding, recipe.flip).unflatten(0, kinds.shape[:2])
        images, labels = self.share(together.transpose(0, 1)), self.ranks.share(labels)
        count = len(images)
        together = images.transpose(0, 1).flatten(0, 1)
        with whole_batch_norm(self.network, self.ranks):
            logits = self.network(together)
        if self._memory_is_real:
            loss = F.cross_entropy(logits, labels.T.flatten())
            return {"total": loss, "new": loss}
        with torch.no_grad(), frozen(self.teacher):
            expected = self.teacher(together)
        terms = incremental_losses(
            logits[:count], labels[:, 0], expected[:count], logits[count:], expected[count:],
            recipe.temperature, recipe.separate_heads,
        )  # fmt: skip
        weights = {"dreams": recipe.dream_weight if len(logits) > count else 0.0, "new": 1.0, "old": recipe.old_weight}
        used = {name: term for name, term in terms.items() if weights[name]}
        total = torch.stack([weights[name] * term for name, term in used.items()]).sum()
        return {"total": total} | used
