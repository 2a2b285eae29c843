"""Recovery of a student: batch-norm re-estimation, then distillation, on whatever images a data module streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.distillation.module import DistillationModule
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.training.data import SeededDataModule
from dfkd.training.fit import TrainerOptions, fit


def recover_student(
    student: nn.Module,
    teacher: nn.Module,
    data: SeededDataModule,
    recipe: DistillationRecipe,
    seed: int,
    directory: Path,
    options: TrainerOptions,
    loggers: Sequence[Logger] = (),
    stage: str = "recover",
) -> list[dict[str, float]]:
    """Bring `student` back towards `teacher`, in place; its zero weights stay zero.

    Args:
        student: a pruned network in the teacher's shape, or any network with as many classes.
        teacher: what it learns from; left as it was.
        data: streams `(images, labels)`; the labels are not used.
        recipe: what to do.
        seed: of the order of images and of their augmentation.
        directory: where the checkpoint to continue from is kept.
        options: where to compute.
        loggers: told the course of the training.
        stage: name of this recovery in logs.

    Returns:
        The course of the training: rows of `update` and the losses.
    """
    module = DistillationModule(student, teacher, recipe, seed, stage)
    with torch.random.fork_rng():
        if recipe.reestimate_batch_norm:
            reestimate_on(student, data.one_pass(), options)
        return fit(module, data, directory, options, loggers)


def reestimate_on(student: nn.Module, loader: DataLoader, options: TrainerOptions) -> None:
    """`reestimate_batch_norm` over one pass of `loader`, on the options' device."""
    home, device = next(student.parameters()).device, options.torch_device()

    def images() -> Iterator[Tensor]:
        for batch in loader:
            yield batch[0].to(device).float()

    reestimate_batch_norm(student.to(device), images())
    student.to(home)
