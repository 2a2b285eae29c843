"""The terms of the inversion objective as pure functions of tensors.

Source: Yin et al., *Dreaming to Distill*, CVPR 2020 (DI), sections 3.2 and 3.3; the label-free form is from
Tripurwar et al. 2025 (PPR). Shapes: images are (B, C, H, W), logits (B, classes); every term is a scalar.

Two norms are offered where the published code takes a norm over the whole batch tensor, because that makes a
coefficient's meaning depend on the batch size: `batch` is the published form, `image` the mean over images of the
per-image norm, whose coefficients carry over between batch sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.precision import widened

NORMS = ("batch", "image")
REDUCTIONS = ("mean", "sum")


def shifted_differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differences between the images and their one-pixel shifts: horizontal, vertical and both diagonals."""
    return (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )


def norm(x: Tensor, kind: str) -> Tensor:
    """L2 norm of the whole tensor (`batch`), or the mean over the first axis of the norm of each entry (`image`)."""
    if kind == "batch":
        whole: Tensor = torch.linalg.vector_norm(x)
        return whole
    each: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return each.mean()


def total_variation_l2(images: Tensor, kind: str = "batch") -> Tensor:
    """TV_l2 = sum over the four shifts d of ||x - shift_d(x)||_2 (DI, eq. 3; `kind` as in `norm`)."""
    if kind == "batch":
        total: Tensor = _BatchTotalVariation.apply(images)
        return total
    return torch.stack([norm(difference, kind) for difference in shifted_differences(images)]).sum()


class _BatchTotalVariation(torch.autograd.Function):
    """TV_l2 of a whole batch with its gradient as one convolution: D'D is the grid's Laplacian, weighted by shift."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(difference) for difference in shifted_differences(images)])
        ctx.save_for_backward(images, norms)
        return norms.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        images, norms = ctx.saved_tensors
        across, down, rising, falling = torch.where(norms > 0, gradients[0] / norms, 0).unbind()
        rows = falling, down, rising, across, torch.zeros_like(down), across, rising, down, falling
        channels = images.shape[1]
        kernel = torch.stack(rows).view(1, 1, 3, 3).repeat(channels, 1, 1, 1)
        with torch.autocast(images.device.type, enabled=False):  # in half precision the difference is rounding
            degrees = F.conv2d(torch.ones_like(images[:1]), kernel, padding=1, groups=channels)
            gradient: Tensor = degrees * images - F.conv2d(images, kernel, padding=1, groups=channels)
        return gradient


def total_variation_l1(images: Tensor, reduction: str = "mean") -> Tensor:
    """TV_l1 = sum over the four shifts d of mean |x - shift_d(x)| (DI), or of the sum in place of the mean (PPR)."""
    parts = [difference.abs() for difference in shifted_differences(images)]
    return torch.stack([part.sum() if reduction == "sum" else part.mean() for part in parts]).sum()


def image_l2(images: Tensor, kind: str = "batch") -> Tensor:
    """L2 = ||x||_2 (DI, eq. 3): over the batch (CIFAR form) or the mean per image (ImageNet form)."""
    return norm(images, kind)


def feature_distance(
    statistics: Sequence[tuple[Tensor, Tensor]],
    running: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
) -> Tensor:
    """R_feature = sum over layers l of w_l (||mean_l - running_mean_l||_2 + ||var_l - running_var_l||_2) (DI, eq. 4).

    Args:
        statistics: per batch-norm layer the batch's (mean, biased variance), each (C_l,).
        running: the layers' (running_mean, running_var).
        weights: w_l.
    """
    terms = [
        weight * (torch.linalg.vector_norm(mean - running_mean) + torch.linalg.vector_norm(variance - running_var))
        for (mean, variance), (running_mean, running_var), weight in zip(statistics, running, weights, strict=True)
    ]
    return torch.stack(terms).sum()


def feature_divergence(
    statistics: Sequence[tuple[Tensor, Tensor]],
    running: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    eps: Sequence[float],
) -> Tensor:
    """Mean over layers l, weighted by w_l, and channels of KL(N(mean, var) || N(running_mean, running_var)) in nats.

    Per channel that is ((mean - M)^2 + var) / 2V - 1/2 - ln(var / V) / 2 with M and V the running statistics, where
    each variance has the layer's eps added, as in batch norm itself. Unlike `feature_distance` it does not change with
    the units of a channel, nor with the numbers of channels and layers.

    Args:
        statistics, running, weights: as in `feature_distance`.
        eps: the layers' eps.
    """
    terms = []
    for (mean, variance), (running_mean, running_var), least in zip(statistics, running, eps, strict=True):
        precision = (running_var + least).reciprocal()
        ratio = (variance + least) * precision
        terms.append(0.5 * ((mean - running_mean).square() * precision + ratio - 1 - ratio.log()).mean())
    shares = torch.tensor(weights, dtype=terms[0].dtype, device=terms[0].device)
    return (shares * torch.stack(terms)).sum() / shares.sum().clamp_min(1e-12)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits) in nats: the label-free main term of PPR."""
    log_p = F.log_softmax(widened(logits), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def jensen_shannon(logits_p: Tensor, logits_q: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of JS(softmax(p/t), softmax(q/t)) = KL(p||m)/2 + KL(q||m)/2, m = (p + q)/2, in nats.

    Computed in log space and float32, so it is exact, finite and differentiable however close to one-hot the outputs
    are, or to each other.
    """
    log_p = F.log_softmax(widened(logits_p) / temperature, dim=1)
    log_q = F.log_softmax(widened(logits_q) / temperature, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    divergence = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * divergence.sum(dim=1).mean()


def competition(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """R_compete = 1 - JS(teacher, student) (DI, eq. 8): small where teacher and student disagree."""
    return 1.0 - jensen_shannon(teacher_logits, student_logits, temperature)
