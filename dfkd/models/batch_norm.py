"""Batch-norm layers of a network: which they are, and what their inputs look like on a batch of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dfkd.errors import ModelError


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


def require_batch_norm(model: nn.Module, role: str = "teacher") -> dict[str, nn.Module]:
    """`batch_norm_layers(model)`.

    Raises:
        ModelError: there is none, so nothing tells what the training data looked like.
    """
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
    between forwards. No hook stays on the model.
    """
    layers = batch_norm_layers(model)
    records: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def recorder(name: str):
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            records[name].append(channel_statistics(inputs[0]))

        return record

    handles = [layer.register_forward_pre_hook(recorder(name)) for name, layer in layers.items()]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` (B, C, ...) per channel, each of shape (C,)."""
    dims = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dims, correction=0)
    return mean, variance
