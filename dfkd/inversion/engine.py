"""The inner loop of an inversion: plain PyTorch, one batch of images from noise to dream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.errors import InversionError
from dfkd.inversion.checkpoint import BatchCheckpoint, BatchState
from dfkd.inversion.gradient import ObjectiveGradient
from dfkd.inversion.objective import InversionObjective
from dfkd.inversion.recipe import InversionRecipe
from dfkd.training.optimizer import learning_rate_factor

CHECKS_PER_BATCH = 20
AT_ONCE = 64  # images through the teacher

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
    checkpoint: BatchCheckpoint | None = None,
) -> OptimisedBatch:
    """Minimise the objective over `images` with Adam, and keep those of the lowest loss.

    At each iteration the batch is shifted circularly by up to `jitter` pixels and perhaps mirrored, the same for
    all its images; the shift is drawn from `generator` (a CPU one, so that all devices see the same shifts). Where
    the recipe says so, a first stretch sees the images at half resolution; the second starts from its best. Further
    stretches follow, each with twice the weight on the labels, until the teacher sees `label_share` of the images as
    their label, or there were `restarts` of them.

    Args:
        images: the start, (B, C, H, W) in the teacher's normalised input space; left as it is.
        labels: target classes, (B,).
        objective: the loss, from `inversion_objective`; or a way to differentiate it.
        generator: source of jitter and flips.
        valid_range: lowest and highest valid input, each broadcastable to (C, 1, 1); images are clipped to it after
            each step.
        on_check: called about 20 times per stretch with the iteration and the terms' values; first with those of the
            batch that is continued.
        checkpoint: where a batch that was interrupted is continued from, and where it is kept now and then.

    Raises:
        InversionError: the loss was not finite. The device is asked at the checks only, so that it never waits.
    """
    gradient = objective if isinstance(objective, ObjectiveGradient) else ObjectiveGradient(objective)
    recipe = gradient.objective.recipe
    kept = None if checkpoint is None else checkpoint.load(images.device)
    state = kept or BatchState.beginning(images, generator)
    generator.set_state(state.generator)
    if on_check is not None:
        for row in state.history:  # of the part that an interrupted call made
            on_check(int(row["iteration"]), {name: value for name, value in row.items() if name != "iteration"})
    check_every = max(1, recipe.total_iterations // CHECKS_PER_BATCH)

    def check(number: int, iteration: int, terms: dict[str, Tensor]) -> None:
        """`number` counts the iterations of all stretches, `iteration` those of this one."""
        if iteration % check_every and iteration != stretch.iterations - 1:
            return
        values = {name: float(value) for name, value in terms.items()}
        if not state.all_finite:
            raise InversionError(
                f"The inversion loss was not finite by iteration {number} ({values}). "
                "Lower inversion.learning_rate or inversion.feature_weight; with half precision try "
                "trainer.precision=32-true."
            )
        state.history.append({"iteration": number, **values})
        if on_check is not None:
            on_check(number, values)

    first = 0
    for number, stretch in enumerate(_stretches(recipe)):
        if number == state.stretch:
            begins = stretch.restart > 0 and state.iteration == 0
            if begins and _share_seen(gradient, state.images, labels) >= recipe.label_share:
                break
            with gradient.objective.labels_weighed(2.0**stretch.restart):
                _optimise_stretch(stretch, first, state, labels, gradient, generator, valid_range, check, checkpoint)
            state.next_stretch()
        first += stretch.iterations
    return OptimisedBatch(state.images, state.history)


class _Stretch(NamedTuple):
    """Iterations with a schedule of their own: how many, how far the images are pooled, which restart it is (or 0)."""

    iterations: int
    pooling: int = 1
    restart: int = 0


def _stretches(recipe: InversionRecipe) -> list[_Stretch]:
    half = [_Stretch(recipe.half_resolution_iterations, pooling=2)] if recipe.half_resolution_iterations else []
    return [*half, *(_Stretch(recipe.iterations, restart=restart) for restart in range(recipe.most_restarts + 1))]


@torch.no_grad()
def _share_seen(gradient: ObjectiveGradient, images: Tensor, labels: Tensor) -> float:
    """Share of the images, as they would be stored, that the teacher gives their label."""
    objective = gradient.objective
    size = min(AT_ONCE, -(-len(images) // gradient.parts))
    with objective.recorded():
        seen = [objective.teacher(part.half().to(part.dtype)).argmax(1) for part in images.split(size)]
    return (torch.cat(seen) == labels).double().mean().item()


def _optimise_stretch(
    stretch: _Stretch,
    first: int,
    state: BatchState,
    labels: Tensor,
    gradient: ObjectiveGradient,
    generator: torch.Generator,
    valid_range: tuple[Tensor, Tensor] | None,
    check: Callable[[int, int, dict[str, Tensor]], None],
    checkpoint: BatchCheckpoint | None,
) -> None:
    recipe = gradient.objective.recipe
    jitter = recipe.jitter_at(*state.images.shape[2:]) // stretch.pooling
    images = state.images.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)
    if state.moments:
        optimizer.state[images] = state.moments
    factor = learning_rate_factor(recipe.schedule, stretch.iterations, recipe.warmup_iterations)

    for iteration in range(state.iteration, stretch.iterations):
        # The network sees a leaf of its own; what was done to the images is undone on the gradient.
        view = _view(images, stretch.pooling, jitter, recipe.flip, generator)
        terms, view_gradient = gradient(view.detach(), labels)
        if view is not images:
            (view_gradient,) = torch.autograd.grad(view, images, view_gradient)
        images.grad = view_gradient.contiguous()  # fused Adam reads both as one memory format
        with torch.no_grad():
            loss = terms["total"].float()
            torch.where(loss < state.best_loss, images, state.best_images, out=state.best_images)
            state.best_loss = torch.minimum(state.best_loss, loss)
            state.all_finite &= loss.isfinite()
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor(iteration)
        optimizer.step()
        if valid_range is not None:
            with torch.no_grad():
                torch.clamp(images, *valid_range, out=images)
        check(first + iteration, iteration, terms)
        if checkpoint is not None and checkpoint.due():
            state.iteration, state.moments, state.generator = (
                iteration + 1, optimizer.state[images], generator.get_state(),
            )  # fmt: skip
            checkpoint.save(state)


def _view(images: Tensor, pooling: int, jitter: int, flip: bool, generator: torch.Generator) -> Tensor:
    if pooling > 1:
        images = F.avg_pool2d(images, pooling)
    if jitter:
        shifts = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        images = torch.roll(images, shifts=shifts, dims=(2, 3))
    if flip and torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    return images
