"""Temporary changes of a network's mode and memory format that leave nothing behind on a user's model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(*models: nn.Module | None) -> Iterator[None]:
    """Within the context the models are in eval mode and no parameter asks for a gradient; then all is as before."""
    modules = [module for model in models if model is not None for module in model.modules()]
    parameters = [parameter for model in models if model is not None for parameter in model.parameters()]
    modes = [module.training for module in modules]
    asked = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, asks in zip(parameters, asked, strict=True):
            parameter.requires_grad_(asks)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within the context the weights of 2-d convolutions lie in memory as channels-last, so that activations do too."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous()]
    try:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()
