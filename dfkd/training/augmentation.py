"""Augmentation of a whole batch on its own device, drawn from the global generator that each update seeds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, crop_padding: int = 0, flip: bool = False) -> Tensor:
    """Each image of (B, C, H, W) padded by `crop_padding` zeros and cropped at random, and mirrored half of the time.

    Zero is the mean colour of a normalised input.
    """
    batch, _, height, width = images.shape
    if crop_padding:
        padded = F.pad(images, (crop_padding,) * 4).permute(0, 2, 3, 1)
        top = torch.randint(0, 2 * crop_padding + 1, (batch, 1), device=images.device)
        left = torch.randint(0, 2 * crop_padding + 1, (batch, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        index = torch.arange(batch, device=images.device)[:, None, None]
        images = padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        # A copy, and not `contiguous()`: of one channel that keeps strides which a network's `view` refuses.
        images = images.clone(memory_format=torch.contiguous_format)
    if flip:
        mirrored = torch.rand(batch, 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Each image of (B, C, S, S) turned by its number of quarters, `turns` (B,)."""
    turned = images.clone()
    for quarters in (1, 2, 3):
        turned[turns == quarters] = images[turns == quarters].rot90(quarters, (2, 3))
    return turned


def mixup(images: Tensor, share: float) -> Tensor:
    """`share` of the images of (B, C, H, W) blended with another of the batch: l a + (1 - l) b, l uniform in [0, 1].

    For distillation, where the teacher predicts the blend itself and no labels need mixing (Beyer et al. 2022).
    """
    batch, ones = len(images), [1] * (images.dim() - 1)
    weight = torch.rand(batch, *ones, device=images.device, dtype=images.dtype)
    chosen = torch.rand(batch, *ones, device=images.device) < share
    others = images[torch.randperm(batch, device=images.device)]
    return torch.where(chosen, torch.lerp(others, images, weight), images)


def cutmix(images: Tensor, share: float) -> Tensor:
    """`share` of the images of (B, C, H, W) with a box of another of the batch pasted in (Yun et al. 2019).

    The box has the image's proportions, an area uniform in [0, 1] of the image's, and any centre, cut at the rims. For
    distillation, as `mixup`: no labels need mixing.
    """
    return pasted_boxes(images, share)[0]


def pasted_boxes(images: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """`cutmix`, the place in the batch of the image that each one's box is of (B,), and the box's share of it (B,)."""
    batch, _, height, width = images.shape
    chosen = torch.rand(batch, 1, 1, device=images.device) < share
    side = torch.rand(batch, 1, 1, device=images.device).sqrt()
    top, left = torch.rand(2, batch, 1, 1, device=images.device)
    rows = (torch.arange(height, device=images.device)[:, None] + 0.5) / height
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    inside = ((rows - top).abs() < side / 2) & ((columns - left).abs() < side / 2) & chosen
    others = torch.randperm(batch, device=images.device)
    return torch.where(inside[:, None], images[others], images), others, inside.float().mean((1, 2))
