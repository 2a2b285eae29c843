"""How near members and others are to dreams, by one distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.privacy.membership import auc, bootstrap, effective_count, nearest, true_positives
from dfkd.reporting.percent import interval
from dfkd.seeding import derive_seed

View = Callable[[Tensor], Tensor]  # pixels (N, C, H, W) in [0, 1] as what distances are taken of, (N, D)
COARSE = 8  # pixels a side
LEAST = 1e-6  # distance, below which a dream is a copy
ENOUGH = 100  # others, with fewer of which 1 % of them is none


def standardised(pixels: Tensor) -> Tensor:
    """Images (N, C, H, W) as vectors (N, D) of mean zero and length one, so that brightness and contrast do not count.

    The squared distance of two is 2 - 2 times their correlation.
    """
    flat = pixels.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def coarse(pixels: Tensor) -> Tensor:
    """Images (N, C, H, W) averaged to `COARSE` by `COARSE` pixels: dreams may hold an image without its fine detail."""
    return F.adaptive_avg_pool2d(pixels, COARSE)


@dataclass(frozen=True)
class Pools:
    """The pictures of an audit, each (N, C, H, W), pixels in [0, 1].

    Attributes:
        members: training images.
        others: test images, in the same shares of classes.
        dreams: all of the run's.
        control: procedural pictures, as many as dreams.
    """

    members: Tensor
    others: Tensor
    dreams: Tensor
    control: Tensor


@dataclass(frozen=True)
class Comparison:
    """What one distance says.

    Attributes:
        distances: of each real image to the nearest dream, members first (N + M,).
        places: of that dream (N + M,).
        members: scores of the members (N,), high where a dream is near.
        others: the same of the others (M,).
        found: in numbers, see `compare`.
    """

    distances: Tensor
    places: Tensor
    members: Tensor
    others: Tensor
    found: dict[str, Any]


def compare(pools: Pools, view: View, seed: int) -> Comparison:
    """Whether members are nearer to dreams than others are, by the distance in a view.

    The score of an image x is log(r(x) / d(x)), where d is its distance to the nearest dream and r that to the nearest
    picture of the control, which knows neither kind: some images are near to anything, and that says nothing about
    membership.

    Returns:
        In `found`: `auc` of the score, its bootstrap `interval` and `true_positives` at 1 % false ones (None with fewer
        than a hundred others); `distance_auc` and `control_auc`, those of -d and of -r alone; `dreams_by_members`, the
        share of dreams whose nearest real image is a member, with its `interval` and what is `expected`, the share of
        members among the real images.
    """
    members = len(pools.members)
    real = view(torch.cat([pools.members, pools.others]))
    distances, places, closest = nearest(real, _both_ways(view, pools.dreams))
    expected = nearest(real, _both_ways(view, pools.control))[0]
    scores = expected.clamp(min=LEAST).log() - distances.clamp(min=LEAST).log()
    parts = scores[:members].cpu(), scores[members:].cpu()
    share = (closest < members).double().mean().item()
    found = {
        "auc": auc(*parts),
        "interval": bootstrap(auc, *parts, derive_seed(seed, "bootstrap")),
        "true_positives": true_positives(*parts) if len(parts[1]) >= ENOUGH else None,
        "distance_auc": auc(-distances[:members], -distances[members:]),
        "control_auc": auc(-expected[:members], -expected[members:]),
        "dreams_by_members": {
            "share": share,
            "interval": interval(share, effective_count(closest)),
            "expected": members / len(real),
        },
    }
    return Comparison(distances.cpu(), places.cpu(), *parts, found)


def _both_ways(view: View, pictures: Tensor) -> list[Tensor]:
    """Pictures as they are and mirrored: a network that learned from mirrored images may remember either."""
    return [view(pictures), view(pictures.flip(3))]
