"""How well a score tells members, the images that a network learned from, from others of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FALSE_POSITIVES = 0.01  # share, at which true positives are counted
REPEATS = 1000  # of the bootstrap
AT_ONCE = 1000  # rows of a matrix of distances

Statistic = Callable[[Tensor, Tensor], float]


def nearest(images: Tensor, dreams: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Who is nearest to whom by the Euclidean distance.

    Args:
        images: what describes each of N images, (N, D).
        dreams: the same of each of M dreams, (M, D), in several forms (as they are, and mirrored): the nearest counts.

    Returns:
        The distance of each image to its nearest dream (N,), the place of that dream (N,), and the place of the image
        that is nearest to each dream (M,).
    """
    distances, places = [], []
    closest = torch.full((len(dreams[0]),), torch.inf, device=images.device)
    image = torch.zeros(len(dreams[0]), dtype=torch.long, device=images.device)
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        matrix = torch.stack([torch.cdist(part, form) for form in dreams]).amin(0)
        distance, place = matrix.min(1)
        distances.append(distance)
        places.append(place)
        to_part, of_part = matrix.min(0)
        image = torch.where(to_part < closest, of_part + start, image)
        closest = torch.minimum(closest, to_part)
    return torch.cat(distances), torch.cat(places), image


def auc(members: Tensor, others: Tensor) -> float:
    """The area under the ROC curve: the probability that a member's score is above another's, ties counting half.

    It is the Mann-Whitney statistic over the number of pairs (Mann and Whitney 1947): 0.5 where scores tell nothing.

    Args:
        members: scores (N,), high where membership is likely.
        others: the same of images that are no members (M,).
    """
    ordered = others.sort().values
    below, up_to = (torch.searchsorted(ordered, members.contiguous(), right=right) for right in (False, True))
    return ((below + up_to).double() / (2 * len(others))).mean().item()


def true_positives(members: Tensor, others: Tensor) -> float:
    """Share of the members whose score is above those of all but 1 % of the others (Carlini et al. 2022)."""
    allowed = int(FALSE_POSITIVES * len(others))
    return (members > others.sort(descending=True).values[allowed]).double().mean().item()


def bootstrap(statistic: Statistic, members: Tensor, others: Tensor, seed: int) -> tuple[float, float]:
    """The 95 % interval of a statistic: percentiles over resampled members and others (Efron 1979)."""
    generator = torch.Generator().manual_seed(seed)

    def resampled(scores: Tensor) -> Tensor:
        return scores[torch.randint(len(scores), (len(scores),), generator=generator)]

    values = torch.tensor([statistic(resampled(members), resampled(others)) for _ in range(REPEATS)])
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def effective_count(places: Tensor) -> float:
    """How many independent draws the share of something among `places` (N,) is worth, where many are the same.

    Each distinct place counts once, weighted by how often it occurs: (sum w)^2 / sum w^2 (Kish 1965).
    """
    weights = places.unique(return_counts=True)[1].double()
    return float(weights.sum() ** 2 / weights.square().sum())
