"""The layer that gives a network's class logits, with room for more classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from dfkd.errors import ModelError
from dfkd.models.freezing import frozen


def extend_classifier(
    model: nn.Module, old_classes: int, new_classes: int, image_shape: tuple[int, int, int] | None = None
) -> None:
    """Give `model` `new_classes` more outputs behind its `old_classes`, in place; the old outputs stay as they are.

    The new rows are initialised as in a new layer.

    Raises:
        ModelError: see `classifier_of`.
    """
    name, old = classifier_of(model, old_classes, image_shape)
    new = nn.Linear(old.in_features, old_classes + new_classes, bias=old.bias is not None)
    with torch.no_grad():
        new.weight[:old_classes] = old.weight
        if old.bias is not None:
            new.bias[:old_classes] = old.bias
    shapes = {key: list(value.shape) for key, value in old.named_parameters()} | vars(old).get("teacher_shapes", {})
    new.teacher_shapes = shapes  # for its file, see `dfkd.models.student_file`
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new.to(old.weight))


def classifier_of(
    model: nn.Module, classes: int, image_shape: tuple[int, int, int] | None = None
) -> tuple[str, nn.Linear]:
    """Name and module of the layer that gives the logits: the last linear layer with `classes` outputs.

    Args:
        image_shape: (C, H, W) of the input. The last is then the one that a forward comes to last, and not the one that
            the network holds last.

    Raises:
        ModelError: there is no such layer.
    """
    found = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes
    }
    if len(found) > 1 and image_shape is not None:
        used = forward_order(model, found, image_shape)
        found = {name: found[name] for name in used or found}
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {classes} outputs (input.num_classes) to give the "
            "classes' logits. Its last layer must be a torch.nn.Linear."
        )
    return list(found.items())[-1]


def features_and_logits(model: nn.Module, classifier: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer `classifier` of `model` takes for `images` (B, C, H, W), (B, features), and what the model gives.

    Raises:
        ModelError: a forward does not come to that layer once, or its output is not what the model gives.
    """
    layer, seen = model.get_submodule(classifier), []
    hook = layer.register_forward_hook(lambda _layer, inputs, output: seen.append((inputs[0], output)))
    try:
        logits = model(images)
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0][1] is not logits:
        raise ModelError(
            f"{type(model).__name__} must give what its layer {classifier} puts out, once and unchanged, so that its "
            "features can be told from its classifier. Choose incremental.losses=separate_heads."
        )
    return seen[0][0], logits


def forward_order(model: nn.Module, names: Iterable[str], image_shape: Sequence[int]) -> list[str]:
    """Those of the modules `names` that a forward in eval mode comes to, in that order."""
    order: dict[str, None] = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), frozen(model), ExitStack() as stack:
        for name in names:
            note = model.get_submodule(name).register_forward_pre_hook(
                lambda _module, _inputs, name=name: order.setdefault(name)
            )
            stack.callback(note.remove)
        model(torch.zeros(2, *image_shape, device=device))
    return list(order)
