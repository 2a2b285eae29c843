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
