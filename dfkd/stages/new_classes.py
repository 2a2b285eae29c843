"""Class-incremental learning: a copy of the teacher is given new classes, from their images and a memory of the old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from dfkd.incremental import ClassifierTuning, ClassIncrementalLearning, IncrementalRecipe, PairedDataModule
from dfkd.models.classifier import classifier_of, extend_classifier
from dfkd.models.freezing import learning, requiring_grad
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
        incremental: the losses and their optimisation; one step.
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
    classifier, _ = classifier_of(old, spec.num_classes, spec.image_shape)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "new classes"))
        extend_classifier(network, spec.num_classes, settings.new_classes, spec.image_shape)
    module = ClassIncrementalLearning(network, old, settings, recipe.seed, classifier, memory_is_real="old" in inputs)
    with learning(network):
        history = fit(module, paired_data(recipe, inputs, workplace), workplace)
    save(network, workplace.directory)
    return {"history": history}


def tune_classifier(recipe: NewClasses, inputs: Inputs, workplace: Workplace) -> Notes:
    """Train the classifier of a copy of `backbone`, an `extended` network, on the images it learned from."""
    settings, spec = recipe.incremental, recipe.spec
    network = load(inputs["extended"], inputs["backbone"])
    name, classifier = classifier_of(network, spec.num_classes + settings.new_classes, spec.image_shape)
    module = ClassifierTuning(network, settings, recipe.seed, name)
    with requiring_grad(False, network), requiring_grad(True, classifier):
        history = fit(module, paired_data(recipe, inputs, workplace), workplace)
    save(network, workplace.directory)
    return {"history": history}


def paired_data(recipe: NewClasses, inputs: Inputs, workplace: Workplace) -> PairedDataModule:
    """The images of `new` classes beside `dreams`, under what their network sees in them, or beside images of `old`."""
    settings = recipe.incremental
    stream = Stream(settings.batch_size, settings.updates, recipe.seed, workplace.options.num_workers)
    memory: Dataset[Any] | None = None
    if "dreams" in inputs:
        dreams = all_dreams(inputs["dreams"]).training
        memory = TensorDataset(dreams.images, dreams.predictions)
    elif "old" in inputs:
        memory = inputs["old"].open()
    return PairedDataModule(inputs["new"].open(), memory, stream)
