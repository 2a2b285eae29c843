"""A layer's mean and variance over several batches, parts of a batch, or uses in one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean and biased variance per channel, each (C,)


def pooled(parts: Sequence[Statistics], shares: Sequence[float]) -> Statistics:
    """Mean and variance of a whole whose parts make up `shares` of it."""
    weighted = list(zip(parts, shares, strict=True))
    mean = torch.stack([share * mean for (mean, _), share in weighted]).sum(0)
    spread = [share * (variance + (part_mean - mean).square()) for (part_mean, variance), share in weighted]
    return mean, torch.stack(spread).sum(0)


def averaged(uses: Sequence[Statistics]) -> Statistics:
    """The mean of a layer's means and of its variances over its uses in one forward."""
    if len(uses) == 1:
        return uses[0]
    means, variances = zip(*uses, strict=True)
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)
