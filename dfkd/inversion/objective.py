"""The inversion objective: which terms are summed, with which weights, on one forward of teacher and student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import ConfigError
from dfkd.inversion import losses
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import batch_statistics, require_batch_norm, running_statistics
from dfkd.models.freezing import frozen


class InversionObjective:
    """L(x') of DI, eq. 2 and 7, for images (B, C, H, W) and labels (B,). Made by `inversion_objective`."""

    def __init__(
        self,
        teacher: nn.Module,
        recipe: InversionRecipe,
        records: dict[str, list[tuple[Tensor, Tensor]]],
        student: nn.Module | None,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self.recipe = recipe
        self.records = records
        self.running = {name: running_statistics(layer) for name, layer in require_batch_norm(teacher).items()}

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Every weighted term's raw value, and their weighted sum as `total`."""
        recipe = self.recipe
        for record in self.records.values():
            record.clear()
        logits = self.teacher(images)
        terms: dict[str, tuple[float, Tensor]] = {}
        if recipe.label_loss == "entropy":
            terms["entropy"] = recipe.label_weight, losses.entropy(logits)
        else:
            terms["cross_entropy"] = recipe.label_weight, F.cross_entropy(logits, labels)
        if recipe.feature_weight:
            terms["feature"] = recipe.feature_weight, self._feature_distance()
        if recipe.tv_l2_weight:
            terms["tv_l2"] = recipe.tv_l2_weight, losses.total_variation_l2(images, recipe.prior_norm)
        if recipe.tv_l1_weight:
            terms["tv_l1"] = recipe.tv_l1_weight, losses.total_variation_l1(images)
        if recipe.l2_weight:
            terms["l2"] = recipe.l2_weight, losses.image_l2(images, recipe.prior_norm)
        if recipe.competition_weight and self.student is not None:
            compete = losses.competition(logits, self.student(images), recipe.competition_temperature)
            terms["competition"] = recipe.competition_weight, compete
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return {"total": total} | {name: value for name, (_, value) in terms.items()}

    def _feature_distance(self) -> Tensor:
        # A layer that is used several times in one forward has one set of running statistics for all its uses:
        # compare those with the mean over the uses. A layer that was not used has nothing to compare.
        used = {name: record for name, record in self.records.items() if record}
        statistics = [record[0] if len(record) == 1 else _mean_statistics(record) for record in used.values()]
        running = [self.running[name] for name in used]
        return losses.feature_distance(statistics, running, self.recipe.first_layer_weight)


def _mean_statistics(record: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    means, variances = zip(*record, strict=True)
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


@contextmanager
def inversion_objective(
    teacher: nn.Module, recipe: InversionRecipe, student: nn.Module | None = None
) -> Iterator[InversionObjective]:
    """The objective, with teacher and student frozen in eval mode and the teacher's statistics recorded, for a while.

    Raises:
        ModelError: the teacher has no batch norm.
        ConfigError: `recipe.competition_weight` is set but there is no student.
    """
    require_batch_norm(teacher)
    if recipe.competition_weight and student is None:
        raise ConfigError(
            f"inversion.competition_weight is {recipe.competition_weight}, but no student was given to compete with. "
            "Pass one, or set it to 0."
        )
    with frozen(teacher, student), batch_statistics(teacher) as records:
        yield InversionObjective(teacher, recipe, records, student)
