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
from dfkd.training.optimizer import OptimizerRecipe, make_optimizer
from dfkd.training.ranks import ALONE, Ranks


class SeededTraining(lightning.LightningModule):
    """Trains `network` by `losses` over augmented batches.

    Before each update the global generators are seeded by (seed, update), so that augmentation and dropout are the
    same whether or not the training was interrupted before it. A row of the mean losses is kept for every
    `record_every` updates; the rows travel in the checkpoint. On several ranks each learns from its share of every
    batch (`share`), and the losses are those of the whole.

    Args:
        network: what is trained, in place.
        recipe: optimiser, schedule and augmentation.
        seed: of every random draw.

    Attributes:
        name: of the training in logs; it has no say in what comes out.
        on_row: told the values of a row as they arise, and their `update`.
        history: the rows.
        ranks: those that train together.
    """

    def __init__(self, network: nn.Module, recipe: OptimizerRecipe, seed: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.seed = seed
        self.name = "train"
        self.on_row: Callable[[dict[str, float]], None] | None = None
        self.ranks = ALONE
        self.history: list[dict[str, float]] = []
        self.record_every = max(1, min(10, recipe.updates // 20))
        self._pending: list[dict[str, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"on_row": None}  # what the caller is told by may not fit into another process

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All that images go through."""
        return (self.network,)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of a batch by name; `total` is the one to minimise."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return self.optimized(self.network)

    def optimized(self, trained: nn.Module) -> Any:
        """What Lightning asks for, to train the parameters of `trained`."""
        optimizer, schedule = make_optimizer(trained, self.recipe)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        self.ranks = Ranks(self.trainer.world_size, self.trainer.global_rank)
        if self.ranks.count > 1:  # handed to several processes of one machine, the tensors are in memory they share
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.data = tensor.data.clone()

    def on_fit_start(self) -> None:
        self.train()  # Lightning keeps the mode it finds, and a loaded network is in eval mode

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "update", self.global_step))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        losses = self.losses(images.float(), labels)
        self._pending.append({name: self.ranks.mean(value.detach()) for name, value in losses.items()})
        # Recorded here and not at the batch's end: checkpoints are taken then, and should hold this row.
        update = self.global_step + 1
        if update % self.record_every == 0 or update == self.recipe.updates:
            self._record(update)
        return losses["total"]

    def share(self, images: Tensor) -> Tensor:
        """This rank's part of a batch that all ranks augmented alike; what is drawn from here on is its own."""
        if self.ranks.count > 1:
            torch.manual_seed(derive_seed(self.seed, "update", self.global_step, self.ranks.own))
        return self.ranks.share(images)

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
        self.add_to_row(row)

    def add_to_row(self, values: dict[str, float]) -> None:
        """Record further `values` of the update that was recorded last."""
        self.history[-1] |= values
        if self.on_row is not None:
            self.on_row({"update": self.history[-1]["update"], **values})

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
        super().setup(stage)
        self._teacher_home = next(self.teacher.parameters()).device

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.teacher.to(self.device)

    def teardown(self, stage: str) -> None:
        self.teacher.to(self._teacher_home)
