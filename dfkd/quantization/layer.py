"""A layer that computes in few bits: its weight lies on a grid, and its input is brought onto one.

The weight of a quantised layer *is* on its grid, so whoever reads it, exports it or counts its zeros needs to know
nothing of quantisation. The input is rounded by a hook, in the layer's own `quantizer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from dfkd.models.layers import WeightedLayer
from dfkd.quantization.recipe import BITS


class LayerQuantizer(nn.Module):
    """The grids of a layer's weight and input.

    With L = 2^input_bits - 1, scale s and zero point z (an integer, so that zero stays zero), the input becomes

        s (clamp(round(x / s) + z, 0, L) - z),

    the gradient of x is that of the clamp (the straight-through estimator, Bengio et al. 2013), and s is learned by its
    logarithm, with the gradient of Esser et al. 2020 (LSQ). The weight is `weight_scale` times integers of at most
    2^(weight_bits - 1) - 1 in size.

    Args:
        channels: outputs of the layer that have a scale of their own.
        weight_bits, input_bits: of the two grids.
    """

    weight_scale: Tensor
    input_zero: Tensor

    def __init__(self, channels: int, weight_bits: int, input_bits: int) -> None:
        super().__init__()
        self.weight_bits, self.input_bits = weight_bits, input_bits
        self.register_buffer("weight_scale", torch.ones(channels))
        self.register_buffer("input_zero", torch.zeros(1))
        self.input_log_scale = nn.Parameter(torch.zeros(1))

    @property
    def weight_levels(self) -> int:
        """The largest integer of the weight's grid."""
        return (1 << self.weight_bits - 1) - 1

    @property
    def input_levels(self) -> int:
        """The largest integer of the input's grid, which begins at 0."""
        return (1 << self.input_bits) - 1

    @property
    def input_scale(self) -> Tensor:
        """The distance between two values of the input's grid, (1,)."""
        return self.input_log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the input's grid."""
        scale, zero, levels = self.input_scale, self.input_zero, self.input_levels
        if torch.is_grad_enabled() and (scale.requires_grad or x.requires_grad):
            on_grid: Tensor = _OnGrid.apply(x, scale, zero, levels)
            return on_grid
        return ((x / scale).round() + zero).clamp(0, levels).sub(zero) * scale

    def before(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hook of the layer."""
        return (self(inputs[0]), *inputs[1:])


class _OnGrid(torch.autograd.Function):
    """The same with LSQ's gradient, in as few readings of x as can be: activations are large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, levels: int) -> Tensor:
        y = x / scale if x.dtype == scale.dtype else x.to(scale.dtype).div_(scale)
        y.round_().add_(zero).clamp_(0, levels).sub_(zero).mul_(scale)
        ctx.save_for_backward(x, y, scale, zero)
        ctx.levels = levels
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, y, scale, zero), (of_y,) = ctx.saved_tensors, gradients
        x, step, offset = x.to(y.dtype), scale.item(), zero.item()
        lowest, highest = (-offset - 0.5) * step, (ctx.levels - offset + 0.5) * step
        of_x = torch.ops.aten.hardtanh_backward(of_y, x, lowest, highest)
        if not ctx.needs_input_grad[1]:  # a frozen network's: its input alone is asked for
            return of_x, None, None, None
        # dy / ds is (y - x) / s within the range and y / s outside of it; relieved, so that s does not outrun weights
        relief = 1 / math.sqrt(x.numel() * _ranks() * ctx.levels)
        of_scale = (_inner(of_y, y) - _inner(of_x, x)) * (relief / step)
        return of_x, of_scale.view(scale.shape), None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a b, without a copy of either where they lie alike in memory."""
    dense = a.is_contiguous() or (a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last))
    if dense and a.stride() == b.stride():
        return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _ranks() -> int:
    """How many processes have a part of each batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def quantized_layers(model: nn.Module) -> dict[str, tuple[WeightedLayer, LayerQuantizer]]:
    """The quantised layers of a network and their quantisers, by module path."""
    found = {}
    for name, module in model.named_modules():
        quantizer = getattr(module, "quantizer", None)
        if isinstance(module, WeightedLayer) and isinstance(quantizer, LayerQuantizer):
            found[name] = (module, quantizer)
    return found


def attach(model: nn.Module, bits: Mapping[str, tuple[int, int]]) -> None:
    """Give layers of `model`, by module path, quantisers of so many bits for weight and input, in place.

    Raises:
        TypeError, AttributeError: a file named layers or bits that there are not.
    """
    for name, (weight_bits, input_bits) in bits.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, WeightedLayer) or weight_bits not in BITS or input_bits not in BITS:
            raise TypeError(f"{name}, a {type(layer).__name__}, cannot compute in {weight_bits} and {input_bits} bits.")
        weight = layer.weight
        quantizer = LayerQuantizer(weight.shape[channel_axis(layer)], weight_bits, input_bits).to(weight.device)
        layer.quantizer = quantizer
        layer.register_forward_pre_hook(quantizer.before)


def detach(model: nn.Module) -> None:
    """Take the quantisers off again, in place: weights stay on their grids, inputs are no longer rounded."""
    for layer, quantizer in quantized_layers(model).values():
        own = [key for key, hook in layer._forward_pre_hooks.items() if hook == quantizer.before]
        for key in own:
            del layer._forward_pre_hooks[key]
        del layer.quantizer


def attached_bits(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What `attach` was told, by module path."""
    return {name: (own.weight_bits, own.input_bits) for name, (_, own) in quantized_layers(model).items()}


def channel_axis(layer: nn.Module) -> int:
    """The dimension of a layer's weight that counts its outputs."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0
