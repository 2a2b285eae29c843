"""One step of an inversion as the published code does it, written plainly: what the engine is compared with.

Hooks take two-pass statistics, gradients of the teacher's weights are computed and thrown away, and every iteration
waits for the loss. The mathematics is that of `dfkd.inversion`, from the same formulas; nothing here is shared with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.inversion import InversionRecipe

# The published objective, start and optimiser, as far as the default recipe differs from them. Rates and numbers of
# iterations are the setting's own.
PUBLISHED: dict[str, Any] = {
    "start": "noise",
    "restarts": 0,
    "jitter": 2,
    "feature_form": "norm",
    "feature_weight": 10.0,
    "label_weight": 1.0,
    "tv_l2_weight": 2.5e-5,
    "beta1": 0.9,
    "beta2": 0.999,
}


class PublishedInversion:
    """DeepInversion of one batch: cross-entropy, R_feature and TV_l2, by Adam, with jitter.

    Args:
        teacher: in eval mode; its weights ask for gradients, as in the published code.
        images: the start, (B, C, H, W).
        labels: (B,).
        recipe: learning rate, betas, feature_weight, tv_l2_weight and jitter are read from it.
        generator: source of the jitter.
    """

    def __init__(
        self, teacher: nn.Module, images: Tensor, labels: Tensor, recipe: InversionRecipe, generator: torch.Generator
    ) -> None:
        self.teacher, self.labels, self.recipe, self.generator = teacher, labels, recipe, generator
        self.images = images.clone().requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.images], recipe.learning_rate, betas=(recipe.beta1, recipe.beta2))
        self.distances: list[Tensor] = []
        self.best = float("inf")
        for layer in teacher.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._measure)

    def step(self) -> float:
        """One iteration; its loss."""
        jitter = self.recipe.jitter_at(*self.images.shape[2:])
        shifts = torch.randint(-jitter, jitter + 1, (2,), generator=self.generator).tolist()
        seen = torch.roll(self.images, shifts=shifts, dims=(2, 3))
        self.distances.clear()
        self.optimizer.zero_grad()
        self.teacher.zero_grad()
        loss = F.cross_entropy(self.teacher(seen), self.labels)
        loss = loss + self.recipe.feature_weight * sum(self.distances)
        loss = loss + self.recipe.tv_l2_weight * _total_variation(seen)
        value = loss.item()
        if value < self.best:
            self.best, self.best_images = value, self.images.data.clone()
        loss.backward()
        self.optimizer.step()
        return value

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        distance = torch.norm(variance - layer.running_var, 2) + torch.norm(mean - layer.running_mean, 2)
        self.distances.append(distance)


def _total_variation(x: Tensor) -> Tensor:
    differences = (
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1, :] - x[:, :, 1:, :],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
    )
    return sum(torch.norm(difference) for difference in differences)
