"""The layer that gives a network's class logits, with room for more classes."""

from __future__ import annotations

import torch
from torch import nn

from dfkd.errors import ModelError


def extend_classifier(model: nn.Module, old_classes: int, new_classes: int) -> None:
    """Give `model` `new_classes` more outputs behind its `old_classes`, in place; the old outputs stay as they are.

    The new rows are initialised as in a new layer.

    Raises:
        ModelError: see `classifier_of`.
    """
    name, old = classifier_of(model, old_classes)
    new = nn.Linear(old.in_features, old_classes + new_classes, bias=old.bias is not None)
    with torch.no_grad():
        new.weight[:old_classes] = old.weight
        if old.bias is not None:
            new.bias[:old_classes] = old.bias
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new.to(old.weight))


def classifier_of(model: nn.Module, classes: int) -> tuple[str, nn.Linear]:
    """Name and module of the layer that gives the logits: the last linear layer with `classes` outputs.

    Raises:
        ModelError: there is no such layer.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = [name for name, layer in linear.items() if layer.out_features == classes]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {classes} outputs (input.num_classes) to give the "
            "classes' logits. Its last layer must be a torch.nn.Linear."
        )
    return found[-1], linear[found[-1]]
