"""Knowledge transfer: teacher -> dream -> student -> transfer -> evaluate, to a network that has learned nothing yet.

Real images are reachable in `teacher` and `evaluate` only, as in recovery.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dfkd.distillation.batch_norm import aligned_batch_norm
from dfkd.distillation.losses import matched_features
from dfkd.errors import ConfigError, require
from dfkd.models.input_spec import check_model
from dfkd.models.student_file import save_student
from dfkd.seeding import derive_seed
from dfkd.tasks.distillation import DistillationPipeline, MakeData
from dfkd.tasks.pipeline import WEIGHTS


class Transfer(DistillationPipeline):
    """Teaches a fresh student, of any architecture, on dreams."""

    stages: ClassVar[tuple[str, ...]] = ("teacher", "dream", "student", "transfer", "evaluate")
    networks: ClassVar[dict[str, str]] = {
        "teacher": "teacher", "noise": "noise", "student": "transfer", "real": "real",
    }  # fmt: skip
    student: ClassVar[str] = "student"

    def _check_student(self, teacher: nn.Module) -> None:
        e = self.experiment
        student = e.build_student()
        check_model(student, e.spec)
        recipe = e.distillation
        require(not recipe.reconstruct, "distillation.reconstruct", recipe.reconstruct, "false with task=transfer")
        if recipe.batch_norm == "aligned":
            with aligned_batch_norm(teacher, student):
                pass  # refuses layers that do not pair
        if recipe.feature_weight:
            try:
                with torch.no_grad(), matched_features(teacher, student):
                    for network in (teacher, student):
                        network(torch.randn(2, *e.spec.image_shape))
            except RuntimeError as error:
                raise ConfigError(
                    "distillation.feature_weight must be 0 for a student whose layers differ from its teacher's, got "
                    f"{recipe.feature_weight}: {error}"
                ) from error

    def _student(self) -> None:
        e = self.experiment

        def make(directory: Path) -> dict[str, Any]:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(e.seed, "student"))
                save_student(directory / WEIGHTS, e.build_student())
            return {}

        self._obtain("student", "student", {"model": e.student_recipe, "seed": e.seed}, make)

    def _transfer(self) -> None:
        self._learn_from_dreams("transfer")

    def _learn(self, name: str, images: dict[str, Any], make_data: MakeData) -> None:
        self._distil(name, "student", images, make_data)
