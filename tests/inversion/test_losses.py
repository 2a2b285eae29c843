"""Properties of the loss terms that no single reference value shows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.inversion import losses

sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9))


@settings(deadline=None, max_examples=25)
@given(sizes, st.floats(-3, 3))
def test_a_constant_image_has_no_total_variation(size, value):
    images = torch.full(size, value)
    assert losses.total_variation_l2(images) == 0
    assert losses.total_variation_l1(images) == 0


@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(2, 4))
def test_the_per_image_form_does_not_depend_on_the_batch_size(size, copies):
    images = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    repeated = images.repeat(copies, 1, 1, 1)
    for prior in (losses.total_variation_l2, losses.image_l2):
        torch.testing.assert_close(prior(repeated, "image"), prior(images, "image"))
        torch.testing.assert_close(prior(repeated, "batch"), prior(images, "batch") * math.sqrt(copies))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 30), st.floats(0.1, 200), st.floats(0.5, 10))
def test_jensen_shannon_is_symmetric_and_between_zero_and_ln_2(classes, scale, temperature):
    generator = torch.Generator().manual_seed(classes)
    p, q = scale * torch.randn(2, 6, classes, generator=generator, dtype=torch.float64)
    value = losses.jensen_shannon(p, q, temperature)
    torch.testing.assert_close(value, losses.jensen_shannon(q, p, temperature))
    assert -1e-12 <= value <= math.log(2) + 1e-12


def test_competition_keeps_a_gradient_at_a_thousand_classes_and_nearly_one_hot_outputs():
    teacher = torch.randn(4, 1000)
    teacher[:, 0] += 60.0
    student = torch.randn(4, 1000)
    student[:, 1] += 60.0
    teacher.requires_grad_(True)
    student.requires_grad_(True)
    value = losses.competition(teacher, student, temperature=3.0)
    gradients = torch.autograd.grad(value, (teacher, student))
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_entropy_is_zero_for_a_certain_and_ln_n_for_an_ignorant_network():
    assert losses.entropy(torch.tensor([[200.0, 0.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.entropy(torch.zeros(2, 7)).item() == pytest.approx(math.log(7), rel=1e-6)


def gaussian_statistics(channels=6, seed=0):
    mean, variance = torch.randn(2, 2, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [(mean[0], variance[0].exp())], [(mean[1], variance[1].exp())]


def test_the_divergence_is_that_of_gaussians_channel_by_channel():
    statistics, running = gaussian_statistics()
    batch, target = (torch.distributions.Normal(m, v.sqrt()) for ((m, v),) in (statistics, running))
    expected = torch.distributions.kl_divergence(batch, target).mean()
    torch.testing.assert_close(losses.feature_divergence(statistics, running, [1.0], [0.0]), expected)
    assert losses.feature_divergence(running, running, [1.0], [1e-5]) == pytest.approx(0, abs=1e-12)


def test_the_divergence_has_no_unit_and_does_not_grow_with_channels_or_layers():
    statistics, running = gaussian_statistics()
    value = losses.feature_divergence(statistics, running, [1.0], [0.0])
    units = torch.logspace(-4, 4, 6, dtype=torch.float64)
    scaled = [[(units * m, units.square() * v) for m, v in pairs] for pairs in (statistics, running)]
    torch.testing.assert_close(losses.feature_divergence(*scaled, [1.0], [0.0]), value)
    wider = [[(m.repeat(2), v.repeat(2)) for m, v in pairs] for pairs in (statistics, running)]
    torch.testing.assert_close(losses.feature_divergence(*wider, [1.0], [0.0]), value)
    torch.testing.assert_close(losses.feature_divergence(3 * statistics, 3 * running, [1.0] * 3, [0.0] * 3), value)


def test_a_channel_that_never_moves_has_a_finite_divergence_and_gradient():
    still = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    running = torch.zeros(2), torch.tensor([0.0, 1.0])
    value = losses.feature_divergence([still], [running], [1.0], [1e-5])
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, still))


def test_weights_of_layers_are_shares_of_the_divergence():
    (first,), (target,) = gaussian_statistics()
    (second,), _ = gaussian_statistics(seed=1)
    each = [losses.feature_divergence([s], [target], [1.0], [0.0]) for s in (first, second)]
    weighted = losses.feature_divergence([first, second], [target, target], [3.0, 1.0], [0.0, 0.0])
    torch.testing.assert_close(weighted, 0.75 * each[0] + 0.25 * each[1])


def test_what_is_nearly_equal_or_smooth_is_not_rounded_away_under_autocast():
    p = torch.randn(64, 10).bfloat16()
    q = (p + 0.03 * torch.randn(64, 10)).bfloat16()
    images = torch.linspace(-2, 2, 64).expand(2, 3, 64, 64).contiguous().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(losses.jensen_shannon(p, q), losses.jensen_shannon(p.double(), q.double()).float())
        (slope,) = torch.autograd.grad(losses.total_variation_l2(images), images)
    wide = images.detach().double().requires_grad_(True)
    (expected,) = torch.autograd.grad(losses.total_variation_l2(wide), wide)
    torch.testing.assert_close(slope, expected.float(), rtol=1e-3, atol=1e-4 * expected.abs().max().item())
