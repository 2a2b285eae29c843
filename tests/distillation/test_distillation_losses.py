"""The losses are what their formulas say, value and gradient, and never reach the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dfkd.distillation import distillation_loss
from dfkd.distillation.losses import feature_error, matched_features
from dfkd.models import batch_norm_layers
from dfkd.pruning import prune_filters


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


def test_the_loss_is_the_published_formula():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)
    assert distillation_loss(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-12)


def test_the_feature_error_is_in_units_of_the_teachers_variance():
    teacher = torch.randn(64, 8, 4, 4)
    assert feature_error(teacher, teacher) == 0
    torch.testing.assert_close(feature_error(5 * teacher, 5 * teacher + 1), feature_error(teacher, teacher + 0.2))


@pytest.mark.parametrize("shape", [(64, 6), (8, 6, 5, 5)])
def test_the_feature_error_in_bfloat16_is_that_of_the_same_values_in_double_precision(shape):
    torch.manual_seed(0)
    teacher = (3 * torch.randn(shape) + 2).bfloat16()
    student = (teacher + torch.randn(shape)).bfloat16().requires_grad_()
    exact = student.detach().double().requires_grad_()
    for value, target in ((student, teacher), (exact, teacher.double())):
        (5 * feature_error(value, target)).backward()
    expected = (exact - teacher.double()).square().mean() / teacher.double().var()
    torch.testing.assert_close(feature_error(student, teacher).double(), expected, rtol=2e-3, atol=0)
    assert student.grad.dtype is torch.bfloat16
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=0.02, atol=1e-4 * exact.grad.abs().max().item())


def test_a_student_with_fewer_filters_is_compared_on_the_channels_it_kept(teacher):
    student = copy.deepcopy(teacher)
    prune_filters(student, 0.3, (1, 8, 8))
    with matched_features(teacher, student) as errors, torch.no_grad():
        teacher(x := torch.randn(4, 1, 8, 8))
        student(x)
    first_block = list(batch_norm_layers(teacher)).index("layer1.0.bn1")
    assert student.layer1[0].bn1.num_features < 4
    assert errors[first_block].item() == pytest.approx(0, abs=1e-10)  # its input is still the teacher's
    assert max(error.item() for error in errors) > 0


def test_features_are_compared_before_an_in_place_activation_overwrites_them():
    def network(inplace: bool) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace)).eval()

    x = torch.randn(4, 1, 8, 8)
    found = {}
    for inplace in (False, True):
        teacher, student = network(inplace), network(inplace)
        student[0].weight.data.mul_(0.5)
        with matched_features(teacher, student) as errors:
            with torch.no_grad():
                teacher(x)
            student(x).sum()
        errors[0].backward()
        found[inplace] = (errors[0].detach(), student[0].weight.grad)
    torch.testing.assert_close(found[True], found[False])


def test_nearly_equal_answers_in_bfloat16_are_compared_in_float32():
    teacher = torch.randn(64, 10).bfloat16()
    student = (teacher + 0.03 * torch.randn(64, 10)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distillation_loss(student, teacher, 3.0)
    torch.testing.assert_close(value, distillation_loss(student.double(), teacher.double(), 3.0).float())
