"""Which batches make up a set of dreams: their labels and seeds, independent of the order they are made in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfkd.inversion.recipe import InversionRecipe
from dfkd.seeding import derive_seed


class PlannedBatch(NamedTuple):
    """Batch `number` of a bank: its target labels and the seed of its noise and jitter."""

    number: int
    labels: Tensor
    seed: int


def plan_batches(recipe: InversionRecipe, num_classes: int, seed: int) -> list[PlannedBatch]:
    """The batches of the training dreams, then those of the held-out dreams.

    Each set's labels are balanced: every class comes once before any comes again, in an order drawn from `seed`.
    """
    sets = {"labels": recipe.num_images, "held-out labels": recipe.num_held_out}
    parts = [
        part
        for name, count in sets.items()
        if count
        for part in balanced_labels(count, num_classes, derive_seed(seed, name)).split(recipe.batch_size)
    ]
    return [PlannedBatch(number, part, derive_seed(seed, "batch", number)) for number, part in enumerate(parts)]


def balanced_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """`count` labels in which the classes' numbers differ by one at most."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(num_classes, generator=generator) for _ in range(-(-count // num_classes))]
    return torch.cat(rounds)[:count]
