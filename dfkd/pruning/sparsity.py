"""Sparsity of the prunable weights, those of convolutions and linear layers, and holding it through a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dfkd.errors import ModelError
from dfkd.models.layers import weighted_layers


@dataclass(frozen=True)
class LayerSparsity:
    """How many of a layer's weights are exactly zero."""

    layer: str
    shape: tuple[int, ...]
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.zeros / self.weights


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolutions and linear layers by module path. Batch norm, biases and everything else stay dense.

    A weight that several layers share is there once.

    Raises:
        ModelError: there is none, or a layer computes with another weight than its parameter (`weighted_layers`).
    """
    weights = {name: cast(nn.Parameter, layer.weight) for name, layer in weighted_layers(model).items()}
    if not weights:
        raise ModelError(f"{type(model).__name__} has no convolution or linear layer to prune.")
    return weights


def layer_sparsity(model: nn.Module) -> list[LayerSparsity]:
    """Sparsity of every prunable layer, in the model's order."""
    return [
        LayerSparsity(name, tuple(weight.shape), weight.numel(), int((weight == 0).sum()))
        for name, weight in prunable_weights(model).items()
    ]


def sparsity(model: nn.Module) -> float:
    """Share of all prunable weights that are exactly zero."""
    layers = layer_sparsity(model)
    return sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)


def nonzero_weights(model: nn.Module) -> int:
    """Number of prunable weights that are not zero."""
    return sum(int(weight.count_nonzero()) for weight in prunable_weights(model).values())


class SparsityMask:
    """Keeps the weights that are zero now at zero: call it after every optimiser step.

    The mask is read from the weights themselves, so a student that was pruned by any tool can be recovered, and the
    student's keys stay plain.
    """

    def __init__(self, model: nn.Module) -> None:
        self.masks: list[tuple[Tensor, Tensor]] = [
            (weight, weight.detach() == 0) for weight in prunable_weights(model).values()
        ]

    @torch.no_grad()
    def __call__(self, *_: object) -> None:
        for weight, zero in self.masks:
            weight.masked_fill_(zero.to(weight.device), 0.0)
