"""One-shot unstructured pruning: which single weights go, anywhere in the convolutions and linear layers.

Every function sets the share `amount` of the prunable weights to exactly zero, in place; the network's keys and shapes
stay. `ConfigError` where `amount` is outside [0, 1), `ModelError` where there is no convolution or linear layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured

from dfkd.errors import is_number, require
from dfkd.pruning.sparsity import prunable_weights
from dfkd.seeding import derive_seed


def prune_by_global_magnitude(model: nn.Module, amount: float) -> None:
    """Remove the smallest |w| of the whole network (PPR): one threshold, so layers end with different sparsities."""
    _remove_lowest(model, amount, torch.abs)


def prune_by_layer_magnitude(model: nn.Module, amount: float) -> None:
    """Remove the smallest |w| of each layer: every layer ends with the same sparsity."""
    require_share(amount)
    for weight in prunable_weights(model).values():
        _remove(weight, ~_highest(weight.detach().abs(), amount))


def prune_by_layer_adaptive_magnitude(model: nn.Module, amount: float) -> None:
    """Remove the weights with the lowest layer-adaptive magnitude (LAMP, Lee et al. 2021) of the whole network.

    A weight's score is w^2 over the sum of all w'^2 in its layer with |w'| >= |w|: what its removal would distort,
    relative to what is still there. Unlike plain magnitude it never empties a layer of small weights.
    """
    _remove_lowest(model, amount, _layer_adaptive_magnitude)


def prune_at_random(model: nn.Module, amount: float, seed: int = 0) -> None:
    """Remove weights of the whole network at random: what any criterion must beat."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "random pruning"))

    def chance(weight: Tensor) -> Tensor:
        return torch.rand(weight.shape, generator=generator) * (weight != 0)  # what is gone already counts

    _remove_lowest(model, amount, chance)


def _layer_adaptive_magnitude(weight: Tensor) -> Tensor:
    squares, order = weight.double().square().flatten().sort()
    still_there = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / still_there.clamp_min(torch.finfo(torch.double).tiny)
    return scores.view_as(weight)


@torch.no_grad()
def _remove_lowest(model: nn.Module, amount: float, score: Callable[[Tensor], Tensor]) -> None:
    require_share(amount)
    weights = list(prunable_weights(model).values())
    keep = _highest(torch.cat([score(weight.detach().cpu()).flatten() for weight in weights]), amount)
    for weight, kept in zip(weights, keep.split([weight.numel() for weight in weights]), strict=True):
        _remove(weight, ~kept)


def _highest(scores: Tensor, amount: float) -> Tensor:
    mask: Tensor = L1Unstructured(float(amount)).compute_mask(scores, torch.ones_like(scores))
    return mask.bool()


@torch.no_grad()
def _remove(weight: nn.Parameter, gone: Tensor) -> None:
    weight.masked_fill_(gone.view_as(weight).to(weight.device), 0.0)


def require_share(amount: object) -> None:
    require(is_number(amount) and 0 <= amount < 1, "pruning.amount", amount, "a number in [0, 1)")  # type: ignore[operator]


def keep_all(model: nn.Module) -> None:
    """Remove nothing, where a student is to be quantised alone."""
    prunable_weights(model)
