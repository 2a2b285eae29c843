"""Whether a network can be inverted, pruned and recovered: found out in seconds, before the work, with the remedy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import ModelError, listing
from dfkd.models.freezing import frozen, learning
from dfkd.models.layers import weighted_layers
from dfkd.models.matrix_weights import warn_of_other_weights
from dfkd.models.values import require_plain_module, require_sound_values

log = logging.getLogger(__name__)


def check_network(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The number of classes that `model` gives logits of; it is left as it was.

    It is tried on a few random images, in eval mode and, as a copy, in training mode with a backward.

    Args:
        model: any network.
        image_shape: (C, H, W) of its input.

    Raises:
        ModelError: it cannot take such images, gives no logits, or has a trait that would make results wrong; with
            what to do about it.
    """
    require_plain_module(model)
    require_sound_values(model)
    weighted_layers(model)
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    with _undisturbed():
        logits = _require_logits(model, _output(model, images), len(images))
        _require_no_probabilities(model, images, logits)
        _require_gradient(model, images)
        _require_single_images(model, images, logits)
        _require_equal_training_output(model, images, logits)
        warn_of_other_weights(model, images)
    return logits.shape[1]


def device_of(model: nn.Module) -> torch.device:
    """Where a network is; a network without parameters is on the CPU."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The caller's random state stays as it is, and dropout in the trials is the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _output(model: nn.Module, images: Tensor) -> Any:
    """What the network gives in eval mode."""
    seen = images.clone()
    try:
        with torch.no_grad(), frozen(model):
            output = model(seen)
    except Exception as error:  # a network of a user's may raise anything
        raise _cannot_take(model, images, error) from error
    if not torch.equal(seen, images):
        raise ModelError(
            f"{type(model).__name__} changes its input in place, so that whoever uses the images next sees others. "
            "Let its forward work on new tensors, for instance `x = x - mean` and not `x -= mean`."
        )
    return output


def _cannot_take(model: nn.Module, images: Tensor, error: Exception) -> ModelError:
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return ModelError(
            f"{type(model).__name__} cannot be called with images alone ({error}). Wrap it in a module whose forward "
            "takes images (batch, channels, height, width) and gives it the rest."
        )
    return ModelError(
        f"{type(model).__name__} cannot take images of input.image_shape={list(images.shape[1:])}: {error}. "
        "Set input.image_shape to what the network was trained on, or for small images use a small-image stem."
    )


def _require_logits(model: nn.Module, output: Any, count: int) -> Tensor:
    name = type(model).__name__
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{name} must give one row of logits (batch, classes) per image, got {_described(output)}. Wrap it in a "
            f"module that returns the class logits{_which(output, count)}."
        )
    if output.shape in ((count,), (count, 1)):
        raise ModelError(
            f"{name} gives a single logit per image, {tuple(output.shape)} for {count} images. Wrap it to "
            "give one logit per class, the same classifier: `torch.stack([torch.zeros_like(z), z], 1)` of its logit "
            "z (batch,), with input.num_classes=2."
        )
    if output.dim() != 2 or len(output) != count:
        raise ModelError(
            f"{name} must give one row of logits (batch, classes) per image, got {tuple(output.shape)} for {count} "
            "images. Wrap it in a module that returns the class logits."
        )
    if not output.is_floating_point():
        raise ModelError(f"{name} must give logits, got {output.dtype} values. Return them before argmax or rounding.")
    if not output.isfinite().all():
        raise ModelError(f"{name} gives logits that are not finite (NaN or infinite) on random images.")
    return output


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {listing(f'{key}: {_described(value)}' for key, value in output.items())}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {listing(map(_described, output))}"
    return type(output).__name__


def _which(output: Any, count: int) -> str:
    """The element of several outputs that looks like logits, as code."""
    elements: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        elements = list(output.items())
    elif isinstance(output, tuple | list):
        elements = list(enumerate(output))
    for key, value in elements:
        if isinstance(value, Tensor) and value.dim() == 2 and len(value) == count and value.shape[1] > 1:
            return f", perhaps `return self.network(x)[{key!r}]`"
    return ""


def _require_no_probabilities(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    with torch.no_grad(), frozen(model):
        rows = torch.cat([logits, model(3 * images), model(-images)])
        sums = rows.sum(1)
        softmax = bool((rows >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        last = None if softmax else _last_module(model, images)
    if softmax or isinstance(last, nn.Sigmoid):
        raise ModelError(
            f"{type(model).__name__} ends in {'softmax' if softmax else 'sigmoid'}: it gives probabilities, and logits "
            "are needed. Leave the last step out (a softmax over them is done here), or wrap the network in a module "
            f"that returns {'`torch.log(probabilities)`' if softmax else '`torch.logit(probabilities)`'}."
        )


def _last_module(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The innermost module whose output is the network's."""
    outputs: list[tuple[nn.Module, Any]] = []
    with ExitStack() as stack:
        for module in model.modules():
            if not list(module.children()):
                keep = module.register_forward_hook(lambda module, _, output: outputs.append((module, output)))
                stack.callback(keep.remove)
        logits = model(images)
    return next((module for module, output in reversed(outputs) if output is logits), None)


