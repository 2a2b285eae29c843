"""Layer-by-layer reconstruction: each pruned layer solved against the teacher's output, without training.

As post-training pruning does with calibration images (Frantar and Alistarh 2022), here on dreams.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dfkd.errors import ModelError
from dfkd.models.classifier import forward_order
from dfkd.models.freezing import frozen
from dfkd.pruning.sparsity import prunable_weights
from dfkd.seeding import derive_seed

log = logging.getLogger(__name__)

POSITIONS = 64  # of each image at which a convolution is observed: neighbours tell little more
STEPS = 50  # of conjugate gradients
DAMPING = 0.01  # of the mean square input


@dataclass
class Observed:
    """Second moments of a layer's input x in the student and its output y in the teacher, by group.

    Attributes:
        inputs: mean of x x^T, (groups, D, D) with D inputs of one output value.
        outputs: mean of (y - bias) x^T, (groups, rows, D).
    """

    inputs: Tensor
    outputs: Tensor


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Tensor],
) -> None:
    """Give each prunable layer of `student`, in the order of the forward, the weights that fit the teacher best.

    Minimises mean |W x - (y - b)|^2 + damping |W - W_0|^2 over the weights W that are not zero, where x is what the
    layer sees in the student, with the layers before it already solved, y is the same layer's output in the teacher
    and W_0 is what it had; by conjugate gradients from W_0. Both networks are used in eval mode, with the batch-norm
    statistics that they have.

    Args:
        student: changed in place; a pruned network in its teacher's shapes.
        teacher: what it should compute; left as it was.
        batches: images (B, C, H, W) in normalised input space, on the networks' device; each is used for every layer.

    Raises:
        ModelError: the networks' layers differ in shape.
    """
    require_teachers_shapes(student, teacher)
    weights = prunable_weights(student)
    with torch.no_grad(), frozen(student, teacher):
        for name in forward_order(student, weights, batches[0].shape[1:]):
            weight = weights[name]
            observed = _observe(student, teacher, name, batches)
            if observed is None:
                layer = type(student.get_submodule(name)).__name__
                log.info("Reconstruction leaves %s (%s) as it is: it is no plain product with its weight.", name, layer)
                continue
            start = weight.unflatten(0, (len(observed.inputs), -1)).flatten(2)
            weight.copy_(solve(start, start != 0, observed).view_as(weight))


def require_teachers_shapes(student: nn.Module, teacher: nn.Module) -> None:
    """Raise `ModelError` where a prunable layer of `student` has not the shape of the teacher's of the same name."""
    expected = prunable_weights(teacher)
    for name, weight in prunable_weights(student).items():
        if name not in expected or expected[name].shape != weight.shape:
            raise ModelError(
                f"distillation.reconstruct needs a student of its teacher's shapes, but layer {name} differs: filters "
                "were removed, or the student is another network. Set distillation.reconstruct=false."
            )


def solve(start: Tensor, kept: Tensor, observed: Observed) -> Tensor:
    """Conjugate gradients from `start` (groups, rows, D) over the weights that are `kept`, scaled by the diagonal."""
    moments = observed.inputs
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean().clamp_min(1e-12)
    scale = kept / (diagonal + damping)[:, None]
    start = start * kept

    def product(x: Tensor) -> Tensor:
        return (x @ moments + damping * x) * kept

    weights = start
    residual = (observed.outputs - start @ moments) * kept
    direction = scale * residual
    size = (residual * direction).sum(2, keepdim=True)
    for _ in range(STEPS):
        image = product(direction)
        step = size / (direction * image).sum(2, keepdim=True).clamp_min(1e-30)
        weights = weights + step * direction
        residual = residual - step * image
        scaled = scale * residual
        size, before = (residual * scaled).sum(2, keepdim=True), size
        direction = scaled + size / before.clamp_min(1e-30) * direction
    return weights


class _Seen(Exception):
    """Ends a forward at the layer that is looked at."""


class _Product(TorchFunctionMode):
    """Within the context, the linear map or convolution by `weight` is looked at, and ends the forward.

    What a layer does before is then done: a convolution may pad its input within its own forward.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.inputs: dict[str, Any] = {}
        self.output = torch.zeros(())

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (F.linear, F.conv2d):
            given = {**_CONV2D, **dict(zip(_CONV2D, args, strict=False)), **(kwargs or {})}
            if given["weight"] is self.weight:
                self.inputs, self.output = given, function(*args, **(kwargs or {}))
                raise _Seen
        return function(*args, **(kwargs or {}))


_CONV2D = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _observe(student: nn.Module, teacher: nn.Module, name: str, batches: Sequence[Tensor]) -> Observed | None:
    """The moments of a layer; None where it does not multiply by its weight."""
    count, inputs, outputs = 0, torch.zeros(()), torch.zeros(())
    for number, images in enumerate(batches):
        seen = []
        for model in (student, teacher):
            with contextlib.suppress(_Seen), _Product(prunable_weights(model)[name]) as product:
                model(images)
            if not product.inputs:
                return None
            seen.append(product)
        x, y = _rows(seen[0].inputs, _without_bias(seen[1]), derive_seed(0, "positions", number))
        inputs, outputs = inputs + x @ x.mT, outputs + y @ x.mT
        count += x.shape[2]
    return Observed(inputs / count, outputs / count)


def _without_bias(product: _Product) -> Tensor:
    bias: Tensor | None = product.inputs["bias"]
    if bias is None:
        return product.output
    return product.output - (bias[:, None, None] if product.weight.dim() == 4 else bias)


def _rows(given: dict[str, Any], y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (groups, D, N) and outputs (groups, rows, N) of a product at N places, from what it was given."""
    x, weight = given["input"], given["weight"]
    if weight.dim() == 2:
        return x.reshape(-1, x.shape[-1]).mT[None], y.reshape(-1, y.shape[-1]).mT[None]
    y, kernel = y.flatten(2), weight.shape[2:]
    stride, dilation = (_pair(given[name]) for name in ("stride", "dilation"))
    padding = [0, 0] if given["padding"] == "valid" else given["padding"]
    if padding == "same":
        spare = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        around = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
    else:
        high, wide = _pair(padding)
        around = [wide, wide, high, high]
    patches = F.unfold(F.pad(x, around), tuple(kernel), dilation, 0, stride)
    places = patches.shape[2]
    if places > POSITIONS:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(places, generator=generator)[:POSITIONS].to(x.device)
        patches, y = patches[:, :, chosen], y[:, :, chosen]
    patches, y = (values.unflatten(1, (given["groups"], -1)).permute(1, 2, 0, 3).flatten(2) for values in (patches, y))
    return patches, y


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, Sequence) else (value,)
    return (first, rest[0] if rest else first)
