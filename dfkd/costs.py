"""What a run will cost on this machine, measured on a few iterations and updates of its own networks."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule
from dfkd.evaluation.controls import noise_images
from dfkd.evaluation.scores import logits_of
from dfkd.incremental import ClassIncrementalLearning, PairedDataModule
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.classifier import classifier_of, extend_classifier
from dfkd.models.freezing import learning
from dfkd.stages.networks import load
from dfkd.store import Store
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.task import Plan
from dfkd.training.data import Stream
from dfkd.training.fit import Workplace, fit
from dfkd.training.teacher import TeacherTraining

FEW = 2  # iterations or updates of the shorter of two trials, whose difference leaves out what is paid once
MOST = 50  # of the longer one
SECONDS = 2.0  # that the difference should take, so that it can be measured
TRIED = 32  # images that tell how often batches are restarted


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine, with this experiment's networks and settings.

    Attributes:
        batch: to make a batch of dreams.
        update: for the student to learn from a batch once, or for a network to learn from one of new classes beside
            one of dreams.
        teacher_update: for a teacher that is trained here.
        image: for one network to look at an image.
        iterations: of a batch of dreams, restarts among them.
        memory: bytes that the process, or its GPU, held at most.
    """

    batch: float
    update: float
    teacher_update: float = 0.0
    image: float = 0.0
    iterations: int = 0
    memory: int = 0


def known_teacher(e: Experiment, plan: Plan, store: Store) -> nn.Module | None:
    """The teacher with its weights, where they are given or in the store; None where it is still to be trained."""
    product = store.find(plan["teacher"][0].kind, plan["teacher"][0].determined_by)
    if product is not None:
        return load(e.network, product)
    if e.teacher.weights is None:
        return None
    teacher = e.network.build()
    e.teacher.weights.load(teacher)
    return teacher.eval()


def measured(e: Experiment, teacher: nn.Module | None = None) -> Costs:
    """What dreaming and learning cost here.

    Args:
        e: what is to be done.
        teacher: with its weights, where they are known: its dreams tell how often they are restarted. Without them, it
            is measured with random weights and never restarted.
    """
    e = replace(e, options=replace(e.options, devices=1, num_nodes=1))  # starting ranks takes longer than what is timed
    with torch.random.fork_rng():
        batch, iterations = _batch(e, teacher)
        return Costs(batch=batch, update=_update(e), iterations=iterations)


def measured_in_full(e: Experiment, teacher: nn.Module | None) -> Costs:
    """`measured`, and beside it what training a teacher and evaluation cost, and the memory that all of it took."""
    e = replace(e, options=replace(e.options, devices=1, num_nodes=1))
    costs = measured(e, teacher)
    with torch.random.fork_rng():
        trained = _teacher_update(e, e.network.build()) if e.teacher.weights is None else 0.0
        costs = replace(costs, teacher_update=trained, image=_image(e))
    return replace(costs, memory=_peak_memory(e.options.torch_device()))


def _batch(e: Experiment, teacher: nn.Module | None) -> tuple[float, int]:
    network = (teacher or e.network.build()).eval()
    two_sizes = e.inversion.half_resolution_iterations > 0

    def dream(recipe: InversionRecipe) -> int:
        recipe = replace(recipe, num_held_out=0, competition_weight=0.0, feature_history=0)
        with tempfile.TemporaryDirectory() as place:
            workplace = Workplace(Path(place), replace(e.options, compile="never"), name="measure")
            _, history = fill_bank(network, recipe, e.spec, 0, workplace)
        return int(history[-1]["iteration"]) + 1

    def try_out(iterations: int) -> None:
        half = iterations if two_sizes else 0
        size = e.inversion.batch_size
        dream(replace(e.inversion, num_images=size, iterations=iterations, restarts=0, warmup_iterations=0,
                      half_resolution_iterations=half))  # fmt: skip

    fixed, each = _fixed_and_each(try_out, e.inversion.iterations)
    iterations = e.inversion.total_iterations
    if teacher is not None and e.inversion.most_restarts:
        size = min(TRIED, e.inversion.batch_size)
        iterations = dream(replace(e.inversion, num_images=size, batch_size=size))
    return fixed + each / (2 if two_sizes else 1) * iterations, iterations


def _update(e: Experiment) -> float:
    return _new_classes_update(e) if e.task == "class_incremental" else _distillation_update(e)


def _distillation_update(e: Experiment) -> float:
    teacher, student = e.network.build().eval(), e.student.build()
    images = noise_images(e.distillation.batch_size, e.spec.image_shape, 0)

    def learn(updates: int) -> None:
        recipe: DistillationRecipe = replace(
            e.distillation, updates=updates, reconstruct=False, reestimate_batch_norm=False, patience=None
        )
        data = DreamDataModule(images, Stream(recipe.batch_size, updates))
        with tempfile.TemporaryDirectory() as place:
            recover_student(student, teacher, data, recipe, Workplace(Path(place), e.options, name="measure"))

    return _fixed_and_each(learn, MOST)[1]


def _new_classes_update(e: Experiment) -> float:
    spec, settings = e.spec, e.incremental
    old, network = e.network.build().eval(), e.network.build()
    classifier, _ = classifier_of(old, spec.num_classes, spec.image_shape)
    extend_classifier(network, spec.num_classes, settings.new_classes, spec.image_shape)
    images = noise_images(settings.batch_size, spec.image_shape, 0).images
    numbers = torch.arange(len(images))
    new = TensorDataset(images, spec.num_classes + numbers % settings.new_classes)
    memory = TensorDataset(images, numbers % spec.num_classes)

    def learn(updates: int) -> None:
        module = ClassIncrementalLearning(network, old, replace(settings, updates=updates), 0, classifier)
        data = PairedDataModule(new, memory, Stream(settings.batch_size, updates))
        with tempfile.TemporaryDirectory() as place, learning(network):
            fit(module, data, Workplace(Path(place), e.options, name="measure"))

    return _fixed_and_each(learn, MOST)[1]


def _teacher_update(e: Experiment, teacher: nn.Module) -> float:
    def train(updates: int) -> None:
        recipe = replace(e.teacher.training, updates=updates, start=None)
        images = noise_images(recipe.batch_size, e.spec.image_shape, 0)
        data = DreamDataModule(images, Stream(recipe.batch_size, updates))
        with tempfile.TemporaryDirectory() as place, learning(teacher):
            fit(TeacherTraining(teacher, recipe, 0), data, Workplace(Path(place), e.options, name="measure"))

    return _fixed_and_each(train, MOST)[1]


def _image(e: Experiment) -> float:
    network = e.student.build().eval()
    images = noise_images(128, e.spec.image_shape, 0)
    found = [(image, 0) for image in images.images]
    return min(_seconds(lambda: logits_of(network, found, e.options.torch_device())) for _ in range(2)) / len(found)  # type: ignore[arg-type]


def _fixed_and_each(work: Callable[[int], None], most: int) -> tuple[float, float]:
    """Seconds of work that are paid once, and of each of its steps, from a short trial and a longer one."""
    work(1)  # what the first call of all pays is nobody's
    few = _seconds(lambda: work(FEW))
    more_steps = max(FEW + 1, min(most, MOST, FEW + round(SECONDS * FEW / few)))
    more = _seconds(lambda: work(more_steps))
    each = max(more - few, 1e-6) / (more_steps - FEW)
    return max(few - FEW * each, 0.0), each


def _seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
