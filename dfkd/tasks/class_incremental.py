"""Class-incremental learning: teacher -> dream -> learn -> evaluate.

The teacher knows the old classes; `learn` gives a copy of it the new ones, from their real images and from dreams of
the old. Images of old classes are reachable in `teacher` and `evaluate` only: to train it, to score, and for the
joint-training control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from dfkd.dreams import DreamDataModule
from dfkd.errors import ConfigError, require
from dfkd.evaluation.scores import Marks, score
from dfkd.incremental import ClassIncrementalLearning, IncrementalRecipe, PairedDataModule
from dfkd.models.classifier import extend_classifier
from dfkd.models.student_file import save_student
from dfkd.real_data import Purpose, RealImages
from dfkd.seeding import derive_seed
from dfkd.tasks.pipeline import WEIGHTS, Pipeline
from dfkd.training.fit import fit


class ClassIncremental(Pipeline):
    """Teaches a network new classes without the images of those it knows."""

    stages: ClassVar[tuple[str, ...]] = ("teacher", "dream", "learn", "evaluate")
    controls: ClassVar[tuple[str, ...]] = (
        "fine_tuning",
        "learning_without_forgetting",
        "learning_without_forgetting_mc",
        "joint",
    )

    def _check_student(self, teacher: nn.Module) -> None:
        e = self.experiment
        require(e.incremental.new_classes > 0, "incremental.new_classes", e.incremental.new_classes, "2 or more")
        require(e.streaming.every == 0, "streaming.every", e.streaming.every, "0 with task=class_incremental")
        if e.new_data is None:
            raise ConfigError("task=class_incremental learns from images of new classes: choose data@new_data=NAME.")
        extend_classifier(teacher, e.spec.num_classes, e.incremental.new_classes)

    @property
    def _new_images(self) -> RealImages:
        images = self.experiment.new_data
        if images is None:
            raise ConfigError("new_data=none: this step needs images of the new classes.")
        return images

    def _learn(self) -> None:
        def dreams() -> Dataset:
            return DreamDataModule(self.dreams(), 1, 1).training_set()

        self._teach("learn", {"dreams": self.artifacts["dream"].key}, self.experiment.incremental, dreams)

    def _evaluate(self) -> None:
        e = self.experiment
        one_softmax = replace(e.incremental, separate_heads=False)  # of all controls but one, whatever `learn` has
        alone = replace(one_softmax, dream_weight=0.0)
        if "fine_tuning" in e.controls:
            self._teach("fine_tuning", {}, replace(alone, old_weight=0.0), None)
        if "learning_without_forgetting_mc" in e.controls:
            self._teach("learning_without_forgetting_mc", {}, alone, None)
        if "learning_without_forgetting" in e.controls:
            self._teach("learning_without_forgetting", {}, replace(alone, separate_heads=True), None)
        if "joint" in e.controls and e.data is not None:
            images = partial(e.data.open, Purpose.REAL_DATA_CONTROL)
            self._teach("joint", {"real": e.data.fingerprint}, one_softmax, images, memory_is_real=True)

        artifacts: dict[str, Any] = {name: artifact.key for name, artifact in self.artifacts.items()}
        artifacts["data"] = [None if data is None else data.fingerprint for data in (e.data, e.new_data)]
        self._obtain("evaluate", "scores", artifacts, lambda _: {"scores": self._score()})
        self._judge_dreams()

    def _teach(
        self, name: str, memory: dict[str, Any], recipe: IncrementalRecipe, open_images: Callable[[], Dataset] | None,
        memory_is_real: bool = False,
    ) -> None:  # fmt: skip
        """Make the artifact `name`: a copy of the teacher that learned the new classes, reminded by what is opened."""
        e = self.experiment
        key = {
            "teacher": self.artifacts["teacher"].key,
            "memory": memory,
            "new": self._new_images.fingerprint,
            "input": asdict(e.spec),
            "incremental": recipe.identity(),
            "seed": e.seed,
            "precision": e.options.precision,
        }

        def make(directory: Path) -> dict[str, Any]:
            old, network = self.network("teacher"), self.network("teacher")
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(e.seed, "new classes"))
                extend_classifier(network, e.spec.num_classes, recipe.new_classes)
            new = _Shifted(self._new_images.open(Purpose.NEW_CLASSES), e.spec.num_classes)
            images = None if open_images is None else open_images()
            data = PairedDataModule(new, images, recipe.batch_size, recipe.updates, e.seed, e.options.num_workers)
            module = ClassIncrementalLearning(network, old, recipe, e.seed, name, memory_is_real)
            history = fit(module, data, directory, e.options, self.loggers)
            save_student(directory / WEIGHTS, network)
            return {"history": history}

        self._obtain(name, "incremental", key, make)

    def _score(self) -> dict[str, Marks]:
        """Of every network, its accuracy on the test images of old, of new, and of all classes, among all classes."""
        e = self.experiment
        old = None if e.data is None else e.data.open(Purpose.EVALUATION)
        new = _Shifted(self._new_images.open(Purpose.EVALUATION), e.spec.num_classes)
        tests = {"old": old, "new": new, "combined": None if old is None else ConcatDataset([old, new])}
        networks = {name: self.network(name) for name in ("teacher", "learn", *self.controls) if name in self.artifacts}
        return score(networks, self.held_out(), tests, e.spec.num_classes + e.incremental.new_classes, e.options)


class _Shifted(Dataset):
    """New classes, numbered behind the old ones."""

    def __init__(self, images: Dataset, by: int) -> None:
        self.images, self.by = images, by

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, int(label) + self.by
