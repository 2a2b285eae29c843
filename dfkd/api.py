"""The engine in plain calls, for notebooks: `invert`, `prune`, `recover`; and what a run dreamed."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.recover import quantize_on, recover_student, reestimate_on
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ConfigError, did_you_mean, require
from dfkd.evaluation.criterion import distances, nearest, unseen_pictures
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec, count_classes, require_image_shape
from dfkd.models.probe import digest, module_identity
from dfkd.pruning import prune_by_global_magnitude
from dfkd.pruning.sparsity import prunable_weights
from dfkd.quantization import QuantizationRecipe
from dfkd.reporting.run_directory import product_of
from dfkd.stages.dreams import all_dreams, bank_notes
from dfkd.stages.stage import plain
from dfkd.store import Store
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace

log = logging.getLogger("dfkd")


def invert(
    teacher: nn.Module,
    num_images: int = 1024,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: str = "auto",
    earlier: Dreams | None = None,
    **recipe: Any,
) -> Dreams:
    """Dream `num_images` training images from a trained network alone (DeepInversion).

    Args:
        teacher: a classifier with batch norm; left as it was.
        num_images: how many images, with labels balanced over its classes.
        image_shape: (C, H, W) of its input.
        mean: what the input is normalised by, per channel; with `std`, images stay in the range of valid pixels.
        std: the same; both or neither.
        seed: of everything random.
        directory: a store that keeps the dreams, under a key of all that determines them: an interrupted call
            continues, and the same call finds what it made. None keeps none.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        earlier: dreams of the same teacher to start from, with `start="dreams"`.
        recipe: further fields of `InversionRecipe`, for instance `iterations=2000`.

    Returns:
        The dreams, in the teacher's normalised input space.

    Raises:
        ModelError: the teacher has no batch norm, or cannot take such images.
        ConfigError: an option's value cannot work.
        InversionError: the loss was not finite.
    """
    require_batch_norm(teacher)
    spec = _spec_of(teacher, image_shape, mean, std)
    recipe = {"num_held_out": 0, "clip": mean is not None, **recipe}
    if mean is None and recipe["clip"] and not recipe.get("clip_limit"):
        raise ConfigError(
            "clip must be False without mean and std, got True: valid pixels are not known. Or give clip_limit."
        )
    options = {"num_images": num_images, **recipe}
    settings: InversionRecipe = _recipe(InversionRecipe, options).fitted(spec.image_shape)
    seed = _seed(seed)
    trainer = _trainer(accelerator)
    determined_by = {"teacher": module_identity(teacher, spec.image_shape), "spec": plain(spec), "seed": seed}
    if earlier is not None:
        require(settings.start == "dreams", "start", settings.start, '"dreams" with earlier, or leave out earlier')
        determined_by["earlier"] = digest((earlier.images, earlier.labels))

    def make(place: Path) -> dict[str, Any]:
        fill_bank(teacher, settings, spec, seed, Workplace(place, trainer, name="dream"), earlier)
        return bank_notes(settings)

    with tempfile.TemporaryDirectory() as temporary:
        store = Store(Path(directory or temporary))
        return all_dreams(store.obtain("dreams", determined_by | {"inversion": plain(settings)}, make))


def load_dreams(run: str | Path, store: str | Path | None = None) -> Dreams:
    """The dreams of a run that has made them, from the store that it kept them in.

    Args:
        run: the run's directory.
        store: where the products are; None: the `store` of the run's `config.yaml`, as seen from the current folder.

    Returns:
        Training and held-out dreams, in the teacher's normalised input space.

    Raises:
        ConfigError: there is no such run, or its dreams are not in the store.
    """
    return all_dreams(product_of(Path(run), "dream", None if store is None else Path(store)))


def _recipe(kind: type, options: dict[str, Any]) -> Any:
    """The recipe of some options, numbers of numpy's among them (`ConfigError` for one that it does not have)."""
    known = [option.name for option in fields(kind)]
    for name in options:
        if name not in known:
            raise ConfigError(f"{name} is not an option of {kind.__name__}. {did_you_mean(name, known)}".rstrip())
    return kind(**{name: _plain(value) for name, value in options.items()})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _seed(value: Any) -> int:
    seed = _plain(value)
    require(isinstance(seed, int), "seed", value, "a whole number")
    return int(seed)


def _trainer(accelerator: str) -> TrainerOptions:
    options = TrainerOptions(accelerator=accelerator)
    options.torch_device()  # raises where there is none such
    return options


