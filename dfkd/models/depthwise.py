"""Depthwise convolutions with a stride, computed in single precision where a CPU is slow at them in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from dfkd.models.freezing import replaced_forward


class _InFloat32:
    """What calling `convolution` does under autocast on a CPU, its sums in float32; an object, so that it pickles."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def __call__(self, images: Tensor) -> Tensor:
        own = type(self.convolution).forward
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return own(self.convolution, images)
        with torch.autocast("cpu", enabled=False):
            return own(self.convolution, images.float()).to(images.dtype)


@contextmanager
def strided_depthwise_in_float32(model: nn.Module) -> Iterator[None]:
    """Within the context, `model`'s depthwise convolutions with a stride leave bfloat16 autocast on a CPU.

    oneDNN has no fast kernel for the gradient of their input in bfloat16: three of MobileNetV2's 52 convolutions take
    more than two fifths of a training step then. In float32 the step as a whole takes three fifths
    (`benchmarks/depthwise.py`). A convolution whose `forward` was replaced is left as it is.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if _is_depthwise_with_stride(module) and "forward" not in vars(module):
                stack.enter_context(replaced_forward(module, _InFloat32(module)))
        yield


def _is_depthwise_with_stride(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels and max(module.stride) > 1
