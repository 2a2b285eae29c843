"""A student in a file: weights, and for one whose layers shrank all that is needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dfkd.files import load_tensors, save_tensors
from dfkd.models.batch_norm import batch_norm_layers, teacher_channels
from dfkd.models.weights import load_state


def save_student(path: Path, student: nn.Module) -> None:
    """Write a student's weights, and which channels of its teacher it kept, as safetensors."""
    kept = {
        name: teacher_channels(layer).tolist()
        for name, layer in batch_norm_layers(student).items()
        if getattr(layer, "teacher_channels", None) is not None
    }
    save_tensors(path, student.state_dict(), notes={"teacher_channels": kept})


def load_student(path: str | Path, model: nn.Module) -> nn.Module:
    """The student in a file written by a run or by `save_student`, in eval mode.

    Args:
        model: a network as its teacher was built; layers are shrunk to the file's shapes, in place.

    Raises:
        ArtifactError: the file is missing or damaged.
        WeightsError: the file belongs to another network.
    """
    state, notes = load_tensors(Path(path))
    _shrink(model, state)
    load_state(model, state, str(path))
    kept = (notes or {}).get("teacher_channels", {})
    for name, layer in batch_norm_layers(model).items():
        if name in kept:
            layer.teacher_channels = torch.tensor(kept[name])
    return model.eval()


def _resized(own: object, value: Tensor) -> TypeGuard[Tensor]:
    return isinstance(own, Tensor) and own.dim() == value.dim() and own.shape != value.shape


def _shrink(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every convolution, linear and batch-norm layer the sizes that its tensors have in `state`."""
    for name, module in model.named_modules():
        tensors = {key: state.get(f"{name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        weight = tensors["weight"]
        for key, value in tensors.items():
            own = getattr(module, key, None)
            if value is None or not _resized(own, value):
                continue
            if isinstance(own, nn.Parameter):
                setattr(module, key, nn.Parameter(own.new_empty(value.shape), requires_grad=own.requires_grad))
            else:
                setattr(module, key, own.new_empty(value.shape))
        if isinstance(module, _ConvNd) and weight is not None:
            depthwise = module.groups > 1 and module.groups == module.in_channels
            module.out_channels = len(weight)
            module.groups = module.out_channels if depthwise else module.groups
            module.in_channels = weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear) and weight is not None:
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, _BatchNorm) and tensors["running_mean"] is not None:
            module.num_features = len(tensors["running_mean"])
