"""The inversion objective: which terms are summed, with which weights, on one forward of teacher and student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import ConfigError
from dfkd.inversion import losses
from dfkd.inversion.recipe import InversionRecipe
from dfkd.inversion.statistics import Statistics, averaged, pooled
from dfkd.models.batch_norm import batch_statistics, require_batch_norm, running_statistics
from dfkd.models.classifier import forward_order
from dfkd.models.depthwise import strided_depthwise_in_float32
from dfkd.models.freezing import channels_last, frozen

Terms = dict[str, Tensor]


class InversionObjective:
    """L(x') of DI, eq. 2 and 7, for images (B, C, H, W) and labels (B,). Made by `inversion_objective`.

    It is a sum of three parts, which `dfkd.inversion.gradient` also takes one by one: terms that are means over
    images (`image_terms`), the distance of the whole batch's statistics (`feature_distance`), and the priors on the
    images themselves (`priors`).
    """

    def __init__(
        self,
        teacher: nn.Module,
        recipe: InversionRecipe,
        records: dict[str, list[Statistics]],
        student: nn.Module | None,
        first_layer: str | None = None,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.recipe = recipe
        self.records = records
        self.earlier: Sequence[Mapping[str, Statistics]] = ()
        self.layers = require_batch_norm(teacher)
        self.layer_weights = recipe.weights_of(list(self.layers), first_layer)
        weights = {
            "entropy" if recipe.label_loss == "entropy" else "cross_entropy": recipe.label_weight,
            "feature": recipe.feature_weight,
            "tv_l2": recipe.tv_l2_weight,
            "tv_l1": recipe.tv_l1_weight,
            "l2": recipe.l2_weight,
            "competition": recipe.competition_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        # A tensor, so that compiled code takes it as it comes.
        self.label_factor = torch.ones((), device=next(teacher.parameters()).device)

    def parameters(self) -> list[Tensor]:
        """Of teacher and student."""
        return [p for model in (self.teacher, self.student) if model is not None for p in model.parameters()]

    def __call__(self, images: Tensor, labels: Tensor) -> Terms:
        """Every weighted term's raw value, and their weighted sum as `total`."""
        with self.recorded() as records:
            terms = self.image_terms(images, labels)
            if records:
                terms |= {"feature": self.feature_distance(records)}
        return self.summed(terms | self.priors(images))

    @contextmanager
    def recorded(self) -> Iterator[Mapping[str, Sequence[Statistics]]]:
        """Within the context, the statistics of the teacher's forwards, by layer; it leaves none behind."""
        for record in self.records.values():
            record.clear()
        try:
            yield self.records
        finally:
            for record in self.records.values():
                record.clear()

    def image_terms(self, images: Tensor, labels: Tensor) -> Terms:
        """The terms that are means over the images: the label loss, and the competition with the student."""
        logits = self.teacher(images)
        terms = {}
        if "entropy" in self.weights:
            terms["entropy"] = losses.entropy(logits)
        if "cross_entropy" in self.weights:
            terms["cross_entropy"] = F.cross_entropy(logits, labels)
        if "competition" in self.weights and self.student is not None:
            terms["competition"] = losses.competition(logits, self.student(images), self.recipe.competition_temperature)
        return terms

    def feature_distance(self, records: Mapping[str, Sequence[Statistics]]) -> Tensor:
        """R_feature of the batch's statistics, in the recipe's form.

        A layer that is used several times in one forward has one set of running statistics for all its uses: those
        are compared with the mean over the uses. A layer that was not used has nothing to compare. Where `earlier` has
        the statistics of other batches, it is the distance of all of them together, times their number.
        """
        used = [name for name, record in records.items() if record]
        statistics = [self._with_earlier(name, averaged(records[name])) for name in used]
        running = [running_statistics(self.layers[name]) for name in used]
        weights = [self.layer_weights[name] for name in used]
        batches = 1 + len(self.earlier)  # the statistics are of so many, and move so much less with one of them
        if self.recipe.feature_form == "norm":
            return batches * losses.feature_distance(statistics, running, weights)
        return batches * losses.feature_divergence(
            statistics, running, weights, [getattr(self.layers[name], "eps", 1e-5) for name in used]
        )

    def _with_earlier(self, name: str, statistics: Statistics) -> Statistics:
        parts = [statistics, *(batch[name] for batch in self.earlier if name in batch)]
        return pooled(parts, [1 / len(parts)] * len(parts)) if len(parts) > 1 else statistics

    def priors(self, images: Tensor) -> Terms:
        """The terms that know no network."""
        recipe = self.recipe
        terms = {}
        if "tv_l2" in self.weights:
            terms["tv_l2"] = losses.total_variation_l2(images, recipe.tv_l2_norm)
        if "tv_l1" in self.weights:
            terms["tv_l1"] = losses.total_variation_l1(images, recipe.tv_l1_reduction)
        if "l2" in self.weights:
            terms["l2"] = losses.image_l2(images, recipe.l2_norm)
        return terms

    def summed(self, terms: Terms) -> Terms:
        """The terms, preceded by their weighted sum as `total`."""
        total = torch.stack([self.weighted(name, value) for name, value in terms.items()]).sum()
        return {"total": total} | terms

    def weighted(self, name: str, value: Tensor) -> Tensor:
        """A term's value times its weight."""
        weighted = self.weights[name] * value
        return self.label_factor * weighted if name == "cross_entropy" else weighted

    @contextmanager
    def labels_weighed(self, factor: float) -> Iterator[None]:
        """Within the context, the cross-entropy's weight is so many times what the recipe has."""
        self.label_factor.fill_(factor)
        try:
            yield
        finally:
            self.label_factor.fill_(1.0)


@contextmanager
def inversion_objective(
    teacher: nn.Module,
    recipe: InversionRecipe,
    student: nn.Module | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Iterator[InversionObjective]:
    """The objective, with teacher and student frozen in eval mode and the teacher's statistics recorded, for a while.

    Args:
        teacher: the network to invert.
        recipe: the terms' weights and forms.
        student: what the competition is against.
        image_shape: (C, H, W) of the input. `recipe.first_layer_weight` is then of the layer that a forward comes to
            first, and not of the one that the network holds first.

    Raises:
        ModelError: the teacher has no batch norm.
        ConfigError: `recipe.competition_weight` is set but there is no student, or `recipe.layer_weights` does not
            have one weight for each batch-norm layer.
    """
    require_batch_norm(teacher)
    if recipe.competition_weight and student is None:
        raise ConfigError(
            f"inversion.competition_weight is {recipe.competition_weight}, but no student was given to compete with. "
            "Pass one, or set it to 0."
        )
    with ExitStack() as stack:
        stack.enter_context(frozen(teacher, student))
        for model in (teacher, student):
            if model is not None:
                stack.enter_context(channels_last(model))
                stack.enter_context(strided_depthwise_in_float32(model))
        records = stack.enter_context(batch_statistics(teacher)) if recipe.feature_weight else {}
        first = None if image_shape is None else next(iter(forward_order(teacher, records, image_shape)), None)
        yield InversionObjective(teacher, recipe, records, student, first)
