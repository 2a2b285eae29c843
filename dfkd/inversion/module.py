"""The inversion module: Lightning hands it planned batches, it turns each into dreams and stores them in the bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.inversion.batch import dream_batch
from dfkd.inversion.checkpoint import BatchCheckpoint
from dfkd.inversion.engine import OnCheck
from dfkd.inversion.gradient import ObjectiveGradient, worth_compiling
from dfkd.inversion.history import EarlierStatistics
from dfkd.inversion.memory import parts_for
from dfkd.inversion.objective import InversionObjective, inversion_objective
from dfkd.inversion.plan import PlannedBatch
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.input_spec import InputSpec

OnBatchCheck = Callable[[int, int, dict[str, float]], None]


class InversionModule(lightning.LightningModule):
    """One training step inverts the teacher into one batch of dreams, from noise to the bank.

    The iterations over a batch are one step, not one each: Lightning's cost per step would otherwise be paid
    thousands of times. Of `batches`, each rank of a trainer takes every n-th; ranks never wait for each other.

    Args:
        teacher: the network to invert; left as it was.
        recipe: the objective and its optimisation.
        spec: the teacher's input.
        bank: where finished batches go.
        batches: what to make.
        num_planned: batches of the whole bank, whether or not they are still to be made.
        compile: `always`, `never`, or `auto`: where it saves more time than it costs.
        checkpoint_seconds: between checkpoints of a batch on its way.
        earlier: dreams of the same teacher to start from, where `recipe.start` is `dreams`.

    Attributes:
        on_check: called now and then with the batch in hand, its iteration and the terms' values.
        on_made: called with each batch that was made.

    Raises:
        InversionError: a batch's loss was not finite; it is not stored, those before it are.
    """

    def __init__(
        self,
        teacher: nn.Module,
        recipe: InversionRecipe,
        spec: InputSpec,
        bank: DreamBank,
        batches: Sequence[PlannedBatch],
        num_planned: int,
        compile: str = "auto",
        checkpoint_seconds: float = 60.0,
        earlier: Dreams | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.teacher = teacher
        self.recipe = recipe
        self.bank = bank
        self.spec = spec
        self.batches = list(batches)
        self.num_planned = num_planned
        self.compile_when = compile
        self.checkpoint_seconds = checkpoint_seconds
        self.on_check: OnBatchCheck | None = None
        self.on_made: Callable[[int, Dreams], None] | None = None
        self.held: ExitStack | None = None
        self.statistics = EarlierStatistics(bank, recipe.feature_history)
        self.earlier = earlier

    def configure_optimizers(self) -> list[Any]:
        return []  # each batch of images has an optimiser of its own

    def train_dataloader(self) -> DataLoader[Any]:
        mine: list[Any] = self.batches[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        # The objective is held over all batches: compiled code knows the networks as they are within it.
        self.held = ExitStack()
        held = inversion_objective(self.teacher, self.recipe, image_shape=self.spec.image_shape)
        objective = self.held.enter_context(held)
        parts = parts_for(objective, self.spec.image_shape, min(self.recipe.batch_size, self.recipe.num_images))
        self.gradient = ObjectiveGradient(objective, self._compiled_batch(objective) if parts == 1 else None, parts)

    def on_train_end(self) -> None:
        self.release()

    def release(self) -> None:
        """Leave the networks as they were; needed after an error only."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def training_step(self, batch: PlannedBatch, batch_idx: int) -> None:
        held_out = -(-self.recipe.num_images // self.recipe.batch_size)  # the first batch of those, which stand alone
        first = held_out if batch.number >= held_out else 0
        objective = self.gradient.objective
        objective.earlier = self.statistics.before(batch.number, first, objective)
        report = self._report(batch.number)
        checkpoint = BatchCheckpoint(self.bank.checkpoint(batch.number), self.checkpoint_seconds)
        dreams, history = dream_batch(self.gradient, batch, self.spec, report, self.earlier, checkpoint)
        self.bank.write(batch.number, dreams, history)
        if self.on_made is not None:
            self.on_made(batch.number, dreams)

    def _compiled_batch(self, objective: InversionObjective) -> int | None:
        size = min(self.recipe.batch_size, self.recipe.num_images)
        if self.compile_when == "auto":
            images = torch.zeros(size, *self.spec.image_shape, device=self.device)
            with self.trainer.precision_plugin.forward_context():
                pays = worth_compiling(objective, images, self.recipe.total_iterations * self.num_planned)
        else:
            pays = self.compile_when == "always"
        return size if pays else None

    def _report(self, batch: int) -> OnCheck:
        def report(iteration: int, terms: dict[str, float]) -> None:
            if self.on_check is not None:
                self.on_check(batch, iteration, terms)

        return report
