"""The inner loop of an inversion: plain PyTorch, one batch of images from noise to dream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.errors import InversionError
from dfkd.inversion.objective import InversionObjective
from dfkd.training.optimizer import learning_rate_factor

CHECKS_PER_BATCH = 20


@dataclass(frozen=True)
class OptimisedBatch:
    """Images (B, C, H, W) of the iteration with the lowest loss, and the terms' course: rows with `iteration`."""

    images: Tensor
    history: list[dict[str, float]]


def optimise(
    images: Tensor,
    labels: Tensor,
    objective: InversionObjective,
    generator: torch.Generator,
    valid_range: tuple[Tensor, Tensor] | None = None,
    on_check: Callable[[int, dict[str, float]], None] | None = None,
) -> OptimisedBatch:
    """Minimise the objective over `images` with Adam, and keep those of the lowest loss.

    At each iteration the batch is shifted circularly by up to `jitter` pixels and perhaps mirrored, the same for
    all its images; the shift is drawn from `generator` (a CPU one, so that all devices see the same shifts).

    Args:
        images: the start, (B, C, H, W) in the teacher's normalised input space; left as it is.
        labels: target classes, (B,).
        objective: the loss, from `inversion_objective`.
        generator: source of jitter and flips.
        valid_range: lowest and highest valid input, each (C, 1, 1); images are clipped to it after each step.
        on_check: called about 20 times with the iteration and the terms' values.

    Raises:
        InversionError: the loss was not finite. The device is asked at the checks only, so that it never waits.
    """
    recipe = objective.recipe
    images = images.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2))
    factor = learning_rate_factor(recipe.schedule, recipe.iterations, recipe.warmup_iterations)
    best_images = images.detach().clone()
    best_loss = torch.full((), float("inf"), device=images.device)
    all_finite = torch.ones((), dtype=torch.bool, device=images.device)
    check_every = max(1, recipe.iterations // CHECKS_PER_BATCH)
    history: list[dict[str, float]] = []

    for iteration in range(recipe.iterations):
        terms = objective(_augment(images, recipe.jitter, recipe.flip, generator), labels)
        total = terms["total"]
        (images.grad,) = torch.autograd.grad(total, images)
        with torch.no_grad():
            loss = total.detach().float()
            torch.where(loss < best_loss, images, best_images, out=best_images)
            best_loss = torch.minimum(best_loss, loss)
            all_finite &= loss.isfinite()
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor(iteration)
        optimizer.step()
        if valid_range is not None:
            with torch.no_grad():
                torch.clamp(images, *valid_range, out=images)
        if iteration % check_every == 0 or iteration == recipe.iterations - 1:
            values = {name: float(value.detach()) for name, value in terms.items()}
            if not all_finite:
                raise InversionError(
                    f"The inversion loss was not finite by iteration {iteration} ({values}). "
                    "Lower inversion.learning_rate or inversion.feature_weight; with half precision try "
                    "trainer.precision=32-true."
                )
            history.append({"iteration": iteration, **values})
            if on_check is not None:
                on_check(iteration, values)
    return OptimisedBatch(best_images, history)


def _augment(images: Tensor, jitter: int, flip: bool, generator: torch.Generator) -> Tensor:
    if jitter:
        shifts = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, shifts=shifts, dims=(2, 3))
    if flip and torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    return images
