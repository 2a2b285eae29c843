"""How far a student is from its teacher, told without a real image: what a student is chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dfkd.evaluation.scores import logits_of
from dfkd.procedural import FAMILIES, pictures
from dfkd.seeding import derive_seed

PICTURES = 512  # of all families in turn
SPREAD = 1.96  # standard errors on both sides of a mean: 95 %


def unseen_pictures(image_shape: tuple[int, int, int], lowest: Tensor, highest: Tensor, seed: int) -> Tensor:
    """Procedural pictures of all families, (N, C, H, W) in normalised input space, that no student learns from.

    A student that learns from dreams comes to agree with its teacher on dreams, more than on real images. Pictures are
    of neither, so that what is gained on them is not learnt by heart.

    Args:
        image_shape: (C, H, W).
        lowest, highest: what black and white are in each channel, (C, 1, 1).
        seed: of the pictures.
    """
    pixels = pictures(PICTURES, image_shape, derive_seed(seed, "criterion"), sorted(FAMILIES))
    return torch.lerp(lowest, highest, pixels)


def distances(
    networks: Mapping[str, nn.Module], teacher: nn.Module, images: Tensor, device: torch.device
) -> dict[str, dict[str, float]]:
    """How differently networks and their teacher answer: the total variation of their predictions, by name.

    d = mean over images of sum_k |p_teacher(k) - p_network(k)| / 2, in [0, 1]: the share of answers that must differ
    where both answer by their probabilities. It is bounded, so that a few answers that are sure and wrong weigh no more
    than as many that are wrong; under a KL divergence they made a student of half its teacher's accuracy look worse
    than one that answers everything alike.

    Args:
        networks: left as they were.
        teacher: what they are compared with.
        images: (N, C, H, W), in normalised input space.
        device: where to compute.

    Returns:
        Of each its `distance`, and `low` and `high`, its 95 % interval over images. A network that gives no finite
        numbers is as far as can be.
    """
    pictures_only = TensorDataset(images, torch.zeros(len(images)))
    expected = logits_of(teacher, pictures_only, device)[0].double().softmax(1)
    found = {}
    for name, network in networks.items():
        predicted = logits_of(network, pictures_only, device)[0].double().softmax(1)
        each = ((predicted - expected).abs().sum(1) / 2).nan_to_num(nan=1.0)
        mean, error = each.mean().item(), SPREAD * each.std().item() / len(each) ** 0.5
        found[name] = {"distance": mean, "low": mean - error, "high": mean + error}
    return found


def nearest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The name with the smallest distance; of equals, the last."""
    return min(reversed(list(found)), key=lambda name: found[name]["distance"])
