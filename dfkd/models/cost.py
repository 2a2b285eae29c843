"""What a network costs: its parameters, and the multiply-adds of one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.models.freezing import frozen


def parameters(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and matrix products for one image (C, H, W); zeros count like any value."""
    device = next(model.parameters()).device
    with torch.no_grad(), frozen(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape, device=device))
    return int(counter.get_total_flops()) // 2
