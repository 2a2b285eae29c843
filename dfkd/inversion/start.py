"""What an inversion starts from: noise, procedural pictures, or dreams that were made before."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dfkd.dreams.bank import Dreams
from dfkd.errors import ConfigError
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.input_spec import InputSpec
from dfkd.procedural import pictures
from dfkd.seeding import derive_seed

AT_ONCE = 64  # images through the teacher


def start_images(
    recipe: InversionRecipe,
    labels: Tensor,
    spec: InputSpec,
    seed: int,
    generator: torch.Generator,
    teacher: nn.Module,
    earlier: Dreams | None = None,
) -> Tensor:
    """The images (B, C, H, W) that a batch starts from, on the CPU, in normalised input space.

    Args:
        recipe: `start` says which: `noise` is N(0, 1), drawn from `generator` (DI); `procedural` are pictures of
            `start_families`, of which every label gets one of `start_candidates` times as many; `dreams` are drawn
            from `earlier`, with the batch's labels.
        labels: target classes, (B,), on the CPU.
        spec: the teacher's input.
        seed: of the batch.
        generator: the batch's, of noise and jitter.
        teacher: in eval mode; asked where there are candidates to choose from.
        earlier: dreams of the same teacher.

    Raises:
        ConfigError: `start` is `dreams` and there are none, or none of a label.
    """
    if recipe.start == "noise":
        return torch.randn(len(labels), *spec.image_shape, generator=generator)
    if recipe.start == "dreams":
        return _earlier_dreams(earlier, labels, derive_seed(seed, "earlier dreams"))
    count = recipe.start_candidates * len(labels)
    pixels = pictures(count, spec.image_shape, derive_seed(seed, "pictures"), recipe.start_families)
    candidates = spec.from_pixels(pixels)
    return candidates if count == len(labels) else candidates[best_candidates(teacher, candidates, labels)]


@torch.no_grad()
def best_candidates(teacher: nn.Module, candidates: Tensor, labels: Tensor) -> Tensor:
    """Which of `candidates` (M, C, H, W) becomes which of `labels` (B,), B <= M: indices (B,), each used once.

    It is the assignment with the highest sum of the teacher's log-probabilities of the labels. Every class gets its
    share of candidates, however few it would win by itself.
    """
    device = next(teacher.parameters()).device
    log_probabilities = torch.cat(
        [teacher(part.to(device)).float().log_softmax(1) for part in candidates.split(AT_ONCE)]
    )
    scores = log_probabilities.cpu()[:, labels].nan_to_num(
        nan=-1e4, neginf=-1e4
    )  # the loss will tell of such a network
    chosen, targets = linear_sum_assignment(scores.numpy(), maximize=True)
    return torch.from_numpy(chosen)[torch.from_numpy(targets).argsort()]


def _earlier_dreams(earlier: Dreams | None, labels: Tensor, seed: int) -> Tensor:
    if earlier is None:
        raise ConfigError("inversion.start is dreams, but no earlier dreams were given. Give some, or set it to noise.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(earlier), generator=generator)
    chosen = torch.empty_like(labels)
    for label in labels.unique():
        wanted = labels == label
        found = order[earlier.labels[order] == label]
        if not len(found):
            raise ConfigError(f"inversion.start is dreams, but no earlier dream is of class {int(label)}.")
        chosen[wanted] = found[torch.arange(int(wanted.sum())) % len(found)]
    return earlier.images[chosen].float()
