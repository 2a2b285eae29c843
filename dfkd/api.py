"""The engine in three plain calls, for notebooks: `invert`, `prune`, `recover`."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ConfigError, require
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec, count_classes
from dfkd.pruning import prune_by_global_magnitude
from dfkd.pruning.sparsity import prunable_weights
from dfkd.training.fit import TrainerOptions


def invert(
    teacher: nn.Module,
    num_images: int = 1024,
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: str = "auto",
    **recipe: Any,
) -> Dreams:
    """Dream `num_images` training images from a trained network alone (DeepInversion).

    Args:
        teacher: a classifier with batch norm; left as it was.
        num_images: how many images, with labels balanced over its classes.
        image_shape: (C, H, W) of its input.
        mean, std: the input's normalisation, per channel; with both given, images stay in the range of valid pixels.
        seed: of everything random.
        directory: where finished batches are kept, so that an interrupted call continues; None keeps none.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        recipe: further fields of `InversionRecipe`, for instance `iterations=2000`.

    Returns:
        The dreams, in the teacher's normalised input space.

    Raises:
        ModelError: the teacher has no batch norm, or cannot take such images.
        ConfigError: an option's value cannot work.
        InversionError: the loss was not finite.
    """
    require_batch_norm(teacher)
    if (mean is None) != (std is None):
        raise ConfigError("mean and std must be given both or neither: clipping to valid pixels needs both.")
    recipe = {"num_held_out": 0, "clip": mean is not None, **recipe}
    if mean is None and recipe["clip"] and not recipe.get("clip_limit"):
        raise ConfigError(
            "clip must be False without mean and std, got True: valid pixels are not known. Or give clip_limit."
        )
    classes = count_classes(teacher, image_shape)
    channels = image_shape[0]
    spec = InputSpec(
        image_shape,
        classes,
        tuple(mean) if mean is not None else (0.0,) * channels,
        tuple(std) if std is not None else (1.0,) * channels,
    )
    settings = InversionRecipe(num_images=num_images, **recipe)
    options = TrainerOptions(accelerator=accelerator)
    with tempfile.TemporaryDirectory() as temporary:
        return fill_bank(teacher, settings, spec, seed, Path(directory or temporary), options)[0]


def prune(teacher: nn.Module, amount: float = 0.75) -> nn.Module:
    """A copy of `teacher` without the share `amount` of its convolution and linear weights with the smallest |w|.

    Raises:
        ConfigError: `amount` is outside [0, 1).
        ModelError: it has no such weights, or computes them (`weight_norm`, masks).
    """
    prunable_weights(teacher)  # before the copy, which some of the layers that are refused do not allow
    student = copy.deepcopy(teacher)
    prune_by_global_magnitude(student, amount)
    return student


def recover(
    student: nn.Module,
    teacher: nn.Module,
    dreams: Dreams,
    *,
    seed: int = 0,
    accelerator: str = "auto",
    **recipe: Any,
) -> list[dict[str, float]]:
    """Bring `student` back towards `teacher`, in place, on dreams; weights that are zero stay zero.

    Args:
        student: a network pruned by any tool, in the teacher's shape.
        teacher: the network it was pruned from; left as it was.
        dreams: from `invert`.
        seed: of everything random.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        recipe: fields of `DistillationRecipe`, for instance `updates=1000`.

    Returns:
        The course of the training: rows of `update` and the losses; where `dreams` has held-out ones
        (`num_held_out` of `invert`), what the student makes of them.

    Raises:
        ConfigError: an option's value cannot work.
        ModelError: a network cannot be recovered, or recovered from; see `dfkd.models.check.check_network`.
        TrainingError: the loss was not finite.
    """
    settings = DistillationRecipe(**recipe)
    channels, height, width = dreams.images.shape[1:]
    own, teachers = (count_classes(network, (channels, height, width)) for network in (student, teacher))
    require(own == teachers, "the number of the student's classes", own, f"its teacher's, {teachers}")
    data = DreamDataModule(dreams, settings.batch_size, settings.updates, seed)
    with tempfile.TemporaryDirectory() as temporary:
        history = recover_student(
            student, teacher, data, settings, seed, Path(temporary), TrainerOptions(accelerator=accelerator),
            held_out=data.held_out_set() if dreams.held_out else None,
        )  # fmt: skip
    student.eval()
    return history
