"""One-shot global unstructured magnitude pruning (PPR): the smallest weights of the whole network go."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.prune import L1Unstructured

from dfkd.errors import require
from dfkd.pruning.sparsity import prunable_weights


@torch.no_grad()
def prune_by_global_magnitude(model: nn.Module, amount: float) -> None:
    """Set the share `amount` of the convolution and linear weights with the smallest |w| to zero, in place.

    The threshold is one for the whole network, so layers end with different sparsities.

    Args:
        model: changed in place; its keys stay the same.
        amount: share of the prunable weights, in [0, 1).

    Raises:
        ConfigError: `amount` is outside [0, 1).
        ModelError: there is no convolution or linear layer.
    """
    require(_is_share(amount), "pruning.amount", amount, "a number in [0, 1)")
    weights = list(prunable_weights(model).values())
    flat = torch.cat([weight.flatten() for weight in weights])
    keep = L1Unstructured(float(amount)).compute_mask(flat, torch.ones_like(flat)).bool()
    for weight, kept in zip(weights, keep.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(~kept.view_as(weight), 0.0)


def _is_share(amount: object) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount < 1
