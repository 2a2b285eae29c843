"""Batch-norm re-estimation: set a pruned network's statistics to those of a set of images, without a gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.models.freezing import frozen


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of `model`'s batch-norm layers by their mean over `batches`.

    While it runs only the batch-norm layers are in training mode, so that dropout keeps out of the statistics.

    Args:
        model: changed in place.
        batches: images (B, C, H, W) in normalised input space, on the model's device; every batch counts the same.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    try:
        with torch.no_grad(), frozen(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a cumulative mean
                layer.training = True
            for images in batches:
                model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
