"""Checks of a student on held-out dreams as it learns: a curve to watch without any real image, and an early stop."""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dfkd.evaluation.scores import agreement
from dfkd.models.freezing import frozen
from dfkd.training.module import TeacherStudentModule

CHECKS = 20  # in a training


class HeldOutChecks(Callback):
    """Compares student and teacher on held-out dreams, about `CHECKS` times in a training.

    Adds to the training's rows `held_out_kl`, the mean KL(teacher || student) in nats, and `held_out_agreement`, the
    share of dreams to which both give the same class. With `patience`, the training stops after so many checks in a row
    without a lower `held_out_kl`, and the student becomes what it was at the lowest. What was the lowest, and how long
    ago, travels in checkpoints.

    Args:
        dreams: held-out dreams, of (image, label); the labels are not used.
        patience: None: never stops, and leaves the student as it is.
        first: update from which a check counts for `patience`; a student that is not yet pruned in full scores higher.
    """

    def __init__(self, dreams: Dataset[Any], patience: int | None = None, first: int = 0) -> None:
        self.dreams, self.patience, self.first = dreams, patience, first
        self.lowest, self.waited = float("inf"), 0
        self.chosen: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: TeacherStudentModule) -> None:  # type: ignore[override]
        self._expected = self._log_probabilities(module.teacher, module.device)
        self._every = module.record_every * max(1, module.recipe.updates // CHECKS // module.record_every)
        self._stop_if_due(trainer)  # it was, if the checkpoint was taken at that very update

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: lightning.Trainer, module: TeacherStudentModule, *_: Any
    ) -> None:
        update = trainer.global_step
        if update % self._every and update != module.recipe.updates:
            return
        predicted = self._log_probabilities(module.network, module.device)
        distance = F.kl_div(predicted, self._expected, reduction="batchmean", log_target=True).item()
        agreed = agreement(predicted.argmax(1), self._expected.argmax(1))
        distance, agreed = trainer.strategy.broadcast((distance, agreed))  # all ranks go on, or all stop
        module.add_to_row({"held_out_kl": distance, "held_out_agreement": agreed})
        if self.patience is None or update < self.first:
            return
        self.waited += 1
        if distance < self.lowest:
            self.lowest, self.waited = distance, 0
            self.chosen = module.network.state_dict()  # with its metadata, which some layers are loaded by
            for name, value in self.chosen.items():
                self.chosen[name] = value.detach().clone()
        self._stop_if_due(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: TeacherStudentModule) -> None:  # type: ignore[override]
        if self.chosen:
            module.network.load_state_dict(self.chosen)

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "waited": self.waited, "chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest, self.waited = state_dict["lowest"], state_dict["waited"]
        self.chosen = state_dict["chosen"]

    def _stop_if_due(self, trainer: lightning.Trainer) -> None:
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def _log_probabilities(self, network: nn.Module, device: torch.device) -> Tensor:
        loader: DataLoader[Any] = DataLoader(self.dreams, batch_size=256)
        with torch.no_grad(), frozen(network):
            return torch.cat([network(batch[0].to(device).float()).log_softmax(1) for batch in loader])
