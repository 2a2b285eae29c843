"""N:M pruning: of every M neighbouring weights along a layer's input at most N stay, as sparse hardware wants it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from dfkd.errors import ModelError, is_whole, require
from dfkd.pruning.sparsity import prunable_weights

log = logging.getLogger(__name__)


@torch.no_grad()
def prune_n_of_m(model: nn.Module, n: int = 2, m: int = 4) -> None:
    """Keep the `n` largest |w| of every `m` neighbouring input channels (Mishra et al. 2021: 2:4), in place.

    Neighbours share output channel and kernel position. Layers whose input channels (per group) are no multiple of
    `m` stay dense, as the hardware wants it, and are named in the log: usually the stem and depthwise convolutions.

    Raises:
        ConfigError: not 0 < n < m.
        ModelError: no layer has a multiple of `m` input channels.
    """
    require(is_whole(n) and is_whole(m) and n < m, "pruning.n", f"{n}:{m}", "from 1 to pruning.m - 1")
    weights = prunable_weights(model)
    dense = [name for name, weight in weights.items() if weight.shape[1] % m]
    if len(dense) == len(weights):
        raise ModelError(f"{type(model).__name__} has no layer with a multiple of {m} input channels for {n}:{m}.")
    if dense:
        log.info("%d:%d pruning leaves %d layers dense (input channels): %s", n, m, len(dense), ", ".join(dense))
    for name, weight in weights.items():
        if name not in dense:
            weight.copy_(_largest(weight, n, m))


def _largest(weight: Tensor, n: int, m: int) -> Tensor:
    groups = weight.unflatten(1, (-1, m))
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(2, groups.abs().topk(n, dim=2).indices, True)
    return torch.where(kept, groups, 0.0).flatten(1, 2)
