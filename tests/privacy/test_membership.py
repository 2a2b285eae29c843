"""The statistics of an audit, and that it finds what is there and nothing else."""

from __future__ import annotations

import pytest
import torch

from dfkd.privacy.comparison import Pools, coarse, compare, standardised
from dfkd.privacy.membership import auc, bootstrap, effective_count, nearest, true_positives
from dfkd.procedural import pictures

SHAPE = (3, 8, 8)


def test_the_auc_is_the_share_of_pairs_in_order():
    members, others = torch.randint(0, 6, (40,)).float(), torch.randint(0, 5, (30,)).float()
    pairs = members[:, None] - others[None]
    expected = ((pairs > 0).double() + (pairs == 0).double() / 2).mean().item()
    assert auc(members, others) == pytest.approx(expected) == pytest.approx(1 - auc(others, members))
    assert auc(members + 10, others) == 1 and auc(others, others) == 0.5


def test_true_positives_are_counted_beyond_all_but_one_percent_of_the_others():
    others = torch.arange(200.0)  # two of which may be above the threshold, 197
    assert true_positives(torch.tensor([196.0, 197.0, 198.0, 500.0]), others) == 0.5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for _ in range(40):
        members, others = torch.randn(80) + 1, torch.randn(80)
        low, high = bootstrap(auc, members, others, seed=0)
        held += low < 0.7602 < high  # the normal distribution at 1 / sqrt(2)
    assert 34 <= held <= 40
    assert bootstrap(auc, members, others, seed=0) == (low, high) != bootstrap(auc, members, others, seed=1)


def test_the_nearest_are_found_both_ways_over_all_forms():
    images, forms = torch.randn(2300, 3), [torch.randn(50, 3), torch.randn(50, 3)]
    distances, places, closest = nearest(images, forms)
    whole = torch.stack([torch.cdist(images, form) for form in forms]).amin(0)
    assert torch.equal(distances, whole.min(1).values) and torch.equal(places, whole.min(1).indices)
    assert torch.equal(closest, whole.min(0).indices)


def test_dreams_of_one_image_count_as_one_draw():
    assert effective_count(torch.arange(10)) == 10
    assert effective_count(torch.zeros(10, dtype=torch.long)) == 1
    assert 1 < effective_count(torch.tensor([0, 0, 0, 1])) < 2


def pools(dreams: torch.Tensor, seed: int = 1) -> Pools:
    """Procedural pictures as real images of one kind."""
    real = pictures(400, SHAPE, seed)
    return Pools(real[:200], real[200:], dreams, pictures(len(dreams), SHAPE, seed + 1000))


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_found_out_under_noise(mirrored):
    copied = pools(torch.zeros(0, *SHAPE)).members[:100]
    copied = (copied.flip(3) if mirrored else copied) + 0.1 * torch.randn(100, *SHAPE)
    found = compare(pools(copied.clamp(0, 1)), standardised, 0).found
    assert found["interval"][0] > 0.6 and found["auc"] > found["interval"][0]
    assert found["true_positives"] > 0.3
    assert found["dreams_by_members"]["share"] > 0.9 and found["dreams_by_members"]["interval"][0] > 0.5


def test_unrelated_pictures_tell_nothing():
    held = {"auc": 0, "share": 0}
    for seed in range(10):
        dreams = pictures(200, SHAPE, seed + 2000)
        found = compare(pools(dreams, seed), standardised, 0).found
        for name, (low, high) in (
            ("auc", found["interval"]),
            ("share", found["dreams_by_members"]["interval"]),
        ):
            held[name] += low < 0.5 < high and high - low < 0.3
        assert found["true_positives"] < 0.06
    assert min(held.values()) >= 8  # of ten intervals of 95 %


def test_dreams_of_the_others_tell_the_contrary():
    others = pools(torch.zeros(0, *SHAPE)).others
    found = compare(pools(others), standardised, 0).found
    assert found["auc"] == 0 and found["dreams_by_members"]["share"] == 0


def test_brightness_and_contrast_do_not_count():
    images = pictures(5, SHAPE, seed=1)
    torch.testing.assert_close(standardised(0.3 * images + 0.5), standardised(images))
    correlation = torch.corrcoef(images[:2].flatten(1))[0, 1]
    distance = (standardised(images)[0] - standardised(images)[1]).square().sum()
    torch.testing.assert_close(distance, 2 - 2 * correlation)
    assert coarse(pictures(2, (3, 32, 20), seed=1)).shape == (2, 3, 8, 8)


def test_of_few_members_others_may_be_more():
    whole = pools(pictures(200, SHAPE, seed=5))
    few = Pools(whole.members[:50], whole.others, whole.dreams, whole.control)
    assert compare(few, standardised, 0).found["dreams_by_members"]["expected"] == 0.2
