"""Augmentation: what it may do to an image, and that the seed alone decides it."""

from __future__ import annotations

import pytest
import torch

from dfkd.training.augmentation import cutmix, mixup


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


def test_a_pasted_box_is_of_another_image_and_its_area_is_uniform():
    images = torch.arange(2000.0)[:, None, None, None].expand(-1, 2, 20, 10)
    mixed = cutmix(images, 1.0)
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    changed = mixed[:, 0] != images[:, 0]
    assert all(len(image.unique()) <= 2 for image in mixed)
    for inside in changed[changed.any(2).any(1)][:50]:
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        assert inside.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)  # one box
    assert 0.2 < changed.float().mean() < 0.4  # half, less what the rims cut off


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_the_share_says_how_many_images_are_mixed(mix):
    images = torch.randn(4000, 1, 16, 16)
    changed = (mix(images, 0.25) != images).flatten(1).any(1).float().mean().item()
    assert 0.2 < changed < 0.3
    assert torch.equal(mix(images, 0.0), images)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_the_seed_decides(mix):
    images = torch.randn(8, 1, 4, 4)
    torch.manual_seed(3)
    first = mix(images, 0.5)
    torch.manual_seed(3)
    assert torch.equal(mix(images, 0.5), first)
