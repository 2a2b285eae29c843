"""Batch-norm layers of a network: which they are, and what their inputs look like on a batch of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import ModelError
from dfkd.models.layers import require_module
from dfkd.precision import widened

log = logging.getLogger(__name__)

SMALLEST = 1e-30  # a variance that is as good as none


def running_statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a layer found by `batch_norm_layers`, each (C,)."""
    mean, variance = layer.running_mean, layer.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise ModelError(f"{type(layer).__name__} holds no running statistics.")
    return mean, variance


def batch_norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that hold running statistics of their input, by module path.

    A layer counts by what it holds (`running_mean` and `running_var`), not by its class: subclasses, `SyncBatchNorm`
    and frozen variants are found too. Instance norm is left out: its statistics are per image.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    }


@contextmanager
def momentum(model: nn.Module, value: float | None) -> Iterator[None]:
    """Within the context running statistics follow with the momentum `value`, None for a cumulative mean."""
    layers: list[Any] = [layer for layer in batch_norm_layers(model).values() if hasattr(layer, "momentum")]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = value
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.momentum = own


def teacher_channels(layer: nn.Module) -> Tensor:
    """The channels (C,) of the teacher's layer of the same name that a student's batch-norm layer still has."""
    kept = getattr(layer, "teacher_channels", None)
    return torch.arange(len(running_statistics(layer)[0])) if kept is None else kept


def require_batch_norm(model: nn.Module, role: str = "teacher") -> dict[str, nn.Module]:
    """`batch_norm_layers(model)`.

    Raises:
        ModelError: there is none, so nothing tells what the training data looked like.
    """
    require_module(model)
    layers = batch_norm_layers(model)
    if not layers:
        raise ModelError(
            f"The {role} ({type(model).__name__}) has no batch-norm layer with running statistics. DeepInversion "
            "reads the training data's statistics from them, so it cannot invert this network. Use a network with "
            "batch norm (for instance vgg11_bn in place of vgg11)."
        )
    return layers


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Within the context, every forward of `model` appends `(mean, variance)` of each batch-norm layer's input.

    Statistics are per channel, over batch and space, with the biased variance, in float32 at least, and carry
    gradients to the input. A layer that is used twice in one forward appends twice. The caller clears the lists
    between forwards. The model must be frozen, in eval mode (`dfkd.models.freezing`); nothing stays on it.

    A layer that computes PyTorch's own batch norm is replaced for the time by one function with a closed-form
    backward, which reads the activations once for what takes autograd several passes. Layers with a `forward` of
    their own keep it, and a hook takes the statistics: slower, the same values.
    """
    layers = batch_norm_layers(model)
    records: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    replaced = [layer for layer in layers.values() if is_standard(layer)]
    handles = []
    if len(replaced) < len(layers):
        others = sorted({type(layer).__name__ for layer in layers.values() if not is_standard(layer)})
        log.info(
            "%d of %d batch-norm layers have a forward of their own (%s): hooks take their statistics, which is "
            "slower.", len(layers) - len(replaced), len(layers), ", ".join(others),
        )  # fmt: skip
    try:
        for name, layer in layers.items():
            if is_standard(layer):
                layer.forward = _forward_with_statistics(layer, records[name])
            else:
                handles.append(layer.register_forward_pre_hook(_recorder(records[name])))
        yield records
    finally:
        for layer in replaced:
            vars(layer).pop("forward", None)
        for handle in handles:
            handle.remove()


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` (B, C, ...) per channel, each of shape (C,), with a closed-form backward.

    For n values per channel and gradients g_mean, g_variance the gradient of x is
    `g_mean / n + 2 g_variance (x - mean) / n`. The variance is E[x^2] - mean^2, from one reading of x.
    """
    statistics: tuple[Tensor, Tensor] = _ChannelStatistics.apply(x)
    return statistics


