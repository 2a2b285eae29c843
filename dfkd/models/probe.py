"""What a network computes, as text: an edit of its code must change every key that depends on it.

Neither the name of a class nor the hash of its source file tells what a network computes: it may call anything. So the
network is asked. Its weights are replaced by a fixed pattern and it is run on fixed images, in double precision; what
comes out, rounded far above the rounding of any machine, stands for the function.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.seeding import derive_seed

DIGITS = 6  # of the outputs that count; machines differ in the fifteenth
IMAGES = 2


@dataclass(frozen=True)
class Network:
    """An architecture: how to build it, and what identifies it.

    Attributes:
        build: makes the network with random weights.
        image_shape: (C, H, W) of its input.
        aspects: what of it counts, see `probe`: whoever only reads the network's outputs does not depend on its
            dropout, and whoever loads weights does not depend on its initialisation.
    """

    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    aspects: tuple[str, ...] = ("inference",)

    def identity(self) -> dict[str, str]:
        """The digests of the aspects that count."""
        found = _probed_before(self.build, self.image_shape)
        return {aspect: found[aspect] for aspect in self.aspects}


def module_identity(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, str]:
    """What tells a network with its weights from any other: the digests of what it computes and of its state."""
    inference = probe(functools.partial(copy.deepcopy, model), image_shape)["inference"]
    return {"inference": inference, "state": digest(value for _, value in sorted(model.state_dict().items()))}


def probe(build: Callable[[], nn.Module], image_shape: tuple[int, int, int]) -> dict[str, str]:
    """Digests of what a network computes.

    Returns:
        `inference`: keys and shapes of its state, and its outputs in eval mode. `training`: its outputs and buffers in
        training mode (dropout, batch-norm momentum). `initialisation`: its random weights under a fixed seed.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        initial = digest(value for _, value in sorted(model.state_dict().items()))
        images = _pattern((IMAGES, *image_shape), "images")
        try:
            outputs = _outputs(_filled(model).double(), images)
        except Exception:  # a network may do anything, for instance insist on single precision: then bit by bit
            torch.manual_seed(0)
            outputs = _outputs(build(), images.float(), digits=None)
    return {**outputs, "initialisation": initial}


_probed_before = functools.lru_cache(maxsize=16)(probe)


def _outputs(model: nn.Module, images: Tensor, digits: int | None = DIGITS) -> dict[str, str]:
    state = "; ".join(f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    logits = list(_tensors(model.eval()(images)))
    if digits is not None and not all(value.isfinite().all() and value.std() > 0 for value in logits):
        raise ArithmeticError("The pattern of weights says nothing about this network.")
    inference = digest(logits, state, digits)
    torch.manual_seed(0)  # of dropout
    trained = [*_tensors(model.train()(images)), *(buffer for _, buffer in sorted(model.named_buffers()))]
    return {"inference": inference, "training": digest(trained, inference, digits)}


def _filled(model: nn.Module) -> nn.Module:
    """The model with a fixed pattern in place of its state, of a size that lets signals through."""
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        pattern = _pattern(tuple(value.shape), name)
        if value.dim() > 1:
            pattern = pattern * math.sqrt(6 / max(1, value[0].numel()))  # He et al. 2015, uniform
        elif name.endswith(("running_var", "weight")):
            pattern = 1 + pattern / 2
        value.copy_(pattern)
    return model


def _pattern(shape: tuple[int, ...], name: str) -> Tensor:
    # Random integers, divided by a power of two: the same on every machine, as normal numbers are not.
    generator = torch.Generator().manual_seed(derive_seed(0, "probe", name))
    return torch.randint(-(2**20), 2**20 + 1, shape, generator=generator).double() / 2**20


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for _, value in sorted(output.items()):
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def digest(values: Iterable[Tensor], text: str = "", digits: int | None = None) -> str:
    """A digest of tensors, bit by bit or rounded to so many digits of each one's largest value."""
    found = hashlib.sha256(text.encode())
    for value in values:
        value = value.detach().cpu().contiguous()
        if digits is not None and value.is_floating_point():
            scale = value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
            value = (value / scale * 10**digits).round().long()
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
