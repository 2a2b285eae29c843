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
    logit_weight: float = 0.0,
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
        separate_heads: `new` is over the new classes alone, and `dreams` over the old ones alone, as `kept`.
        logit_weight: of `kept`, for the terms that are over the old classes alone.
    """
    classes = old_logits.shape[1]
    first = classes if separate_heads else 0
    if separate_heads:
        dreams = kept(dream_logits, old_dream_logits, t, logit_weight)
    else:
        predicted = F.log_softmax(widened(dream_logits) / t, 1)[:, :classes]
        expected = F.log_softmax(widened(old_dream_logits) / t, 1)
        dreams = t**2 * F.kl_div(predicted, expected, reduction="batchmean", log_target=True)
    return {
        "dreams": dreams,
        "new": F.cross_entropy(new_logits[:, first:], labels - first),
        "old": kept(new_logits, old_logits, t, logit_weight),
    }


def kept(logits: Tensor, old_logits: Tensor, t: float, logit_weight: float = 0.0) -> Tensor:
    """How far a network is from what the old one says about the old classes, the first.

    t^2 KL(old || new) over the old classes; or with a `logit_weight` w the mean over images and old classes of
    w (old - new)^2, in which the size of the logits counts as well (Always Be Dreaming, Smith et al. 2021).

    Args:
        logits: (B, old + new) of the learning network.
        old_logits: (B, old) of the old network.
        t: temperature, above 0.
        logit_weight: w, 0 or more.
    """
    seen = logits[:, : old_logits.shape[1]]
    if logit_weight:
        return logit_weight * F.mse_loss(widened(seen), widened(old_logits))
    return distillation_loss(seen, old_logits, t)


def turned_losses(logits: Tensor, turned_logits: Tensor, labels: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies of upright and of turned images, where each class and quarter turn is a class of its own (SLA).

    Args:
        logits: (B, 4 k) of the upright images: first the k classes, then each class by its three turns.
        turned_logits: (B, 4 k) of the same images turned.
        labels: their classes (B,), in [0, k).
        turns: by how many quarters (B,), 1 to 3.
    """
    classes = logits.shape[1] // 4
    turned = F.cross_entropy(turned_logits, classes + 3 * labels + turns - 1)
    return F.cross_entropy(logits, labels), turned


def class_weights(labels: Tensor) -> Tensor:
    """n / (k n_y) for labels (n,) of k different classes, n_y of class y: each class counts the same, the mean is 1."""
    counts = labels.bincount()
    return len(labels) / ((counts > 0).sum() * counts[labels].to(torch.float32))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean of w_i CE(logits_i, label_i) over images with weights (B,)."""
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()