def is_standard(layer: nn.Module) -> bool:
    """Whether a layer computes PyTorch's own batch norm."""
    own = type(layer).forward
    return own in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(layer)


def _forward_with_statistics(layer: nn.Module, record: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    standard = cast(_BatchNorm, layer)

    def forward(x: Tensor) -> Tensor:
        # Scale and shift are computed at each call, so that the layer may change its device in between.
        running_mean, running_var = running_statistics(standard)
        scale = torch.rsqrt(running_var + standard.eps)
        if standard.weight is not None:  # `affine` does not tell: there may be a scale without a shift
            scale = scale * standard.weight
        shift = -running_mean * scale
        if standard.bias is not None:
            shift = shift + standard.bias
        output: Tensor
        output, mean, variance = _BatchNormWithStatistics.apply(x, scale, shift)
        record.append((mean, variance))
        return output

    return forward


def _recorder(record: list[tuple[Tensor, Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _module, inputs: record.append(channel_statistics(inputs[0]))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`values` (C,) in the shape that meets the channels of `x` (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def quick_in_bfloat16(x: Tensor) -> bool:
    """Whether PyTorch's own batch norm is the quickest way to read `x`.

    It reads and writes bfloat16 and computes in float32, where other functions first make a copy in float32: on a CPU
    that takes about ten times as long. Compiled code makes no copies.
    """
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _affine(x: Tensor, scale: Tensor, shift: Tensor, origin: Tensor | None = None) -> Tensor:
    """scale (x - origin) + shift, per channel, in `x`'s type; without an origin, scale x + shift."""
    if quick_in_bfloat16(x):
        mean = torch.zeros_like(scale, dtype=torch.float32) if origin is None else origin
        return F.batch_norm(x, mean, torch.ones_like(mean), scale.float(), shift.float(), eps=0.0)
    if origin is not None:
        shift = shift - scale * origin
    return torch.addcmul(per_channel(shift, x), widened(x), per_channel(scale, x)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    if quick_in_bfloat16(x):
        ones = torch.ones(x.shape[1])
        _, mean, deviation = torch.native_batch_norm(x, ones, ones, None, None, True, 0.0, SMALLEST)
        return mean, deviation.square().reciprocal()  # it gives 1 / sqrt(variance + SMALLEST)
    # First per image, then over images: a compiled loop then finds the image's values still in the cache.
    x, space = widened(x), list(range(2, x.dim()))
    if space:
        mean = x.mean(space).mean(0)
        square = torch.linalg.vector_norm(x, dim=space).square().sum(0) / (x.numel() // x.shape[1])
    else:
        mean, square = x.mean(0), x.square().mean(0)
    return mean, (square - mean * mean).clamp_min(0)  # rounding makes it negative in a channel that hardly varies


def _statistics_gradient(x: Tensor, mean: Tensor, g_mean: Tensor, g_variance: Tensor) -> Tensor:
    count = x.numel() // x.shape[1]
    return _affine(x, 2 * g_variance / count, g_mean / count, mean)


class _ChannelStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _moments(x)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        return _statistics_gradient(x, mean, *gradients)


class _BatchNormWithStatistics(torch.autograd.Function):
    """x -> (scale x + shift, mean, variance). `scale` and `shift` are constants: a frozen layer's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(x)
        ctx.save_for_backward(x, mean, scale)
        return _affine(x, scale, shift), mean, variance

    @staticmethod
    def backward(ctx: Any, g_output: Tensor, g_mean: Tensor, g_variance: Tensor) -> tuple[Tensor, None, None]:
        x, mean, scale = ctx.saved_tensors
        if quick_in_bfloat16(x):
            gradient = _statistics_gradient(x, mean, g_mean, g_variance)
            return gradient.add_(_affine(g_output, scale, torch.zeros_like(scale))), None, None
        gradient = _statistics_gradient(widened(x), mean, g_mean, g_variance)
        return gradient.addcmul_(g_output, per_channel(scale, x)).to(x.dtype), None, None
