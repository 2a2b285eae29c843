"""A student in a file: weights, and for one whose layers shrank all that is needed to build it again."""

from __future__ import annotations

import math
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

PRESENT = ".present"  # follows the name of a packed tensor: the bits that say where its values are


def save_student(path: Path, student: nn.Module, packed: bool = False) -> None:
    """Write a student's weights, and which channels of its teacher it kept, as safetensors.

    Args:
        packed: keep of a weight with zeros its other values, and one bit per value that says where they are, wherever
            that is smaller. For 2:4 that is what hardware keeps: half of the values and two bits for each.
    """
    kept = {
        name: teacher_channels(layer).tolist()
        for name, layer in batch_norm_layers(student).items()
        if getattr(layer, "teacher_channels", None) is not None
    }
    state = student.state_dict()
    shapes = {}
    for name, tensor in list(state.items()) if packed else []:
        present = (tensor != 0).flatten().cpu()
        if tensor.dim() > 1 and tensor.element_size() * int((~present).sum()) > len(present) / 8:
            shapes[name] = list(tensor.shape)
            state[name] = tensor.flatten()[present.to(tensor.device)]
            state[name + PRESENT] = _to_bits(present)
    save_tensors(path, state, notes={"teacher_channels": kept, "packed": shapes})


def _to_bits(flags: Tensor) -> Tensor:
    """Booleans (N,) as bytes (ceil(N / 8),), the first in the lowest bit."""
    padded = torch.zeros(math.ceil(len(flags) / 8) * 8, dtype=torch.uint8)
    padded[: len(flags)] = flags
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _from_bits(bits: Tensor, count: int) -> Tensor:
    return ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].bool()


def _unpacked(state: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    full = {name: tensor for name, tensor in state.items() if name.removesuffix(PRESENT) not in shapes}
    for name, shape in shapes.items():
        values = state[name].new_zeros(math.prod(shape))
        values[_from_bits(state[name + PRESENT], len(values))] = state[name]
        full[name] = values.view(shape)
    return full


def load_student(path: str | Path, model: nn.Module) -> nn.Module:
    """The student in a file written by a run or by `save_student`, packed or not, in eval mode.

    Args:
        model: a network as its teacher was built; layers are shrunk to the file's shapes, in place.

    Raises:
        ArtifactError: the file is missing or damaged.
        WeightsError: the file belongs to another network.
    """
    state, notes = load_tensors(Path(path))
    state = _unpacked(state, (notes or {}).get("packed", {}))
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
