"""The inversion module: Lightning hands it planned batches, it turns each into dreams and stores them in the bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.errors import InversionError
from dfkd.inversion.engine import optimise
from dfkd.inversion.objective import inversion_objective
from dfkd.inversion.plan import PlannedBatch
from dfkd.inversion.recipe import InversionRecipe

OnCheck = Callable[[int, dict[str, float]], None]


class InversionModule(lightning.LightningModule):
    """One training step inverts the teacher into one batch of dreams, from noise to the bank.

    The iterations over a batch are one step, not one each: Lightning's cost per step would otherwise be paid
    thousands of times.

    Args:
        teacher: the network to invert; left as it was.
        recipe: the objective and its optimisation.
        bank: where finished batches go.
        image_shape: (C, H, W).
        valid_range: lowest and highest valid input, each (C, 1, 1); used where `recipe.clip`.
        student: the network to compete with where `recipe.competition_weight` is above 0.
        on_check: called now and then with the iterations done on the batch in hand and the terms' values.

    Raises:
        InversionError: a batch's loss was not finite; it is not stored, those before it are.
    """

    def __init__(
        self,
        teacher: nn.Module,
        recipe: InversionRecipe,
        bank: DreamBank,
        image_shape: tuple[int, int, int],
        valid_range: tuple[Tensor, Tensor] | None = None,
        student: nn.Module | None = None,
        on_check: OnCheck | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.teacher = teacher
        self.student = student
        self.recipe = recipe
        self.bank = bank
        self.image_shape = tuple(image_shape)
        self.valid_range = valid_range if recipe.clip else None
        self.on_check = on_check

    def configure_optimizers(self) -> list:
        return []  # each batch of images has an optimiser of its own

    def training_step(self, batch: PlannedBatch, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(batch.seed)
        noise = torch.randn(len(batch.labels), *self.image_shape, generator=generator).to(self.device)
        labels = batch.labels.to(self.device)
        valid_range = None
        if self.valid_range is not None:
            valid_range = (self.valid_range[0].to(self.device), self.valid_range[1].to(self.device))
        with inversion_objective(self.teacher, self.recipe, self.student) as objective:
            try:
                result = optimise(noise, labels, objective, generator, valid_range, self._report(batch.number))
            except InversionError as error:
                raise InversionError(f"Batch {batch.number}: {error} It was not stored.") from error
            dreams = self._judge(result.images, labels)
        self.bank.write(batch.number, dreams, result.history)

    def _judge(self, images: Tensor, labels: Tensor) -> Dreams:
        images = images.half()
        if not images.isfinite().all():
            raise InversionError(
                "The images left the range of their float16 storage. Set inversion.clip=true or raise "
                "inversion.l2_weight. The batch was not stored."
            )
        probabilities = self.teacher(images.float()).float().softmax(dim=1)
        predictions = probabilities.argmax(dim=1)
        if self.recipe.label_loss == "entropy":
            labels = predictions
        confidence = probabilities.gather(1, labels[:, None]).squeeze(1)
        return Dreams(images.cpu(), labels.cpu(), predictions.cpu(), confidence.cpu())

    def _report(self, index: int) -> OnCheck:
        def report(iteration: int, terms: dict[str, float]) -> None:
            metrics: dict[str, Any] = {"dream/batch": index, "dream/iteration": iteration}
            metrics |= {f"dream/{name}": value for name, value in terms.items()}
            for logger in self.loggers:
                logger.log_metrics(metrics, index * self.recipe.iterations + iteration)
            if self.on_check is not None:
                self.on_check(iteration + 1, terms)

        return report
