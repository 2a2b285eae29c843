"""Several ranks that train as one: each computes on its equal share of every batch.

Every rank reads and augments the whole batch, which is cheap beside the networks, and then takes its share. Gradients
are averaged by PyTorch's DDP; this module holds what else depends on the whole batch: means, and batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import ConfigError, listing
from dfkd.models.batch_norm import batch_norm_layers, is_standard, per_channel
from dfkd.models.freezing import replaced_forward
from dfkd.precision import widened


@dataclass(frozen=True)
class Ranks:
    """How many ranks train together, and which one this is. All have shares of the same size.

    Attributes:
        count: of the ranks.
        own: number of this one.
    """

    count: int = 1
    own: int = 0

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of a whole batch (B, ...)."""
        return batch.chunk(self.count)[self.own]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, without a gradient."""
        if self.count == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values / self.count

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over the whole batch, from those over this rank's share; without a gradient.

        With m_r and v_r those of rank r: m = mean_r m_r and v = mean_r (v_r + (m_r - m)^2), which loses no digits to
        a mean far from zero.
        """
        if self.count == 1:
            return mean, variance
        own = torch.stack([mean, variance]).detach()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        means, variances = torch.stack(parts).unbind(1)
        whole = means.mean(0)
        return whole, (variances + (means - whole).square()).mean(0)


ALONE = Ranks()


def require_equal_shares(option: str, size: int, ranks: int) -> None:
    """Raise `ConfigError` unless a batch of `size` images, set by `option`, can be divided among the ranks."""
    if size % ranks:
        raise ConfigError(
            f"{option} must be a multiple of the number of ranks, trainer.devices x trainer.num_nodes = {ranks}, got "
            f"{size}: every rank learns from an equal share of each batch."
        )


def require_whole_batch_norm(model: nn.Module) -> None:
    """Raise `ConfigError` where batch-norm layers of `model` cannot take their statistics from all ranks."""
    own = sorted({type(layer).__name__ for layer in batch_norm_layers(model).values() if not is_standard(layer)})
    if own:
        raise ConfigError(
            f"trainer.devices and trainer.num_nodes must be 1 for a network with batch-norm layers that have a forward "
            f"of their own ({listing(own)}): it does not know of the other ranks' images. With "
            "distillation.batch_norm=frozen it need not."
        )


@contextmanager
def whole_batch_norm(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Within the context, batch norm in training mode takes its statistics from the images of all ranks.

    As `torch.nn.SyncBatchNorm`, but on a CPU too, and with the layers that the model has. Output, running statistics
    and gradients are those of one rank that sees the whole batch. Nothing stays on the model.
    """
    with ExitStack() as stack:
        if ranks.count > 1:
            for layer in model.modules():
                if isinstance(layer, _BatchNorm):
                    stack.enter_context(replaced_forward(layer, _whole_forward(layer, ranks)))
        yield


def _whole_forward(layer: _BatchNorm, ranks: Ranks) -> Callable[[Tensor], Tensor]:
    forward = layer.forward

    def whole(x: Tensor) -> Tensor:
        if not layer.training:
            return forward(x)
        output, mean, variance, _ = normalised(x, layer.weight, layer.bias, layer.eps, ranks)
        if layer.running_mean is not None and layer.running_var is not None:
            with torch.no_grad():
                done = cast(Tensor, layer.num_batches_tracked).add_(1)
                rate = 1 / done.item() if layer.momentum is None else layer.momentum
                layer.running_mean.lerp_(mean, rate)
                layer.running_var.lerp_(variance, rate)
        return output

    return whole


def normalised(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Batch norm's output in training mode for this rank's share `x` (B, C, ...) of a batch.

    Returns:
        The output; mean and unbiased variance (C,) of the whole batch, without a gradient; and the number of values
        that each is of.
    """
    count = ranks.count * (x.numel() // x.shape[1])
    if ranks.count == 1:
        mean, variance = (x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2))
        output = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
        return output, mean, variance, count
    normal, mean, variance = _Normalised.apply(x, eps, ranks)
    scaled = normal if weight is None else normal * per_channel(weight, x)
    output = scaled if bias is None else scaled + per_channel(bias, x)
    return output.to(x.dtype), mean, variance * (count / max(1, count - 1)), count


class _Normalised(torch.autograd.Function):
    """x -> ((x - mean) / sqrt(variance + eps), mean, variance), the moments being those of the images of all ranks.

    Each rank's loss depends on every rank's images then. With g the gradients of their losses and n the normalised
    values, that of the sum of the losses is (g - mean(g) - n mean(g n)) / sqrt(variance + eps), the means over all
    ranks' images.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        wide = widened(x)
        variance, mean = torch.var_mean(wide, _all_but_channels(x), correction=0)
        mean, variance = ranks.moments(mean, variance)
        scale = (variance + eps).rsqrt()
        normal = (wide - per_channel(mean, x)) * per_channel(scale, x)
        ctx.save_for_backward(normal, scale)
        ctx.ranks, ctx.dtype = ranks, x.dtype
        ctx.mark_non_differentiable(mean, variance)
        return normal, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normal, scale = ctx.saved_tensors
        g, space = gradients[0], _all_but_channels(normal)
        mean, along = ctx.ranks.mean(torch.stack([g.mean(space), (g * normal).mean(space)]))
        slope = per_channel(scale, g)
        return (slope * (g - per_channel(mean, g) - normal * per_channel(along, g))).to(ctx.dtype), None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]
