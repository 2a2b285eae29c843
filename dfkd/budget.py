"""A budget of seconds: how many dreams and updates a run has time for, from what one of each takes here."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule
from dfkd.errors import ConfigError, require
from dfkd.evaluation.controls import noise_images
from dfkd.inversion.invert import fill_bank
from dfkd.tasks.experiment import Experiment
from dfkd.training.data import Stream
from dfkd.training.fit import Workplace

log = logging.getLogger(__name__)

# The share of dreaming. The runs with ResNet-20 that the README reports spent 8 to 19 % so; shares were not compared.
SHARE = 1 / 6
FEW, MORE = 2, 6  # iterations and updates of the two trials, whose difference leaves out what is paid once
LEAST_UPDATES = 20


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine, with this experiment's networks and settings.

    Attributes:
        batch: to make a batch of dreams.
        update: for the student to learn from a batch once.
    """

    batch: float
    update: float


def measured(e: Experiment) -> Costs:
    """What dreaming and learning cost here, by a few iterations and updates with random weights."""
    teacher = e.network.build().eval()
    student = e.student.build()
    two_sizes = e.inversion.half_resolution_iterations > 0
    images = noise_images(e.distillation.batch_size, e.spec.image_shape, 0)

    def dream(iterations: int) -> None:
        shorter = replace(
            e.inversion, num_images=e.inversion.batch_size, num_held_out=0, competition_weight=0.0,
            iterations=iterations, half_resolution_iterations=iterations if two_sizes else 0, warmup_iterations=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as place:
            fill_bank(teacher, shorter, e.spec, 0, Workplace(Path(place), replace(e.options, compile="never")))

    def learn(updates: int) -> None:
        shorter = replace(e.distillation, updates=updates, reconstruct=False, reestimate_batch_norm=False)
        data = DreamDataModule(images, Stream(shorter.batch_size, updates))
        with tempfile.TemporaryDirectory() as place:
            recover_student(student, teacher, data, replace(shorter, patience=None), Workplace(Path(place), e.options))

    few, more = (_seconds(dream, count) for count in (FEW, MORE))
    sizes = 2 if two_sizes else 1
    per_iteration = max(more - few, 0.0) / (sizes * (MORE - FEW))
    batch = few + per_iteration * (e.inversion.total_iterations - sizes * FEW)
    few, more = (_seconds(learn, count) for count in (FEW, MORE))
    return Costs(batch=batch, update=max(more - few, 1e-6) / (MORE - FEW))


def _seconds(work: Callable[[int], None], count: int) -> float:
    with torch.random.fork_rng():
        start = time.monotonic()
        work(count)
        return time.monotonic() - start


def split(e: Experiment, seconds: float, costs: Costs) -> dict[str, int]:
    """The options `inversion.num_images` and `distillation.updates` of a run that dreams and learns for `seconds`.

    A sixth of the seconds goes to dreaming, the rest to learning. Images come in whole batches, as many as a batch of
    learning needs at least; updates in tens.

    Raises:
        ConfigError: there is not the time for a batch of dreams and a few updates.
    """
    size = e.inversion.batch_size
    fewest = -(-e.distillation.batch_size // size)
    held_out = -(-e.inversion.num_held_out // size)
    batches = max(fewest, int(SHARE * seconds / costs.batch) - held_out)
    left = seconds - (batches + held_out) * costs.batch
    updates = int(left / costs.update / e.rounds)
    if updates < LEAST_UPDATES:
        least = (fewest + held_out) * costs.batch + LEAST_UPDATES * e.rounds * costs.update
        raise ConfigError(
            f"seconds must be {least:.0f} or more for this network on this machine, where a batch of {size} dreams "
            f"takes {costs.batch:.1f} s and an update {costs.update:.2g} s, got {seconds:g}. Raise it, or lower "
            "inversion.batch_size or inversion.num_held_out."
        )
    return {"inversion.num_images": batches * size, "distillation.updates": max(LEAST_UPDATES, updates // 10 * 10)}


def options_within(e: Experiment, seconds: float) -> dict[str, int]:
    """`split` by what was `measured`, and a line in the log that says so."""
    require(seconds > 0, "seconds", seconds, "above 0, or null")
    require(not e.streaming.every, "seconds", seconds, "null where dreams are streamed (streaming.every)")
    require(e.task != "class_incremental", "seconds", seconds, "null with task=class_incremental")
    costs = measured(e)
    options = split(e, seconds, costs)
    log.info(
        "seconds=%g: a batch of %d dreams takes %.1f s here and an update %.2g s, so %s.",
        seconds, e.inversion.batch_size, costs.batch, costs.update,
        " ".join(f"{name}={value}" for name, value in options.items()),
    )  # fmt: skip
    return options
