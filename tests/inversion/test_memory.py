"""Batches go through the network in as many parts as memory asks for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfkd.inversion import InversionRecipe, inversion_objective
from dfkd.inversion.memory import bytes_per_image, free_bytes, parts_that_fit


def test_what_a_forward_keeps_is_counted():
    width, side = 8, 16
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU(), nn.Flatten(),
        nn.Linear(width * side**2, 10),
    ).eval()  # fmt: skip
    with inversion_objective(network, InversionRecipe()) as objective:
        counted = bytes_per_image(objective, (3, side, side))
    layer = 4 * width * side**2
    # Kept are the input of SiLU and what the statistics of batch norm need; weights that are frozen keep nothing.
    assert 2 * layer <= counted <= 5 * layer


def test_more_pixels_take_as_much_more(teacher):
    with inversion_objective(teacher, InversionRecipe()) as objective:
        small, large = (bytes_per_image(objective, (1, side, side)) for side in (8, 16))
    assert 3.5 < large / small < 4.5


@pytest.mark.parametrize(
    ("images", "per_image", "free", "parts"),
    [(256, 1, 10_000, 1), (256, 10, 5120, 1), (256, 10, 5118, 2), (256, 100, 5120, 16), (3, 10**9, 10, 3),
     (256, 10**9, None, 1)],
)  # fmt: skip
def test_half_of_the_free_memory_is_taken(images, per_image, free, parts):
    assert parts_that_fit(images, per_image, free) == parts


def test_this_machine_has_memory():
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


def test_batches_follow_the_image():
    sizes = [InversionRecipe().fitted((3, side, side)).batch_size for side in (1, 32, 64, 96, 112, 224, 448)]
    assert sizes == [256, 256, 256, 64, 64, 32, 32]
    assert InversionRecipe(batch_size=7).fitted((3, 224, 224)).batch_size == 7


def test_jitter_follows_the_image(teacher):
    assert [InversionRecipe().jitter_at(side, side) for side in (8, 32, 112, 224)] == [2, 2, 7, 14]
    assert InversionRecipe(jitter=0).jitter_at(224, 224) == 0
