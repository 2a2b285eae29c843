"""A student in a file: weights, and for one whose layers shrank all that is needed to build it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dfkd.errors import ArtifactError
from dfkd.files import load_tensors, save_tensors
from dfkd.models.batch_norm import batch_norm_layers, teacher_channels
from dfkd.models.weights import load_state
from dfkd.quantization.grid import from_integers, integers_of
from dfkd.quantization.layer import attach, attached_bits, quantized_layers

PRESENT = ".present"  # follows the name of a packed tensor: the bits that say where its values are


def save_student(path: Path, student: nn.Module, packed: bool = False) -> None:
    """Write a student's weights, which channels of its teacher it kept, and the teacher's shapes, as safetensors.

    Args:
        packed: keep of a weight with zeros its other values, and one bit per value that says where they are, wherever
            that is smaller (for 2:4 that is what hardware keeps: half of the values and two bits for each); of a
            quantised weight its integers; and all of it compressed (gzip), which is what small integers gain by.
    """
    kept = {
        name: teacher_channels(layer).tolist()
        for name, layer in batch_norm_layers(student).items()
        if getattr(layer, "teacher_channels", None) is not None
    }
    state = student.state_dict()
    shapes = {}
    integers = [f"{name}.weight" for name in attached_bits(student)] if packed else []
    for name, (layer, quantizer) in quantized_layers(student).items() if packed else []:
        state[f"{name}.weight"] = integers_of(layer, quantizer)
    for name, tensor in list(state.items()) if packed else []:
        present = (tensor != 0).flatten().cpu()
        if tensor.dim() > 1 and tensor.element_size() * int((~present).sum()) > len(present) / 8:
            shapes[name] = list(tensor.shape)
            state[name] = tensor.flatten()[present.to(tensor.device)]
            state[name + PRESENT] = _to_bits(present)
    notes: dict[str, Any] = {"teacher_channels": kept, "teacher_shapes": teacher_shapes(student), "packed": shapes}
    bits = attached_bits(student)
    if bits:
        notes |= {"quantization": bits, "integers": integers}
    save_tensors(path, state, notes, compressed=packed)


def note_teacher_shapes(student: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Note on the layers of `student` of another size what `shapes` their tensors, by name, have in its teacher."""
    for name, module in student.named_modules():
        prefix = f"{name}." if name else ""
        own = {key: list(value.shape) for key, value in _tensors(module).items()}
        noted = {key: list(shapes[prefix + key]) for key in own if list(shapes.get(prefix + key, own[key])) != own[key]}
        if noted:
            module.teacher_shapes = noted


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, but not of those within it."""
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {key: value.detach() for key, value in named}


def teacher_shapes(student: nn.Module) -> dict[str, list[int]]:
    """The teacher's shapes of the tensors that filter pruning or new classes gave another size, by name."""
    return {
        f"{name}.{key}" if name else key: list(shape)
        for name, module in student.named_modules()
        for key, shape in vars(module).get("teacher_shapes", {}).items()
    }


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
        if math.prod(shape) > 8 * len(state[name + PRESENT]):  # before the memory is taken
            raise IndexError(f"{name} has fewer bits than values")
        values = state[name].new_zeros(math.prod(shape))
        values[_from_bits(state[name + PRESENT], len(values))] = state[name]
        full[name] = values.view(shape)
    return full


def load_student(path: str | Path, model: nn.Module) -> nn.Module:
    """The student in a file written by a run or by `save_student`, packed or not, in eval mode.

    Args:
        model: a network as its teacher was built; layers whose filters were pruned, or a classifier that learned new
            classes, get their sizes, in place.

    Raises:
        ArtifactError: the file is missing or damaged.
        WeightsError: the file belongs to another network, of another architecture, width or number of classes.
    """
    state, notes = load_tensors(Path(path))
    try:
        notes = notes or {}
        state = _unpacked(state, notes.get("packed", {}))
        shapes = notes.get("teacher_shapes", {})
        # Only a layer that is as its teacher's was may get another size: all other differences are of another network.
        whole = {key: list(value.shape) for key, value in model.state_dict().items()}
        _resize(model, {key: state[key] for key, shape in shapes.items() if whole.get(key) == shape})
        attach(model, notes.get("quantization", {}))
        for name, (quantized, _) in quantized_layers(model).items() if notes.get("integers") else []:
            scale = state[f"{name}.quantizer.weight_scale"]
            state[f"{name}.weight"] = from_integers(quantized, scale, state[f"{name}.weight"])
        load_state(model, state, str(path))
        note_teacher_shapes(model, shapes)
        kept = notes.get("teacher_channels", {})
        for name, layer in batch_norm_layers(model).items():
            if name in kept:
                layer.teacher_channels = torch.tensor(kept[name])
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"{path} does not say how its tensors make a student ({error!r}).") from error
    return model.eval()


def _resize(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the tensors of `state`, and what their layers say of themselves, the sizes that they have there."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        shrunk = {key: state[prefix + key] for key in _tensors(module) if prefix + key in state}
        for key, value in shrunk.items():
            own = getattr(module, key)
            empty = own.new_empty(value.shape)
            setattr(module, key, nn.Parameter(empty, own.requires_grad) if isinstance(own, nn.Parameter) else empty)
        if shrunk:
            _describe(module)


def _describe(module: nn.Module) -> None:
    """Correct what a layer says of its size."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise
            module.groups = first
        second *= module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = len(next(iter(_tensors(module).values())))
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