def _spec_of(
    teacher: nn.Module,
    image_shape: Sequence[int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> InputSpec:
    require_image_shape(image_shape)
    shape = image_shape[0], image_shape[1], image_shape[2]
    if (mean is None) != (std is None):
        raise ConfigError("mean and std must be given both or neither: clipping to valid pixels needs both.")
    classes = count_classes(teacher, shape)
    if mean is None or std is None:
        mean, std = [0.0] * shape[0], [1.0] * shape[0]
    means, stds = (tuple(map(_plain, v)) if isinstance(v, Iterable) else v for v in (mean, std))
    return InputSpec(shape, classes, means, stds)  # which refuses what is no list


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
    keep_nearest: bool = True,
    quantization: QuantizationRecipe | None = None,
    **recipe: Any,
) -> list[dict[str, float]]:
    """Bring `student` back towards `teacher`, in place, on dreams; weights that are zero stay zero.

    A training on a few dreams can do harm. So the student as it came, with its batch norm re-estimated alone, and as it
    was trained are compared with the teacher on procedural pictures that none of them learnt from, and the nearest is
    what the student then is (`dfkd.evaluation.criterion`); where that is not the trained one, the log says so.

    Args:
        student: a network pruned by any tool, in the teacher's shape.
        teacher: the network it was pruned from; left as it was.
        dreams: from `invert`.
        seed: of everything random.
        accelerator: `auto`, `cpu`, `gpu` or `mps`.
        keep_nearest: False: the student is the trained one, whatever it is worth.
        quantization: in how many bits the student computes from then on, for instance
            `QuantizationRecipe(weight_bits=4, input_bits=4)`.
        recipe: fields of `DistillationRecipe`, for instance `updates=1000`.

    Returns:
        The history of the training: rows of `update` and the losses; where `dreams` has held-out ones
        (`num_held_out` of `invert`), how far the student is from its teacher on them.

    Raises:
        ConfigError: an option's value cannot work.
        ModelError: a network cannot be recovered, or recovered from; see `dfkd.models.check.check_network`.
        TrainingError: the loss was not finite.
    """
    settings: DistillationRecipe = _recipe(DistillationRecipe, recipe)
    seed, options = _seed(seed), _trainer(accelerator)
    require(isinstance(dreams, Dreams), "dreams", type(dreams).__name__, "those of dfkd.invert or dfkd.load_dreams")
    channels, height, width = dreams.images.shape[1:]
    own, teachers = (count_classes(network, (channels, height, width)) for network in (student, teacher))
    require(own == teachers, "the number of the student's classes", own, f"its teacher's, {teachers}")
    data = DreamDataModule(dreams, Stream(settings.batch_size, settings.updates, seed))
    held_out = data.held_out_set() if dreams.num_held_out else None
    candidates = {"as it came": copy.deepcopy(student)} if keep_nearest and settings.updates else {}
    with tempfile.TemporaryDirectory() as temporary:
        history = recover_student(
            student, teacher, data, settings, Workplace(Path(temporary), options, name="recover"), held_out=held_out,
            quantization=quantization,
        )  # fmt: skip
    student.eval()
    if candidates:
        with torch.random.fork_rng():
            if quantization is not None:
                quantize_on(candidates["as it came"], quantization, data.first_epoch(), options)
            batch_norm = copy.deepcopy(candidates["as it came"])
            reestimate_on(batch_norm, teacher, data.first_epoch(), settings, options)
            candidates |= {"with its batch norm re-estimated alone": batch_norm, "trained": student}
            _keep_nearest(candidates, teacher, dreams, seed, options)
    return history


def _keep_nearest(
    candidates: dict[str, nn.Module], teacher: nn.Module, dreams: Dreams, seed: int, options: TrainerOptions
) -> None:
    """Give the last of the candidates the weights and statistics of the one that is nearest to the teacher."""
    images = dreams.images.float()
    lowest, highest = images.amin((0, 2, 3))[:, None, None], images.amax((0, 2, 3))[:, None, None]
    channels, height, width = images.shape[1:]
    pictures = unseen_pictures((channels, height, width), lowest, highest, seed)
    found = distances(candidates, teacher, pictures, options.torch_device())
    chosen, trained = nearest(found), list(candidates)[-1]
    if chosen != trained:
        candidates[trained].load_state_dict(candidates[chosen].state_dict())
        log.warning(
            "Training left the student farther from its teacher (%.3g of its answers to unseen pictures) than it was "
            "%s (%.3g), which it is again. Raise updates and the number of dreams, or lower learning_rate.",
            found[trained]["distance"], chosen, found[chosen]["distance"],
        )  # fmt: skip
