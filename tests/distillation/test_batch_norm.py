"""A student's batch norm: re-estimated on images, and aligned with its teacher's."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

import dfkd
from dfkd.distillation import reestimate_batch_norm
from dfkd.distillation.batch_norm import aligned_batch_norm
from dfkd.models import batch_norm_layers


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
    for layer in batch_norm_layers(student).values():
        layer.momentum = 1.0  # the running statistics become this batch's

    def normalised(network):
        seen = []
        handle = network.layer1[0].bn1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            network(images)
        handle.remove()
        return seen[0]

    with aligned_batch_norm(teacher, student):
        expected, learning = normalised(teacher), normalised(student)
    assert not torch.allclose(learning, expected, atol=0.1)
    torch.testing.assert_close(learning.mean((0, 2, 3)), expected.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(learning.var((0, 2, 3)), expected.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normalised(student), learning, rtol=1e-3, atol=1e-3)  # so it is in eval mode
