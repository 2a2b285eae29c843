"""The main job: teacher -> dream -> prune -> recover -> evaluate, each stage's product an artifact in the store.

Real images are reachable in two stages only: `teacher` (to train one) and `evaluate` (scores and the real-data
control). `dream`, `prune` and `recover` are given networks and dreams.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.distillation.reconstruction import require_teachers_shapes
from dfkd.distillation.recover import reestimate_on
from dfkd.errors import ConfigError
from dfkd.models.student_file import save_student
from dfkd.pruning.schedule import cubic_share
from dfkd.pruning.sparsity import nonzero_weights
from dfkd.tasks.distillation import DistillationPipeline, MakeData, Pruner
from dfkd.tasks.pipeline import WEIGHTS


class Recovery(DistillationPipeline):
    """Prunes a copy of the teacher and brings it back on dreams."""

    stages: ClassVar[tuple[str, ...]] = ("teacher", "dream", "prune", "recover", "evaluate")
    networks: ClassVar[dict[str, str]] = {
        "teacher": "teacher", "pruned": "prune", "noise": "noise", "recovered": "recover", "real": "real",
    }  # fmt: skip
    student: ClassVar[str] = "recovered"

    def _check_student(self, teacher: nn.Module) -> None:
        e = self.experiment
        if e.student_recipe != e.model_recipe:
            raise ConfigError(
                "task=recovery prunes a copy of the teacher: leave out model@student, or set task=transfer."
            )
        student = copy.deepcopy(teacher)
        e.pruning.apply(student, teacher, lambda: torch.randn(8, *e.spec.image_shape))
        if e.distillation.reconstruct:
            require_teachers_shapes(student, teacher)
        if e.rounds > 1 and e.pruning.amount is None:
            raise ConfigError(
                f"rounds must be 1 with pruning._target_={e.pruning.recipe.get('_target_')}, got {e.rounds}: it has no "
                "amount that could rise from round to round."
            )

    def _sparsity(self, network: nn.Module, teacher: nn.Module) -> float:
        """Share of the teacher's prunable weights that are gone, cut out or zero."""
        return 1 - nonzero_weights(network) / nonzero_weights(teacher)

    def _prune(self) -> None:
        self._prune_from("prune", "teacher")

    def _recover(self) -> None:
        self._learn_from_dreams("recover")

    def _prune_from(self, name: str, before: str, **amount: float) -> None:
        method = self.experiment.pruning
        recipe = {"network": self.artifacts[before].key, "pruning": method.recipe | amount}
        if method.takes("teacher"):
            recipe["teacher"] = self.artifacts["teacher"].key
        if method.takes("dreams"):
            recipe["dreams"] = self.artifacts["dream"].key

        def make(directory: Path) -> dict[str, Any]:
            student = self.network(before)
            method.apply(student, self.network("teacher"), lambda: self.dreams().training.images, **amount)
            save_student(directory / WEIGHTS, student)
            return {}

        self._obtain(name, "pruned", recipe, make)

    def _learn(self, name: str, images: dict[str, Any], make_data: MakeData) -> None:
        rounds, amount = self.experiment.rounds, self.experiment.pruning.amount
        student = "prune"
        if rounds > 1 and amount is not None:
            before = "teacher"
            for done in range(1, rounds + 1):
                student = f"{name}_pruned_{done}"
                self._prune_from(student, before, amount=amount * cubic_share(done, rounds))
                if done < rounds:
                    before = f"{name}_{done}"
                    self._distil(before, student, images, make_data)
        self._distil(name, student, images, make_data)

    def _start(self, student: str, teacher: nn.Module) -> tuple[nn.Module, Pruner | None]:
        network = self.network(student)
        method, recipe = self.experiment.pruning, self.experiment.distillation
        amount = method.amount
        asked = recipe.gradual > 0 and recipe.updates > 0 and not recipe.reconstruct and self.experiment.rounds == 1
        if not asked or amount is None or _shapes(network) != _shapes(teacher):
            return network, None  # it must be pruned before it learns
        images = self.dreams().training.images if method.takes("dreams") else Tensor()

        def prune(network: nn.Module, share: float) -> None:
            method.apply(network, teacher, lambda: images, amount=share * amount)

        return self.network("teacher"), prune

    def _models(self) -> dict[str, nn.Module]:
        reestimated, e = self.network("prune"), self.experiment
        loader = self._stream(self.dreams()).one_pass()
        reestimate_on(reestimated, self.network("teacher"), loader, e.distillation, e.options)
        return super()._models() | {"batchnorm": reestimated}


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in network.state_dict().values()]
