"""Which batches make up a set of dreams: their labels and seeds, independent of the order they are made in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfkd.inversion.recipe import InversionRecipe
from dfkd.seeding import derive_seed


class PlannedBatch(NamedTuple):
    """Batch `index` of a bank: its target labels and the seed of its noise and jitter."""

    index: int
    labels: Tensor
    seed: int


def plan_batches(recipe: InversionRecipe, num_classes: int, seed: int) -> list[PlannedBatch]:
    """The batches of the training dreams, then those of the held-out dreams.

    Each set's labels are balanced: every class comes once before any comes again, in an order drawn from `seed`.
    """
    labels = [
        *balanced_labels(recipe.num_images, num_classes, derive_seed(seed, "labels")).split(recipe.batch_size),
        *balanced_labels(recipe.num_held_out, num_classes, derive_seed(seed, "held-out labels")).split(
            recipe.batch_size
        ),
    ]
    labels = [part for part in labels if len(part)]
    return [PlannedBatch(index, part, derive_seed(seed, "batch", index)) for index, part in enumerate(labels)]


def balanced_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """`count` labels in which the classes' numbers differ by one at most."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(num_classes, generator=generator) for _ in range(-(-count // num_classes))]
    return torch.cat(rounds)[:count] if rounds else torch.empty(0, dtype=torch.long)
