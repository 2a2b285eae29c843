"""Filter pruning: students really get smaller, answer as they must, and can be built again from their file."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet

from dfkd.errors import ConfigError, ModelError
from dfkd.models import CifarResNet, WideResNet, torchvision_model
from dfkd.models.batch_norm import batch_norm_layers, teacher_channels
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.student_file import load_student, save_student
from dfkd.pruning import prune_filters, prune_filters_by_taylor

SHAPE = (3, 32, 32)


class Plain(nn.Module):
    """Two convolutions without anything that ties channels together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.linear = nn.Linear(20, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def shaken(model: nn.Module) -> nn.Module:
    """Batch-norm layers with values of their own, so that mixed-up channels show."""
    with torch.no_grad():
        for layer in batch_norm_layers(model).values():
            for value in (layer.weight, layer.bias, layer.running_mean):
                value.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


ZOO = {
    "option A shortcuts": lambda: CifarResNet(14, width=8),
    "pre-activation": lambda: WideResNet(10, 1),
    "residual sums": lambda: torchvision_model("resnet18", num_classes=10),
    "depthwise": lambda: torchvision_model("mobilenet_v2", num_classes=10, width_mult=0.25),
    "concatenation": lambda: DenseNet(8, (2, 2), num_init_features=16, num_classes=10),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_student_loses_its_multiply_adds_and_its_file_builds_it_again(name, tmp_path):
    teacher = shaken(ZOO[name]())
    student = copy.deepcopy(teacher)
    prune_filters(student, 0.3, SHAPE)
    left = multiply_adds(student, SHAPE) / multiply_adds(teacher, SHAPE)
    assert 0.6 < left <= 0.7
    assert parameters(student) < parameters(teacher)
    images = torch.randn(4, *SHAPE)
    assert student(images).shape == (4, 10)

    save_student(tmp_path / "student.safetensors", student)
    again = load_student(tmp_path / "student.safetensors", ZOO[name]())
    assert torch.equal(again(images), student(images))
    assert (multiply_adds(again, SHAPE), parameters(again)) == (multiply_adds(student, SHAPE), parameters(student))
    for (layer_name, layer), teachers in zip(
        batch_norm_layers(again).items(), batch_norm_layers(teacher).values(), strict=True
    ):
        assert torch.equal(layer.running_var, teachers.running_var[teacher_channels(layer)]), layer_name


@pytest.mark.parametrize("name", ["option A shortcuts", "depthwise"])
def test_what_is_cut_out_is_as_if_it_were_zero(name):
    teacher = shaken(ZOO[name]())
    student = copy.deepcopy(teacher)
    prune_filters(student, 0.4, SHAPE)
    with torch.no_grad():
        for layer, teachers in zip(
            batch_norm_layers(student).values(), batch_norm_layers(teacher).values(), strict=True
        ):
            gone = torch.ones(len(teachers.weight), dtype=torch.bool)
            gone[teacher_channels(layer)] = False
            teachers.weight[gone] = 0
            teachers.bias[gone] = 0
    images = torch.randn(4, *SHAPE)
    torch.testing.assert_close(student(images), teacher(images), rtol=1e-3, atol=1e-4)


def test_channels_tied_in_a_way_that_the_trace_misses_stay(caplog):
    student = CifarResNet(20, width=8)  # its shortcuts pad channels
    with caplog.at_level(logging.INFO):
        prune_filters(student, 0.4, SHAPE)
    assert "leaves whole, with all that is tied to them: conv1" in caplog.text
    assert student.conv1.out_channels == 8 and student.layer3[0].conv2.out_channels == 32
    assert student.layer3[0].conv1.out_channels < 32


@pytest.mark.parametrize("importance", ["l1", "l2", "batch_norm_scale"])
def test_the_filters_of_least_weight_go_first(importance):
    model = Plain()
    with torch.no_grad():
        model.conv2.weight[5:] *= 0.01
        model.bn2.weight[5:] *= 0.01
    prune_filters(model, 0.5, (1, 8, 8), importance)
    assert set(range(5)) <= set(teacher_channels(model.bn2).tolist())
    assert len(teacher_channels(model.bn2)) < 20


def test_taylor_importance_sees_what_a_filter_does_and_not_how_large_it_is():
    model = shaken(Plain())
    with torch.no_grad():
        model.linear.weight[:, :10] = 0  # large filters whose channels nobody reads
        model.conv2.weight[:10] *= 100
        model.linear.weight[:, 10:] *= 10
    by_weight = copy.deepcopy(model)
    prune_filters_by_taylor(model, 0.4, torch.randn(64, 1, 8, 8))
    prune_filters(by_weight, 0.4, (1, 8, 8))
    assert set(range(10, 20)) <= set(teacher_channels(model.bn2).tolist())
    assert set(range(10)) <= set(teacher_channels(by_weight.bn2).tolist())


def test_taylor_importance_is_its_seeds_and_leaves_the_statistics_alone():
    model = shaken(Plain())
    students = [copy.deepcopy(model) for _ in range(2)]
    for student in students:
        prune_filters_by_taylor(student, 0.3, torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(a, b) for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True))
    kept = teacher_channels(students[0].bn1)
    assert torch.equal(students[0].bn1.running_mean, model.bn1.running_mean[kept])


def test_a_second_pruning_still_knows_the_teachers_channels():
    teacher = shaken(Plain())
    student = copy.deepcopy(teacher)
    prune_filters(student, 0.3, (1, 8, 8))
    prune_filters(student, 0.3, (1, 8, 8))
    kept = teacher_channels(student.bn2)
    assert len(kept) == student.conv2.out_channels < 20
    assert torch.equal(student.bn2.running_mean, teacher.bn2.running_mean[kept])


def test_a_network_that_cannot_be_traced_is_refused_with_a_remedy():
    with pytest.raises(ModelError, match="could not be traced for filter pruning .* Prune single weights instead"):
        prune_filters(torchvision_model("shufflenet_v2_x0_5", num_classes=10), 0.3, SHAPE)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match=r"pruning\.importance must be one of"):
        prune_filters(Plain(), 0.3, (1, 8, 8), "size")
    with pytest.raises(ConfigError, match=r"pruning\.amount must be a number in \[0, 1\)"):
        prune_filters(Plain(), 1.0, (1, 8, 8))
    plain = Plain()
    plain.bn2 = nn.Identity()
    with pytest.raises(ModelError, match=r"batch_norm_scale needs a batch norm with a scale .* conv2 has none. Use l1"):
        prune_filters(plain, 0.3, (1, 8, 8), "batch_norm_scale")
    with pytest.raises(ModelError, match=r"cannot lose 100% of its multiply-adds"):
        prune_filters(Plain(), 0.999, (1, 8, 8))


