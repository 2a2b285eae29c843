"""Weights on a grid, and how they learn there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfkd.models.layers import WeightedLayer
from dfkd.quantization.layer import LayerQuantizer, channel_axis, quantized_layers

TRIED = 15  # largest values of a grid, as shares of the largest weight
REFINEMENTS = 3


def best_scale(weight: Tensor, levels: int) -> Tensor:
    """The scales (C,) that leave rows (C, N) the smallest squared error on a grid of integers in [-levels, levels]."""
    largest = weight.abs().amax(1)
    best = torch.where(largest > 0, largest, 1.0) / levels
    error = torch.full_like(best, torch.inf)
    for share in torch.linspace(0.3, 1, TRIED).tolist():
        scale = torch.where(largest > 0, largest, 1.0) * share / levels
        for _ in range(REFINEMENTS):
            scale = refined_scale(weight, scale, levels)
        distance = (on_grid(weight, scale, levels) - weight).square().sum(1)
        best, error = torch.where(distance < error, scale, best), torch.minimum(distance, error)
    return best


def refined_scale(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """The scales (C,) that fit rows (C, N) best with the integers that `scale` gives: sum(w q) / sum(q^2)."""
    integers = rounded(weight, scale, levels)
    squares = integers.square().sum(1)
    return torch.where(squares > 0, (weight * integers).sum(1) / squares.clamp_min(1), scale)


def rounded(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """The integers of rows (C, N) on grids of `scale` (C,)."""
    return (weight / scale[:, None]).round().clamp(-levels, levels)


def on_grid(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Rows (C, N), each rounded to its grid."""
    return rounded(weight, scale, levels) * scale[:, None]


def rows(layer: WeightedLayer, weight: Tensor) -> Tensor:
    """A layer's weight as one row for each output channel, (C, N)."""
    return weight.transpose(0, channel_axis(layer)).flatten(1)


def integers_of(layer: WeightedLayer, quantizer: LayerQuantizer) -> Tensor:
    """The weight of a quantised layer in units of its scales, int8, in the weight's own shape."""
    found = rounded(rows(layer, layer.weight.detach()), quantizer.weight_scale, quantizer.weight_levels)
    return _shaped(layer, found).to(torch.int8)


def from_integers(layer: WeightedLayer, scale: Tensor, integers: Tensor) -> Tensor:
    """The weight that `integers_of` was taken from, to the bit; `scale` (C,) is that of its grid."""
    return _shaped(layer, rows(layer, integers).to(scale.dtype) * scale[:, None])


def _shaped(layer: WeightedLayer, values: Tensor) -> Tensor:
    axis = channel_axis(layer)
    shape = list(layer.weight.shape)
    shape[0], shape[axis] = shape[axis], shape[0]
    return values.view(shape).transpose(0, axis).contiguous()


class LatentWeights(nn.Module):
    """The weights in full precision that stand behind those on the grid while these learn (Courbariaux et al. 2015).

    A network's own weights are on their grid whenever it computes. The optimiser's step is taken by the latent ones,
    with the gradient of those on the grid; then these follow, their scales refined by least squares. The latent weights
    are buffers of this module, so that they are in its checkpoints.

    Args:
        model: a network with quantised layers.
        weights: what their weights were before they were put on the grid, by module path.
    """

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._layers = list(quantized_layers(model).items())
        for number, (name, _) in enumerate(self._layers):
            self.register_buffer(f"latent_{number}", weights[name].clone())

    @torch.no_grad()
    def show(self) -> None:
        """Give the layers their latent weights."""
        for number, (_, (layer, _)) in enumerate(self._layers):
            layer.weight.copy_(getattr(self, f"latent_{number}"))

    @torch.no_grad()
    def hide(self, refine: bool = True) -> None:
        """Keep the layers' weights as the latent ones, and bring the layers' own to the grid, its scales refined."""
        for number, (_, (layer, quantizer)) in enumerate(self._layers):
            getattr(self, f"latent_{number}").copy_(layer.weight)
            scale = quantizer.weight_scale
            if refine:
                scale = refined_scale(rows(layer, layer.weight.detach()), scale, quantizer.weight_levels)
            to_grid(layer, quantizer, scale)


@torch.no_grad()
def to_grid(layer: WeightedLayer, quantizer: LayerQuantizer, scale: Tensor) -> None:
    """Bring a layer's weight onto the grid of `scale` (C,)."""
    quantizer.weight_scale.copy_(scale)
    weight = rows(layer, layer.weight.detach())
    layer.weight.copy_(_shaped(layer, on_grid(weight, scale, quantizer.weight_levels)))
