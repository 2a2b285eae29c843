"""Augmentation: what it may do to an image, and that the seed alone decides it."""

from __future__ import annotations

import torch

from dfkd.training.augmentation import mixup


def test_a_mixed_image_lies_between_itself_and_another():
    images = torch.randn(12, 3, 4, 4)
    mixed = mixup(images, 1.0)
    weights = []
    for image, result in zip(images, mixed, strict=True):
        candidates = []
        for other in images:
            line = image - other
            size = line.square().sum().clamp_min(1e-12)
            weight = ((result - other) * line).sum() / size
            candidates.append(((result - torch.lerp(other, image, weight)).abs().max().item(), weight.item()))
        error, weight = min(candidates)
        assert error < 1e-5
        weights.append(weight)
    assert all(-1e-5 <= weight <= 1 + 1e-5 for weight in weights) and len(set(weights)) > 6


def test_the_share_says_how_many_images_are_mixed():
    images = torch.randn(4000, 1, 1, 1)
    changed = (mixup(images, 0.25) != images).float().mean().item()
    assert 0.2 < changed < 0.3
    assert torch.equal(mixup(images, 0.0), images)


def test_the_seed_decides():
    images = torch.randn(8, 1, 2, 2)
    torch.manual_seed(3)
    first = mixup(images, 0.5)
    torch.manual_seed(3)
    assert torch.equal(mixup(images, 0.5), first)
