"""How far a student is from its teacher, told without a real image: what a student is chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
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
    """The mean KL(teacher || network) in nats over images, with its 95 % interval, by name of the network.

    Args:
        networks: left as they were.
        teacher: what they are compared with.
        images: (N, C, H, W), in normalised input space.
        device: where to compute.

    Returns:
        `kl`, `low` and `high` of each. A network that gives no finite numbers is infinitely far away.
    """
    pictures_only = TensorDataset(images, torch.zeros(len(images)))
    expected = logits_of(teacher, pictures_only, device)[0].log_softmax(1)
    found = {}
    for name, network in networks.items():
        predicted = logits_of(network, pictures_only, device)[0].log_softmax(1)
        each = F.kl_div(predicted, expected, reduction="none", log_target=True).sum(1).double()
        mean, error = each.mean().item(), SPREAD * each.std().item() / len(each) ** 0.5
        finite = mean == mean
        found[name] = {"kl": mean, "low": mean - error, "high": mean + error} if finite else _FAR
    return found


_FAR = dict.fromkeys(("kl", "low", "high"), 1e9)  # JSON has no infinity


def nearest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The name with the smallest distance; of equals, the last."""
    return min(reversed(list(found)), key=lambda name: found[name]["kl"])
