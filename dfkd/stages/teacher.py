"""The teacher: as its owner trained it, or trained here on real images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.datamodule import RealDataModule
from dfkd.seeding import derive_seed
from dfkd.stages.networks import build, save
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.augmentation import augment
from dfkd.training.averaging import Average
from dfkd.training.data import Stream
from dfkd.training.fit import Workplace, fit
from dfkd.training.teacher import TeacherRecipe, TeacherTraining


@dataclass(frozen=True, kw_only=True)
class Pretrained(Recipe):
    """A teacher whose weights are given: `network` and `weights` are all that determines it."""


@dataclass(frozen=True, kw_only=True)
class Trained(Recipe):
    """A teacher that is trained here.

    Attributes:
        training: how.
        spec: its input and classes.
        statistics_batches: see `TeacherRecipe`.
    """

    training: TeacherRecipe
    spec: InputSpec
    statistics_batches: int | None = None


def load_pretrained(recipe: Pretrained, inputs: Inputs, workplace: Workplace) -> Notes:
    """Load `weights` into `network`."""
    teacher = build(inputs["network"])
    inputs["weights"].load(teacher)
    save(teacher, workplace.directory)
    return {}


def train(recipe: Trained, inputs: Inputs, workplace: Workplace) -> Notes:
    """Train `network` on `images`, from the weights `start` where there are any."""
    training = recipe.training
    teacher = build(inputs["network"], derive_seed(recipe.seed, "teacher"))
    if "start" in inputs:
        inputs["start"].start(teacher, recipe.spec.num_classes)
    stream = Stream(training.batch_size, training.updates, recipe.seed, workplace.options.num_workers)
    data = RealDataModule(inputs["images"].open(), stream)
    averaging = [Average(training.weight_averaging)] if training.weight_averaging else []
    history = fit(TeacherTraining(teacher, training, recipe.seed), data, workplace, averaging)
    if recipe.statistics_batches is not None:
        device = workplace.options.torch_device()
        torch.manual_seed(derive_seed(recipe.seed, "statistics"))
        batches = islice(data.first_epoch(), recipe.statistics_batches)
        whole = (augment(images.to(device), training.crop_padding, training.flip) for images, _ in batches)
        reestimate_batch_norm(teacher.to(device), whole)
    save(teacher, workplace.directory)
    return {"history": history}
