"""Temporary changes of a network's mode and memory format that leave nothing behind on a user's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.models.batch_norm import momentum

LEARNING_MOMENTUM = 0.1  # PyTorch's default: statistics follow within a few dozen updates


@contextmanager
def frozen(*models: nn.Module | None) -> Iterator[None]:
    """Within the context the models are in eval mode and no parameter asks for a gradient; then all is as before."""
    modules = [module for model in models if model is not None for module in model.modules()]
    modes = [module.training for module in modules]
    with requiring_grad(False, *models):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Within the context every parameter asks for a gradient, and batch norm follows with a momentum of our own.

    What a user set for another training, a frozen backbone or a momentum of 0.0003 that suits a million updates, would
    otherwise keep a pruned network from recovering without a word. Then all is as before.
    """
    with requiring_grad(True, model), momentum(model, LEARNING_MOMENTUM):
        yield


@contextmanager
def requiring_grad(asked: bool, *models: nn.Module | None) -> Iterator[None]:
    """Within the context all floating-point parameters ask for a gradient, or none does; then all is as before."""
    parameters = [p for model in models if model is not None for p in model.parameters() if p.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(asked)
        yield
    finally:
        for parameter, asks in zip(parameters, before, strict=True):
            parameter.requires_grad_(asks)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within the context the weights of 2-d convolutions lie in memory as channels-last, so that activations do too.

    A network that flattens activations by `view` cannot take them so. The first forward tells; the weights then go
    back to how they were, and the forward is made once more.
    """
    lay_out = _layout_of(model)
    forward, tried = model.forward, False

    def first_tried(*inputs: Any, **named: Any) -> Any:
        nonlocal tried
        if tried or torch.compiler.is_compiling():  # compiled code cannot try; where it fails the plain code is next
            return forward(*inputs, **named)
        tried = True
        try:
            return forward(*inputs, **named)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            lay_out(torch.contiguous_format)
            return forward(*inputs, **named)

    with ExitStack() as stack:
        stack.callback(lay_out, torch.contiguous_format)
        lay_out(torch.channels_last)
        stack.enter_context(replaced_forward(model, first_tried))
        yield


@contextmanager
def channels_last_for_training(model: nn.Module, image: Tensor) -> Iterator[None]:
    """As `channels_last`, told by a forward in eval mode beforehand: one in training would leave traces.

    Args:
        model: whose weights are laid out.
        image: one that it takes, (C, H, W).
    """
    lay_out = _layout_of(model)
    lay_out(torch.channels_last)
    try:
        with torch.no_grad(), frozen(model), torch.random.fork_rng():
            model(image[None].expand(2, *image.shape).float().to(next(model.parameters()).device))
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        lay_out(torch.contiguous_format)
    try:
        yield
    finally:
        lay_out(torch.contiguous_format)


@contextmanager
def contiguous(model: nn.Module) -> Iterator[None]:
    """Within the context, weights that lie as channels-last lie as usual; for code that flattens them by `view`."""
    last = torch.channels_last
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous(memory_format=last)]
    weights = [weight for weight in weights if not weight.is_contiguous()]
    for weight in weights:
        weight.data = weight.data.contiguous()
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=last)


def _layout_of(model: nn.Module) -> Callable[[torch.memory_format], None]:
    """A function that lays out the weights of 2-d convolutions."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous()]

    @torch.inference_mode(False)  # a weight that is laid out by a forward without gradients stays one that can learn
    def lay_out(memory_format: torch.memory_format) -> None:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=memory_format)

    return lay_out


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context, `forward` is what calling `module` does; then its own is back."""
    own = vars(module).get("forward")  # a user may have replaced it, too
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