def _require_gradient(model: nn.Module, images: Tensor) -> None:
    leaf = images.clone().requires_grad_(True)
    problem = "no gradient"
    try:
        with torch.enable_grad(), frozen(model):
            logits = model(leaf)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(logits.float().logsumexp(1).sum(), leaf)
                problem = "" if gradient.isfinite().all() else "a gradient that is not finite"
    except Exception as error:  # a network of a user's may raise anything
        problem = f"no gradient ({type(error).__name__}: {error})"
    if problem:
        raise ModelError(
            f"{type(model).__name__} gives {problem} from its logits back to the images, so it cannot be inverted. "
            "Take `torch.no_grad`, `detach`, `.data`, rounding and other steps without a gradient out of its forward."
        )


def _require_single_images(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    """In eval mode an image's logits are its own: with others in the batch or without, and each time the same."""
    try:
        with torch.no_grad(), frozen(model):
            alone, again = model(images[:1]), model(images)
    except Exception as error:  # a network of a user's may raise anything
        raise ModelError(f"{type(model).__name__} takes two images, but not one alone: {error}.") from error
    if not isinstance(alone, Tensor) or alone.shape != logits[:1].shape:
        raise ModelError(
            f"{type(model).__name__} must give one row of logits for a single image, got {_described(alone)}. If its "
            "forward has `squeeze()`, say which dimension, for instance `flatten(1)`."
        )
    if not _close(again, logits):
        log.warning("%s gives other logits for the same images each time, in eval mode: is dropout left on, as by "
                    "`F.dropout(x)` without `training=self.training`?", type(model).__name__)  # fmt: skip
    elif not _close(alone, logits[:1]):
        log.warning("%s gives an image other logits where others are in the batch with it, in eval mode: results "
                    "depend on the batch size.", type(model).__name__)  # fmt: skip


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max().clamp_min(1e-6)))


def _require_equal_training_output(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    """As a student, a copy of the network is trained: it must give the same kind of output then."""
    student = _copied(model)
    with torch.enable_grad(), learning(student), _uses(student) as uses:
        try:
            output = student.train()(images.clone())
        except Exception as error:  # a network of a user's may raise anything
            raise _cannot_learn(model, error) from error
        if not isinstance(output, Tensor) or output.shape != logits.shape:
            raise ModelError(
                f"{type(model).__name__} gives {_described(output)} in training mode, where in eval mode it gives "
                f"{tuple(logits.shape)}; a student learns in training mode. Build it without auxiliary outputs "
                f"(torchvision: aux_logits=False), or wrap it in a module that returns the logits alone"
                f"{_which(output, len(images))}."
            )
        before = dict(uses)
        try:
            output.float().logsumexp(1).sum().backward()
        except Exception as error:  # a network of a user's may raise anything
            raise _cannot_learn(model, error) from error
    if uses != before:
        raise ModelError(
            f"{type(model).__name__} computes its activations again in the backward (gradient checkpointing), and "
            "batch norm would count them twice. Switch it off, for instance by `memory_efficient=False` or "
            "`set_grad_checkpointing(False)`."
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a user's attributes raise
        raise ModelError(
            f"{type(model).__name__} cannot be copied by `copy.deepcopy` ({type(error).__name__}: {error}), and a "
            "student begins as a copy of its teacher. Keep generators, locks and tensors with a gradient out of its "
            "attributes."
        ) from error


@contextmanager
def _uses(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """How often each innermost module was called within the context."""
    uses: dict[nn.Module, int] = {}

    def count(module: nn.Module, _inputs: Any) -> None:
        uses[module] = uses.get(module, 0) + 1

    with ExitStack() as stack:
        for module in model.modules():
            if not list(module.children()):
                stack.callback(module.register_forward_pre_hook(count).remove)
        yield uses


def _cannot_learn(model: nn.Module, error: Exception) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be trained, as a student is: {error}. Its forward in training mode, and its "
        "backward, must work on the device that it is on."
    )
