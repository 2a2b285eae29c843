"""The inner loop of an inversion: plain PyTorch, one batch of images from noise to dream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.errors import InversionError
from dfkd.inversion.gradient import ObjectiveGradient
from dfkd.inversion.objective import InversionObjective
from dfkd.inversion.recipe import InversionRecipe
from dfkd.training.optimizer import learning_rate_factor

CHECKS_PER_BATCH = 20

OnCheck = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class OptimisedBatch:
    """Images (B, C, H, W) of the iteration with the lowest loss, and the terms' history: rows with `iteration`."""

    images: Tensor
    history: list[dict[str, float]]


def optimise(
    images: Tensor,
    labels: Tensor,
    objective: InversionObjective | ObjectiveGradient,
    generator: torch.Generator,
    valid_range: tuple[Tensor, Tensor] | None = None,
    on_check: OnCheck | None = None,
) -> OptimisedBatch:
    """Minimise the objective over `images` with Adam, and keep those of the lowest loss.

    At each iteration the batch is shifted circularly by up to `jitter` pixels and perhaps mirrored, the same for
    all its images; the shift is drawn from `generator` (a CPU one, so that all devices see the same shifts). Where
    the recipe says so, a first stage sees the images at half resolution; the second starts from its best.

    Args:
        images: the start, (B, C, H, W) in the teacher's normalised input space; left as it is.
        labels: target classes, (B,).
        objective: the loss, from `inversion_objective`; or a way to differentiate it.
        generator: source of jitter and flips.
        valid_range: lowest and highest valid input, each broadcastable to (C, 1, 1); images are clipped to it after
            each step.
        on_check: called about 20 times with the iteration and the terms' values.

    Raises:
        InversionError: the loss was not finite. The device is asked at the checks only, so that it never waits.
    """
    gradient = objective if isinstance(objective, ObjectiveGradient) else ObjectiveGradient(objective)
    recipe = gradient.objective.recipe
    history: list[dict[str, float]] = []
    check_every = max(1, recipe.total_iterations // CHECKS_PER_BATCH)

    def check(iteration: int, terms: dict[str, Tensor], all_finite: Tensor) -> None:
        if iteration % check_every and iteration != recipe.total_iterations - 1:
            return
        values = {name: float(value) for name, value in terms.items()}
        if not all_finite:
            raise InversionError(
                f"The inversion loss was not finite by iteration {iteration} ({values}). "
                "Lower inversion.learning_rate or inversion.feature_weight; with half precision try "
                "trainer.precision=32-true."
            )
        history.append({"iteration": iteration, **values})
        if on_check is not None:
            on_check(iteration, values)

    for resolution in _resolutions(recipe):
        images = _optimise_at(resolution, images, labels, gradient, generator, valid_range, check)
    return OptimisedBatch(images, history)


class _Resolution(NamedTuple):
    """One stage of an inversion: its first iteration, how many there are, and how far the images are pooled."""

    first: int
    iterations: int
    pooling: int


def _resolutions(recipe: InversionRecipe) -> list[_Resolution]:
    half = recipe.half_resolution_iterations
    full = _Resolution(half, recipe.iterations, 1)
    return [_Resolution(0, half, 2), full] if half else [full]


def _optimise_at(
    resolution: _Resolution,
    images: Tensor,
    labels: Tensor,
    gradient: ObjectiveGradient,
    generator: torch.Generator,
    valid_range: tuple[Tensor, Tensor] | None,
    check: Callable[[int, dict[str, Tensor], Tensor], None],
) -> Tensor:
    first, iterations, pooling = resolution
    recipe = gradient.objective.recipe
    # The images keep the usual format whatever the network's: of 3 channels, the priors are faster in it.
    images = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)
    factor = learning_rate_factor(recipe.schedule, iterations, recipe.warmup_iterations)
    best_images = images.detach().clone()
    best_loss = torch.full((), float("inf"), device=images.device)
    all_finite = torch.ones((), dtype=torch.bool, device=images.device)

    for iteration in range(iterations):
        # The network sees a leaf of its own; what was done to the images is undone on the gradient.
        view = _view(images, pooling, recipe.jitter // pooling, recipe.flip, generator)
        terms, view_gradient = gradient(view.detach(), labels)
        if view is not images:
            (view_gradient,) = torch.autograd.grad(view, images, view_gradient)
        images.grad = view_gradient.contiguous()  # fused Adam reads both as one memory format
        with torch.no_grad():
            loss = terms["total"].float()
            torch.where(loss < best_loss, images, best_images, out=best_images)
            best_loss = torch.minimum(best_loss, loss)
            all_finite &= loss.isfinite()
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor(iteration)
        optimizer.step()
        if valid_range is not None:
            with torch.no_grad():
                torch.clamp(images, *valid_range, out=images)
        check(first + iteration, terms, all_finite)
    return best_images


def _view(images: Tensor, pooling: int, jitter: int, flip: bool, generator: torch.Generator) -> Tensor:
    if pooling > 1:
        images = F.avg_pool2d(images, pooling)
    if jitter:
        shifts = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, shifts=shifts, dims=(2, 3))
    if flip and torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    return images
