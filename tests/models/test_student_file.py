"""A student's file builds it again from its teacher's network, and from no other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfkd
from dfkd.errors import WeightsError
from dfkd.models import CifarResNet, WideResNet
from dfkd.models.classifier import extend_classifier
from dfkd.models.student_file import load_student, save_student, teacher_shapes
from dfkd.pruning import prune_filters

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """Layers of many kinds between two that lose filters."""

    def __init__(self, width: int = 8, classes: int = 5, frozen: str = "") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.up = nn.ConvTranspose2d(width, 2 * width, 2, stride=2)
        self.bn2 = nn.BatchNorm2d(2 * width, affine=False)
        self.conv2, self.bn3 = nn.Conv2d(2 * width, width, 3, stride=2, bias=False), nn.BatchNorm2d(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, classes)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not (frozen and name.startswith(frozen)))

    def forward(self, x):
        x = self.norm(self.deep(self.act(self.bn1(self.conv1(x)))))
        x = F.relu(self.bn3(self.conv2(F.relu(self.bn2(self.up(x))))))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def pruned(network: nn.Module, amount: float = 0.3, shape=SHAPE) -> nn.Module:
    student = copy.deepcopy(network).eval()
    prune_filters(student, amount, shape)
    return student


@pytest.mark.parametrize("packed", [False, True])
def test_a_student_without_filters_is_built_again_whatever_its_layers(packed, tmp_path):
    teacher = Net(frozen="conv")
    student = pruned(pruned(teacher))
    save_student(tmp_path / "student.safetensors", student, packed)
    again = load_student(tmp_path / "student.safetensors", Net(frozen="conv"))
    images = torch.randn(4, *SHAPE)
    assert torch.equal(again(images), student(images))
    assert repr(again) == repr(student) and teacher_shapes(again) == teacher_shapes(student)
    asked = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    for network in (student, again):
        assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == asked
    assert teacher_shapes(student)["conv1.weight"] == [8, 1, 3, 3]
    save_student(tmp_path / "copy.safetensors", again, packed)
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "student.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("prune", "other"),
    [
        (lambda n: dfkd.prune(n, 0.5), {"width": 32, "classes": 100}),
        (lambda n: dfkd.prune(n, 0.5), {"width": 9}),
        (lambda n: dfkd.prune(n, 0.5), {"width": 7}),
        (lambda n: dfkd.prune(n, 0.5), {"classes": 6}),
        (pruned, {"width": 32, "classes": 100}),
        (pruned, {"width": 9}),
        (pruned, {"width": 7}),
        (pruned, {"width": 6}),
        (pruned, {"classes": 6}),
        (pruned, {"classes": 4}),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_another_width_or_class_count_is_refused(prune, other, packed, tmp_path):
    save_student(tmp_path / "student.safetensors", prune(Net()), packed)
    model = Net(**other)
    with pytest.raises(WeightsError, match=r"do not belong to this Net\. Keys of another shape: .*model group \(depth"):
        load_student(tmp_path / "student.safetensors", model)


@pytest.mark.parametrize(
    "other", [lambda: CifarResNet(14, width=8), lambda: CifarResNet(8, width=4), lambda: WideResNet(10)]
)
@pytest.mark.parametrize("filters", [False, True])
def test_another_architecture_is_refused(other, filters, tmp_path):
    network = CifarResNet(8, width=8)
    save_student(tmp_path / "student.safetensors", pruned(network, 0.3, (3, 8, 8)) if filters else network)
    with pytest.raises(WeightsError, match="do not belong to this"):
        load_student(tmp_path / "student.safetensors", other())


def test_a_classifier_that_learned_new_classes_is_built_again_from_the_old_network(tmp_path):
    network = Net(classes=5)
    extend_classifier(network, 5, 3)
    extend_classifier(network, 8, 2)
    save_student(tmp_path / "student.safetensors", network)
    again = load_student(tmp_path / "student.safetensors", Net(classes=5))
    assert torch.equal(again(torch.ones(2, *SHAPE)), network.eval()(torch.ones(2, *SHAPE)))
    assert again.fc2.out_features == 10
    for classes in (8, 4):
        with pytest.raises(WeightsError, match="of another shape: fc2.weight"):
            load_student(tmp_path / "student.safetensors", Net(classes=classes))


def test_a_student_cannot_be_built_from_its_own_shapes(tmp_path):
    student = pruned(Net())
    save_student(tmp_path / "student.safetensors", student)
    with pytest.raises(WeightsError, match="of another shape"):
        load_student(tmp_path / "student.safetensors", pruned(Net(), 0.5))
