"""Recovery of a student on whatever images a data module streams.

Reconstruction, batch-norm re-estimation and distillation, each where the recipe asks for it; and statistics for an
average of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.distillation.held_out import HeldOutChecks
from dfkd.distillation.module import DistillationModule
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.reconstruction import reconstruct
from dfkd.errors import ConfigError
from dfkd.models.freezing import learning
from dfkd.quantization.grid import LatentWeights
from dfkd.quantization.quantize import CALIBRATION, quantize
from dfkd.quantization.recipe import QuantizationRecipe
from dfkd.training.averaging import Average
from dfkd.training.data import SeededDataModule
from dfkd.training.fit import TrainerOptions, Workplace, fit

RECONSTRUCTION_IMAGES = 512  # every layer sees them all, each at many places


def recover_student(
    student: nn.Module,
    teacher: nn.Module,
    data: SeededDataModule,
    recipe: DistillationRecipe,
    workplace: Workplace,
    prune: Callable[[nn.Module, float], None] | None = None,
    held_out: Dataset[Any] | None = None,
    quantization: QuantizationRecipe | None = None,
) -> list[dict[str, float]]:
    """Bring `student` back towards `teacher`, in place; its zero weights stay zero.

    Args:
        student: a pruned network in the teacher's shape, or any network with as many classes; with `prune`, the one
            to be pruned.
        teacher: what it learns from; left as it was.
        data: streams `(images, labels)`; the labels are not used. Its seed is also that of the augmentation.
        recipe: what to do.
        workplace: where the checkpoint to continue from is kept, where to compute, and who is told the curves.
        prune: prunes a network in place to a share of the final amount; the student is then pruned as it learns.
        held_out: held-out dreams, (image, label), on which student and teacher are compared; None: they are not.
        quantization: in how many bits the student computes from then on; it then learns so. None: as it is.

    Returns:
        The history of the training: rows of `update`, the losses and what `HeldOutChecks` adds.

    Raises:
        ConfigError: the recipe has patience, but there are no held-out dreams.
        TrainingError: the loss was not finite.
    """
    if recipe.patience is not None and held_out is None:
        raise ConfigError(
            f"distillation.patience is {recipe.patience}, but there are no held-out dreams to choose the student by. "
            "Make some (num_held_out of the inversion), or set it to null."
        )
    options = workplace.options
    with torch.random.fork_rng():
        if recipe.reconstruct:
            reconstruct_on(student, teacher, data.first_epoch(), options)
        latent = None
        if quantization is not None:
            latent = quantize_on(student, quantization, data.first_epoch(), options)
        if recipe.reestimate_batch_norm:
            reestimate_on(student, teacher, data.first_epoch(), recipe, options)
        if not recipe.updates:
            return []
        module = DistillationModule(student, teacher, recipe, data.stream.seed, prune, latent)
        callbacks: list[Callback] = []
        if recipe.weight_averaging:
            callbacks.append(Average(recipe.weight_averaging))
        if held_out is not None:
            callbacks.append(HeldOutChecks(held_out, recipe.patience, module.pruned_from))
        with learning(student):
            history = fit(module, data, workplace, callbacks)
        if recipe.reestimates_average:
            reestimate_on(student, teacher, data.first_epoch(), recipe, options)
        return history


def reconstruct_on(student: nn.Module, teacher: nn.Module, loader: DataLoader[Any], options: TrainerOptions) -> None:
    """`reconstruct` from the first `RECONSTRUCTION_IMAGES` of `loader`, on the options' device."""
    with _on_device(options, student, teacher):
        reconstruct(student, teacher, _first(RECONSTRUCTION_IMAGES, loader, options))


def quantize_on(
    student: nn.Module, recipe: QuantizationRecipe, loader: DataLoader[Any], options: TrainerOptions
) -> LatentWeights:
    """`quantize`, its ranges from the first `CALIBRATION` images of `loader`, on the options' device."""
    with _on_device(options, student):
        latent = quantize(student, recipe, torch.cat(_first(CALIBRATION, loader, options)))
    return latent.cpu()


def reestimate_on(
    student: nn.Module, teacher: nn.Module, loader: DataLoader[Any], recipe: DistillationRecipe, options: TrainerOptions
) -> None:
    """`reestimate_batch_norm` over one epoch of `loader`, on the options' device; aligned where the recipe is."""
    with _on_device(options, student, teacher):
        aligned_with = teacher if recipe.batch_norm == "aligned" else None
        reestimate_batch_norm(student, _images(loader, options), aligned_with)


@contextmanager
def _on_device(options: TrainerOptions, *models: nn.Module) -> Iterator[None]:
    homes = [next(model.parameters()).device for model in models]
    for model in models:
        model.to(options.torch_device())
    try:
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.to(home)


def _first(count: int, loader: DataLoader[Any], options: TrainerOptions) -> list[Tensor]:
    """Batches of the first `count` images of `loader`."""
    batches: list[Tensor] = []
    for images in _images(loader, options):
        batches.append(images)
        if sum(map(len, batches)) >= count:
            break
    return batches


def _images(loader: DataLoader[Any], options: TrainerOptions) -> Iterator[Tensor]:
    for batch in loader:
        yield batch[0].to(options.torch_device()).float()
