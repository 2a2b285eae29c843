"""Class-incremental learning: a copy of the teacher is given new classes, from their images and a memory of the old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dfkd.dreams import DreamDataModule
from dfkd.incremental import ClassIncrementalLearning, IncrementalRecipe, PairedDataModule
from dfkd.models.classifier import extend_classifier
from dfkd.models.freezing import learning
from dfkd.models.input_spec import InputSpec
from dfkd.models.probe import Network
from dfkd.seeding import derive_seed
from dfkd.stages.dreams import all_dreams
from dfkd.stages.networks import load, save
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.data import Stream
from dfkd.training.fit import Workplace, fit


@dataclass(frozen=True, kw_only=True)
class NewClasses(Recipe):
    """How new classes are learned.

    Attributes:
        incremental: the losses and their optimisation.
        spec: the teacher's input and its (old) classes.
    """

    incremental: IncrementalRecipe
    spec: InputSpec


@dataclass(frozen=True)
class Extended:
    """Builds a network with room for new classes behind its old ones."""

    network: Network
    old_classes: int
    new_classes: int

    def __call__(self) -> nn.Module:
        model = self.network.build()
        extend_classifier(model, self.old_classes, self.new_classes, self.network.image_shape)
        return model


def learn_new_classes(recipe: NewClasses, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach a copy of `teacher`, a `network`, the classes of `new`.

    It is reminded of the old ones by `dreams`, or in a control by their real images, `old`; or by neither.
    """
    settings, spec = recipe.incremental, recipe.spec
    old, network = load(inputs["network"], inputs["teacher"]), load(inputs["network"], inputs["teacher"])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "new classes"))
        extend_classifier(network, spec.num_classes, settings.new_classes, spec.image_shape)
    stream = Stream(settings.batch_size, settings.updates, recipe.seed, workplace.options.num_workers)
    memory: Dataset[Any] | None = None
    if "dreams" in inputs:
        memory = DreamDataModule(all_dreams(inputs["dreams"]), stream).training_set()
    elif "old" in inputs:
        memory = inputs["old"].open()
    data = PairedDataModule(Shifted(inputs["new"].open(), spec.num_classes), memory, stream)
    module = ClassIncrementalLearning(network, old, settings, recipe.seed, memory_is_real="old" in inputs)
    with learning(network):
        history = fit(module, data, workplace)
    save(network, workplace.directory)
    return {"history": history}


class Shifted(Dataset[Any]):
    """New classes, numbered behind the old ones."""

    def __init__(self, images: Dataset[Any], by: int) -> None:
        self.images, self.by = images, by

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, int(label) + self.by
