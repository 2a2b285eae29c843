"""What class-incremental learning minimises: pure functions of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.distillation.losses import distillation_loss
from dfkd.precision import widened


def incremental_losses(
    new_logits: Tensor,
    labels: Tensor,
    old_logits: Tensor,
    dream_logits: Tensor,
    old_dream_logits: Tensor,
    t: float,
    separate_heads: bool = False,
) -> dict[str, Tensor]:
    """The three terms of DeepInversion's class-incremental learning, without their weights.

    `dreams`: t^2 KL(old || new) on dreams, over all classes; the old network gives the new ones no chance. `new`:
    cross-entropy of the new images, over all classes. `old`: t^2 KL(old || new) on the new images, over the old
    classes alone.

    Args:
        new_logits: (B, old + new) of the learning network on the new images.
        labels: their classes (B,), in [0, old + new).
        old_logits: (B, old) of the old network on them.
        dream_logits: (D, old + new) of the learning network on dreams.
        old_dream_logits: (D, old) of the old network on them.
        t: temperature, above 0.
        separate_heads: `new` is over the new classes alone, and `dreams` over the old ones alone.
    """
    classes = old_logits.shape[1]
    first = classes if separate_heads else 0
    seen = dream_logits[:, :classes] if separate_heads else dream_logits
    predicted = F.log_softmax(widened(seen) / t, 1)[:, :classes]
    expected = F.log_softmax(widened(old_dream_logits) / t, 1)
    return {
        "dreams": t**2 * F.kl_div(predicted, expected, reduction="batchmean", log_target=True),
        "new": F.cross_entropy(new_logits[:, first:], labels - first),
        "old": distillation_loss(new_logits[:, :classes], old_logits, t),
    }


def class_weights(labels: Tensor) -> Tensor:
    """n / (k n_y) for labels (n,) of k different classes, n_y of class y: each class counts the same, the mean is 1."""
    counts = labels.bincount()
    return len(labels) / ((counts > 0).sum() * counts[labels].to(torch.float32))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean of w_i CE(logits_i, label_i) over images with weights (B,)."""
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()
