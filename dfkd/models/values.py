"""Whether a network is a plain one whose values can be worked with: there, finite, and in single precision."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from dfkd.errors import ModelError, listing
from dfkd.models.batch_norm import batch_norm_layers, running_statistics
from dfkd.models.layers import require_module

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module",
            "FullyShardedDataParallel": "module", "AveragedModel": "module"}  # fmt: skip


def require_plain_module(model: nn.Module) -> None:
    """Raise `ModelError` where `model` is a wrapper of a network, or a compiled form of one."""
    require_module(model)
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"The network is TorchScript ({name}), whose layers cannot be changed. Build it in Python and load the "
            "weights: `network.load_state_dict(scripted.state_dict())`."
        )
    if name in WRAPPERS and isinstance(getattr(model, WRAPPERS[name], None), nn.Module):
        raise ModelError(
            f"The network is wrapped in {name}, which hides its layers. Give the one within: `model.{WRAPPERS[name]}`."
        )


def require_sound_values(model: nn.Module) -> None:
    """Raise `ModelError` where a parameter or statistic has no value, is not finite, or not in single precision."""
    name = type(model).__name__
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    empty = [key for key, value in tensors.items() if isinstance(value, UninitializedParameter) or value.is_meta]
    if empty:
        raise ModelError(
            f"{name} has lazy or meta parameters without values: {listing(empty)}. Load its weights, or let it see one "
            "batch before it is used here: `model(torch.zeros(1, channels, height, width))`."
        )
    other = [
        f"{key} ({value.dtype})"
        for key, value in model.named_parameters()
        if value.dtype != torch.float32 and (value.is_floating_point() or value.is_complex())
    ]
    if other:
        raise ModelError(
            f"{name} is not in single precision: {listing(other)}. Convert it, `model.float()`; the student can be "
            "converted back, for instance `student.half()`."
        )
    devices = {str(value.device) for value in tensors.values()}
    if len(devices) > 1:
        raise ModelError(
            f"{name} is spread over several devices ({listing(sorted(devices))}). Bring it to one, for instance "
            "`model.cpu()`."
        )
    require_finite(model)


def require_finite(model: nn.Module) -> None:
    """Raise `ModelError` where a parameter or buffer is NaN or infinite, or a running variance negative."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    odd = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    for key, layer in batch_norm_layers(model).items():
        if (running_statistics(layer)[1] < 0).any():
            odd.append(f"{key}.running_var, below 0")
    if odd:
        raise ModelError(
            f"{type(model).__name__} holds values that are not finite (NaN or infinite): {listing(odd)}. The weights "
            "are damaged, or have overflowed in half precision: get a whole copy of them."
        )
