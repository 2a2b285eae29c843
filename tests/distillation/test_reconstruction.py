"""Reconstruction: every pruned layer is the least-squares answer to what the teacher's layer gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfkd
from dfkd.distillation import distillation_loss, reconstruct
from dfkd.distillation.reconstruction import DAMPING
from dfkd.dreams import Dreams
from dfkd.errors import ModelError
from dfkd.models import CifarResNet
from dfkd.pruning import prune_by_global_magnitude, prune_filters
from dfkd.pruning.sparsity import prunable_weights


def one_layer(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    teacher = nn.Sequential(layer).eval()
    student = copy.deepcopy(teacher)
    prune_by_global_magnitude(student, 0.5)
    return teacher, student


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_becomes_the_damped_least_squares_answer(bias):
    teacher, student = one_layer(nn.Linear(6, 4, bias=bias))
    start = student[0].weight.detach().clone()
    mixing = torch.randn(6, 6)  # inputs that tell of each other, so that what is left can stand in for what is gone
    images = torch.randn(200, 6) @ mixing
    reconstruct(student, teacher, [images[:120], images[120:]])

    moments = (images.T @ images / 200).double()
    damping = DAMPING * moments.diagonal().mean()
    for row, before, wanted in zip(student[0].weight, start.double(), teacher[0].weight.double(), strict=True):
        kept = before != 0
        left = moments[kept][:, kept] + damping * torch.eye(int(kept.sum()))
        right = (moments @ wanted)[kept] + damping * before[kept]
        torch.testing.assert_close(row[kept].double(), torch.linalg.solve(left, right), rtol=1e-3, atol=1e-4)
        assert (row[~kept] == 0).all()
    if bias:
        assert torch.equal(student[0].bias, teacher[0].bias)


class PadsItself(nn.Conv2d):
    """As EfficientNets have it: the input is padded within the layer's own forward."""

    def forward(self, images):
        return super().forward(F.pad(images, (0, 1, 1, 0)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.Conv2d, {"padding": 1}),
        (nn.Conv2d, {"padding": "same", "dilation": 2}),
        (nn.Conv2d, {"padding": 1, "padding_mode": "circular"}),
        (nn.Conv2d, {"stride": 2, "groups": 4}),
        (nn.Conv2d, {"groups": 8, "bias": False}),
        (PadsItself, {"stride": 2}),
    ],
    ids=str,
)
def test_a_convolution_of_any_kind_comes_closer_to_the_teachers_than_any_other_weights_near_it(kind, options):
    teacher, student = one_layer(kind(8, 16, 3, **options))
    images = F.avg_pool2d(torch.randn(16, 8, 12, 12), 3, 1, 1)

    @torch.no_grad()
    def error() -> float:
        return (student(images) - teacher(images)).square().mean().item()

    before = error()
    reconstruct(student, teacher, [images])
    solved = error()
    assert solved < 0.9 * before
    weight, best = student[0].weight, student[0].weight.detach().clone()
    for _ in range(20):
        with torch.no_grad():
            weight.copy_(best + 0.05 * torch.randn_like(best) * (best != 0))
        assert error() > solved


def test_layers_are_solved_in_the_order_of_the_forward_and_nothing_else_changes(teacher):
    student = dfkd.prune(teacher, 0.6)
    zeros = {name: weight == 0 for name, weight in prunable_weights(student).items()}
    before, expected = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    images = torch.randn(64, 1, 8, 8)

    @torch.no_grad()
    def distance() -> float:
        return distillation_loss(student(images), teacher(images), 3.0).item()

    start = distance()
    reconstruct(student, teacher, [images[:32], images[32:]])
    assert distance() < 0.5 * start
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {f"{name}.weight" for name in zeros}
    assert all((prunable_weights(student)[name] == 0).eq(gone).all() for name, gone in zeros.items())
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*teacher.modules(), *student.modules()])


def test_an_unpruned_student_stays_as_it_is(teacher):
    student = copy.deepcopy(teacher)
    reconstruct(student, teacher, [images := torch.randn(64, 1, 8, 8)])
    torch.testing.assert_close(student(images), teacher(images), rtol=1e-3, atol=1e-3)


def test_a_recovery_may_be_a_reconstruction_alone(teacher):
    labels = torch.arange(48) % 10
    dreams = Dreams(torch.randn(48, 1, 8, 8).half(), labels, labels, torch.ones(48))
    student, by_hand = dfkd.prune(teacher, 0.6), dfkd.prune(teacher, 0.6)
    history = dfkd.recover(
        student, teacher, dreams, updates=0, batch_size=16, reconstruct=True, reestimate_batch_norm=False
    )
    assert history == []
    assert not torch.equal(student.conv1.weight, by_hand.conv1.weight)
    assert torch.equal(student.bn1.running_mean, teacher.bn1.running_mean)


def test_a_student_with_other_shapes_is_refused(teacher):
    student = copy.deepcopy(teacher)
    prune_filters(student, 0.3, (1, 8, 8))
    with pytest.raises(ModelError, match=r"distillation.reconstruct needs .* but layer \S+ differs"):
        reconstruct(student, teacher, [torch.randn(8, 1, 8, 8)])
    with pytest.raises(ModelError, match="distillation.reconstruct"):
        reconstruct(CifarResNet(14, in_channels=1, width=4), teacher, [torch.randn(8, 1, 8, 8)])