def test_what_asks_for_a_gradient_is_as_it_was():
    teacher = shaken(Plain()).requires_grad_(False)
    for prune in (lambda m: prune_filters(m, 0.3, (1, 8, 8)),
                  lambda m: prune_filters_by_taylor(m, 0.3, torch.randn(8, 1, 8, 8))):  # fmt: skip
        student = copy.deepcopy(teacher)
        prune(student)
        assert not any(parameter.requires_grad for parameter in student.parameters())


def test_filters_of_layers_that_share_a_weight_are_not_cut():
    model = Plain()
    model.conv3 = nn.Conv2d(8, 20, 3, padding=1, bias=False)
    model.conv3.weight = model.conv2.weight
    with pytest.raises(ModelError, match=r"share the weight of others \(conv3\).* Prune single weights"):
        prune_filters(model, 0.3, (1, 8, 8))


def test_a_convolution_that_the_network_does_not_use_keeps_nobody_from_pruning_by_taylor():
    teacher = Plain()
    teacher.auxiliary = nn.Conv2d(8, 8, 1)
    teacher = shaken(teacher)
    student = copy.deepcopy(teacher)
    prune_filters_by_taylor(student, 0.3, torch.randn(32, 1, 8, 8), teacher=teacher)
    assert parameters(student) < parameters(teacher)
