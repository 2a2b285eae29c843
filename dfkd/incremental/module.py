"""The modules that learn new classes: the whole network, and at the end its classifier alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.incremental.losses import class_weights, incremental_losses, kept, turned_losses, weighted_cross_entropy
from dfkd.incremental.recipe import IncrementalRecipe
from dfkd.models.classifier import features_and_logits
from dfkd.models.freezing import frozen
from dfkd.seeding import derive_seed
from dfkd.training.augmentation import augment, quarter_turns
from dfkd.training.module import SeededTraining, TeacherStudentModule
from dfkd.training.ranks import whole_batch_norm


class ClassIncrementalLearning(TeacherStudentModule):
    """Minimises CE(new images) + a_old KL(old classes, new images) + a_dreams KL(dreams), see `incremental_losses`.

    With the losses `balanced` these are of separate heads, and one more cross-entropy, of new images and dreams among
    all classes with `class_weights`, is of the classifier alone: the features that it sees have no gradient. So the
    backbone gains nothing by telling dreams from images. With a `rotation_weight` r it adds r (`turned_losses` + a_old
    `kept`) of the new images turned, whose classes have a layer of their own that goes with the training.

    Batches are those of `PairedDataModule`. The network sees new images and dreams as one batch, so that its batch
    norms keep statistics of both.

    Args:
        network: the old network with room for the new classes, trained in place.
        old: the network that knows the old classes; used in eval mode and left as it was.
        recipe, seed: as in `SeededTraining`.
        classifier: name of the layer that gives the network's logits; `balanced` alone needs it.
        memory_is_real: a control: the memory holds images, and their labels are learned by cross-entropy.
    """

    recipe: IncrementalRecipe

    def __init__(
        self,
        network: nn.Module,
        old: nn.Module,
        recipe: IncrementalRecipe,
        seed: int = 0,
        classifier: str = "",
        memory_is_real: bool = False,
    ) -> None:
        super().__init__(network, old, recipe, seed)
        self._classifier = classifier
        self._memory_is_real = memory_is_real
        self._turned: nn.Linear | None = None
        if recipe.losses == "balanced" and recipe.rotation_weight:
            layer = network.get_submodule(classifier)
            assert isinstance(layer, nn.Linear)  # as `classifier_of` finds it
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(seed, "turned classes"))
                self._turned = nn.Linear(layer.in_features, 3 * recipe.new_classes)

    def configure_optimizers(self) -> Any:
        trained = self.network if self._turned is None else nn.ModuleList([self.network, self._turned])
        return self.optimized(trained)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        recipe = self.recipe
        together, labels, weights = paired_batch(self, images, labels)
        count = len(together) // labels.shape[1]
        if self._memory_is_real:
            with whole_batch_norm(self.network, self.ranks):
                loss = F.cross_entropy(self.network(together), labels.T.flatten())
            return {"total": loss, "new": loss}
        shown = len(together)
        if self._turned is not None:
            turns = torch.randint(1, 4, (count,), device=together.device)
            together = torch.cat([together, quarter_turns(together[:count], turns)])
        with torch.no_grad(), frozen(self.teacher):
            expected = self.teacher(together)
        balanced = recipe.losses == "balanced"
        weight = recipe.logit_weight if balanced else 0.0
        with whole_batch_norm(self.network, self.ranks):
            if balanced:
                features, logits = features_and_logits(self.network, self._classifier, together)
            else:
                logits = self.network(together)
        terms = incremental_losses(
            logits[:count], labels[:, 0], expected[:count], logits[count:shown], expected[count:shown],
            recipe.temperature, separate_heads=recipe.losses != "deepinversion", logit_weight=weight,
        )  # fmt: skip
        if balanced:
            among_all = self.network.get_submodule(self._classifier)(features[:shown].detach())
            terms["classifier"] = weighted_cross_entropy(among_all, labels.T.flatten(), weights)
        if self._turned is not None:
            first = expected.shape[1]
            every = torch.cat([logits[:, first:], self._turned(features)], 1)
            terms["new"], terms["turned"] = turned_losses(every[:count], every[shown:], labels[:, 0] - first, turns)
            old = kept(logits[shown:], expected[shown:], recipe.temperature, weight)
            terms["old"] = terms["old"] + recipe.rotation_weight * old
        factors = {
            "old": recipe.old_weight,
            "dreams": recipe.dream_weight if shown > count else 0.0,
            "turned": recipe.rotation_weight,
        }
        used = {name: term for name, term in terms.items() if factors.get(name, 1.0)}
        total = torch.stack([factors.get(name, 1.0) * term for name, term in used.items()]).sum()
        return {"total": total} | used


class ClassifierTuning(SeededTraining):
    """Minimises the cross-entropy among all classes, with `class_weights`, of the classifier on a frozen backbone.

    Batches are those of `PairedDataModule`.

    Args:
        network: in which the classifier is trained in place; none of its other parameters may ask for a gradient.
        recipe, seed: as in `SeededTraining`.
        classifier: name of the layer that gives the network's logits.
    """

    def __init__(self, network: nn.Module, recipe: IncrementalRecipe, seed: int, classifier: str) -> None:
        super().__init__(network, recipe, seed)
        self._classifier = classifier

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.network.eval()  # batch norm's statistics and dropout belong to the backbone

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        together, labels, weights = paired_batch(self, images, labels)
        logits = self.network(together)
        return {"total": weighted_cross_entropy(logits, labels.T.flatten(), weights)}


def paired_batch(module: SeededTraining, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of `PairedDataModule` as `module` learns from it: augmented, and of several ranks this one's share.

    Returns:
        The images (K B, C, H, W), first all of the new classes; labels (B, K); and the images' `class_weights`
        (K B,), which are those within the whole batch.
    """
    kinds, recipe = images.transpose(0, 1), module.recipe
    together = augment(kinds.flatten(0, 1), recipe.crop_padding, recipe.flip).unflatten(0, kinds.shape[:2])
    images = module.share(together.transpose(0, 1)).transpose(0, 1).flatten(0, 1)
    weights = class_weights(labels.flatten()).view_as(labels)
    labels, weights = module.ranks.share(labels), module.ranks.share(weights)
    return images, labels, weights.T.flatten()
