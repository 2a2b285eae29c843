"""A student's batch norm: re-estimated on images, and aligned with its teacher's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfkd
from dfkd.distillation import reestimate_batch_norm
from dfkd.distillation.batch_norm import aligned_batch_norm
from dfkd.models.batch_norm import batch_norm_layers, batch_statistics


def test_reestimation_sets_the_statistics_of_the_images_and_nothing_else(teacher):
    student = dfkd.prune(teacher, 0.5)
    before = copy.deepcopy(student.state_dict())
    images = torch.randn(32, 1, 8, 8)
    reestimate_batch_norm(student, [images])
    first = F.conv2d(images, student.conv1.weight, padding=1)
    torch.testing.assert_close(student.bn1.running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(student.bn1.running_var, first.var((0, 2, 3)))
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert not student.training and student.bn1.momentum == 0.1


def statistics_of(network):
    return {name: value.clone() for name, value in network.state_dict().items() if "running" in name}


def test_aligned_statistics_of_an_equal_student_are_the_teachers_on_any_images(teacher):
    student, images = copy.deepcopy(teacher), 0.5 + 2 * torch.randn(32, 1, 8, 8)
    expected = statistics_of(teacher)
    reestimate_batch_norm(student, [images[:16], images[16:]], teacher)
    assert statistics_of(teacher).keys() == expected.keys()
    for name, value in statistics_of(student).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    reestimate_batch_norm(student, [images])
    assert not torch.allclose(student.bn1.running_mean, expected["bn1.running_mean"], atol=0.1)


def test_an_aligned_layer_gives_the_mean_and_variance_of_the_teachers(teacher):
    student, images = dfkd.prune(teacher, 0.6), 0.5 + 2 * torch.randn(64, 1, 8, 8)

    def normalised(network):
        seen = []
        handle = network.layer1[0].bn1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            network(images)
        handle.remove()
        return seen[0]

    with aligned_batch_norm(teacher, student, follow=1.0):  # the running statistics become this batch's
        expected, learning = normalised(teacher), normalised(student)
    assert not torch.allclose(learning, expected, atol=0.1)
    torch.testing.assert_close(learning.mean((0, 2, 3)), expected.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(learning.var((0, 2, 3)), expected.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normalised(student), learning, rtol=1e-3, atol=1e-3)  # so it is in eval mode


@pytest.mark.parametrize("momentum", [0.1, 0.0003, 0.0, None])
def test_statistics_arrive_whatever_the_networks_own_momentum(teacher, momentum):
    student, images = dfkd.prune(teacher, 0.6), torch.randn(64, 1, 8, 8)
    for layer in batch_norm_layers(student).values():
        layer.momentum = momentum
    reestimated = copy.deepcopy(student)
    reestimate_batch_norm(reestimated, [images], teacher)
    with aligned_batch_norm(teacher, student), torch.no_grad():
        for _ in range(200):
            teacher(images)
            student(images)
    for name, value in statistics_of(reestimated).items():
        torch.testing.assert_close(statistics_of(student)[name], value, rtol=1e-3, atol=1e-4)
    assert {layer.momentum for layer in batch_norm_layers(student).values()} == {momentum}


def without(affine):
    """A network whose batch norms lack scale, shift or both."""
    arguments = {"neither": {"affine": False}, "no shift": {"bias": False}}.get(affine, {})
    layer = nn.BatchNorm2d(4, **arguments)
    if affine == "no scale":
        layer.register_parameter("weight", None)
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("affine", ["both", "neither", "no shift", "no scale"])
def test_batch_norm_without_scale_or_shift_is_computed_as_it_is(affine):
    teacher, images = without(affine).eval(), torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        teacher.train()(images)
        for value in teacher[1].parameters():
            value.uniform_(0.5, 2)
    expected = teacher.eval()(images)
    with batch_statistics(teacher) as records:
        torch.testing.assert_close(teacher(images), expected)
    assert len(records["1"]) == 1
    student = copy.deepcopy(teacher)
    with aligned_batch_norm(teacher, student, follow=1.0), torch.no_grad():
        teacher(images)
        torch.testing.assert_close(student(images), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(student(images), expected, rtol=1e-3, atol=1e-3)
