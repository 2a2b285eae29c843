"""The base of every weight training here: a Lightning module that its seed alone determines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from dfkd.errors import TrainingError
from dfkd.seeding import derive_seed
from dfkd.training.metrics import Metrics, step_of
from dfkd.training.optimizer import OptimizerRecipe, make_optimizer


class SeededTraining(lightning.LightningModule):
    """Trains `network` by `losses` over augmented batches.

    Before each update the global generators are seeded by (seed, update), so that augmentation and dropout are the
    same whether or not the training was interrupted before it. A row of the mean losses is kept, and logged, for every
    `record_every` updates; the rows travel in the checkpoint.

    Args:
        network: what is trained, in place.
        recipe: optimiser, schedule and augmentation.
        seed: of every random draw.

    Attributes:
        name: of the training in logs; it has no say in what comes out.
        metrics: told each row.
        history: the rows.
    """

    def __init__(self, network: nn.Module, recipe: OptimizerRecipe, seed: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.seed = seed
        self.name = "train"
        self.metrics = Metrics()
        self.on_update: Callable[[int, dict[str, float]], None] | None = None  # is told each row
        self.history: list[dict[str, float]] = []
        self.record_every = max(1, min(10, recipe.updates // 20))
        self._pending: list[dict[str, Tensor]] = []

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All that images go through."""
        return (self.network,)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of a batch by name; `total` is the one to minimise."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        optimizer, schedule = make_optimizer(self.network, self.recipe)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.train()  # Lightning keeps the mode it finds, and a loaded network is in eval mode

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "update", self.global_step))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        losses = self.losses(images.float(), labels)
        self._pending.append({name: value.detach() for name, value in losses.items()})
        # Recorded here and not at the batch's end: checkpoints are taken then, and should hold this row.
        update = self.global_step + 1
        if update % self.record_every == 0 or update == self.recipe.updates:
            self._record(update)
        return losses["total"]

    def _record(self, update: int) -> None:
        names = self._pending[0]
        row = {name: torch.stack([losses[name].cpu() for losses in self._pending]).mean().item() for name in names}
        self._pending.clear()
        if not math.isfinite(row["total"]):
            raise TrainingError(
                f"{self.name}: the loss was not finite by update {update} ({row}). Lower "
                f"{self.recipe.group}.learning_rate or set {self.recipe.group}.warmup_updates."
            )
        self.history.append({"update": update})
        self.add_to_row({"update": update, **row})
        if self.on_update is not None:
            self.on_update(update, row)

    def add_to_row(self, values: dict[str, float]) -> None:
        """Record and log further `values` of the update that was recorded last."""
        self.history[-1] |= values
        self.metrics.log(self.name, step_of(self.history[-1]), values)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history
        checkpoint["pending"] = [{name: float(v) for name, v in losses.items()} for losses in self._pending]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]
        self._pending = [{name: torch.tensor(v) for name, v in losses.items()} for losses in checkpoint["pending"]]


class TeacherStudentModule(SeededTraining):
    """Trains a student by its teacher, which comes to the student's device, stays as it is, and is in no checkpoint.

    Args:
        network: the student.
        teacher: what the network learns from.
        recipe, seed: as in `SeededTraining`.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, recipe: OptimizerRecipe, seed: int) -> None:
        super().__init__(network, recipe, seed)
        # In a tuple, so that the teacher is not a submodule: neither trained nor saved with the network.
        self._teacher = (teacher,)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network, self.teacher)

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
