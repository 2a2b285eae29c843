"""Quantisation of a whole network: its weights by themselves, the ranges of its inputs on images (calibration)."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from dfkd.errors import ConfigError, ModelError, listing
from dfkd.models.freezing import frozen
from dfkd.models.layers import WeightedLayer, weighted_layers
from dfkd.quantization.grid import LatentWeights, best_scale, rows, to_grid
from dfkd.quantization.layer import attach, quantized_layers
from dfkd.quantization.recipe import QuantizationRecipe

log = logging.getLogger(__name__)

CALIBRATION = 256  # images
SAMPLED = 2**16  # values of an input that its range is found on
TRIED = 40  # ranges, as shares of the whole one


def quantize(model: nn.Module, recipe: QuantizationRecipe, images: Tensor) -> LatentWeights:
    """Let the convolutions and linear layers of `model` compute in few bits, in place.

    Scales are those of the smallest squared error: of each output channel's weights, and of each layer's input on
    `images`.

    Args:
        model: any network with such layers; its weights become those on the grid.
        recipe: in how many bits.
        images: (N, C, H, W) in normalised input space, on the model's device.

    Returns:
        The weights as they were, for whoever trains on (`LatentWeights`).

    Raises:
        ConfigError: `recipe` names layers that there are not.
        ModelError: the model is quantised already, or has no layer to quantise (`weighted_layers`).
    """
    if quantized_layers(model):
        raise ModelError(f"This {type(model).__name__} is quantised already: give it as it was before.")
    own = weighted_layers(model)
    for name in recipe.in_float:
        if name not in own:
            allowed = f"names of its layers ({listing(list(own))})"
            raise ConfigError(f"quantization.in_float must be {allowed}, got {name!r}.")
    inputs = _inputs(model, images)  # in the order of the forward
    used = [name for name in inputs if name in own]
    if not used:
        raise ModelError(f"{type(model).__name__} has no convolution or linear layer to quantise.")
    tied = [name for name in inputs if name not in own]
    if tied:
        log.warning("Layers that share the weight of another one take their inputs in float: %s.", listing(tied))
    edges = {used[0], used[-1]}
    attach(model, {name: recipe.bits(name in edges) for name in used if name not in recipe.in_float})
    weights = {}
    with torch.no_grad():
        for name, (layer, quantizer) in quantized_layers(model).items():
            weights[name] = layer.weight.detach().clone()
            to_grid(layer, quantizer, best_scale(rows(layer, layer.weight.detach()), quantizer.weight_levels))
            scale, zero = best_range(inputs[name], quantizer.input_levels)
            quantizer.input_log_scale.fill_(scale.log())
            quantizer.input_zero.fill_(zero)
    return LatentWeights(model, weights)


def _inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Values of every layer's input on `images`, at most `SAMPLED` of them, evenly spread; by module path."""
    found: dict[str, list[Tensor]] = {}
    parts = images[:CALIBRATION].split(64)

    def note(name: str, x: Tensor) -> None:
        values = x.detach().float().flatten()
        step = max(1, len(parts) * len(values) // SAMPLED)
        found.setdefault(name, []).append(values[::step])

    with torch.no_grad(), frozen(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, WeightedLayer):
                hook = module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
                stack.callback(hook.remove)
        for part in parts:
            model(part)
    return {name: torch.cat(values) for name, values in found.items()}


def best_range(values: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid of integers in [0, levels] with the smallest squared error on `values`."""
    lowest, highest = values.min().clamp_max(0), values.max().clamp_min(0)

    def grid(share: float) -> tuple[Tensor, Tensor]:
        scale = ((highest - lowest) * share / levels).clamp_min(torch.finfo(torch.float32).tiny)
        return scale, (-lowest * share / scale).round()

    def error(share: float) -> float:
        scale, zero = grid(share)
        on_it = ((values / scale).round() + zero).clamp(0, levels).sub(zero) * scale
        return (on_it - values).square().sum().item()

    return grid(min(torch.linspace(1, 0.1, TRIED).tolist(), key=error))
