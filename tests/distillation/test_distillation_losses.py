"""The feature loss is what its formula says, value and gradient, and never reaches the teacher."""

from __future__ import annotations

import pytest
import torch

from dfkd.distillation.losses import feature_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_feature_error_is_the_mean_square_in_units_of_the_teachers_variance(dtype):
    student, teacher = torch.randn(2, 6, 4, 5, 5).mul(3).add(1).to(dtype)
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    difference = student.float() - teacher.detach().float()
    expected = difference.square().mean() / teacher.detach().float().var()
    value = feature_error(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0, check_dtype=False)
    own, none = torch.autograd.grad(value, (student, teacher), allow_unused=True)
    (reference,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(own, reference, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-8)
    assert none is None


def test_a_teacher_without_variance_gives_a_finite_error():
    student = torch.zeros(3, 1, requires_grad=True)
    value = feature_error(student, torch.zeros(3, 1))
    assert value == 0 and torch.autograd.grad(value, student)[0].isfinite().all()
