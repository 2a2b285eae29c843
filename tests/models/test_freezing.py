"""Temporary changes of a network: what they do, and that nothing of them stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dfkd.models import batch_norm_layers
from dfkd.models.freezing import channels_last, frozen, learning


def state_of(model):
    """All that a user could find changed."""
    return (
        [(name, set(vars(module)), module.training) for name, module in model.named_modules()],
        [(p.requires_grad, p.stride(), p.data_ptr()) for p in model.parameters()],
        [layer.momentum for layer in batch_norm_layers(model).values()],
    )


@pytest.mark.parametrize("change", [frozen, learning])
def test_a_network_is_as_it_was_after_it(teacher, change):
    teacher.bn1.train().momentum = 0.0003
    teacher.conv1.requires_grad_(False)
    before = state_of(teacher)
    with pytest.raises(KeyError), change(teacher):
        raise KeyError
    assert state_of(teacher) == before


def test_a_frozen_network_asks_for_nothing(teacher):
    with frozen(teacher.train()):
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not any(module.training for module in teacher.modules())


def test_a_learning_network_asks_for_all_and_follows(teacher):
    teacher.requires_grad_(False)
    for layer, momentum in zip(batch_norm_layers(teacher).values(), (0.0, None, 0.0003, 0.9), strict=False):
        layer.momentum = momentum
    with learning(teacher):
        assert all(p.requires_grad for p in teacher.parameters())
        assert {layer.momentum for layer in batch_norm_layers(teacher).values()} == {0.1}


def test_parameters_of_integers_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].table = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    with learning(model), frozen(model):
        assert not model[0].table.requires_grad


class Flattens(nn.Module):
    """Flattens by `view`, which channels-last activations refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 10)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.fc(self.bn(self.conv(x)).view(len(x), -1))


def test_a_network_that_flattens_by_view_is_laid_out_as_it_was_from_its_first_forward_on():
    model, images = Flattens().eval(), torch.randn(2, 3, 8, 8)
    expected = model(images)
    keys = set(vars(model))
    with channels_last(model):
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images), expected)
        assert model.conv.weight.is_contiguous()
        torch.testing.assert_close(model(images), expected)
    assert model.calls == 1 + 2 + 1 and set(vars(model)) == keys


def test_other_networks_are_channels_last_within_and_contiguous_after(teacher):
    before = [p.stride() for p in teacher.parameters()]
    images = torch.randn(2, 1, 8, 8)
    expected = teacher(images)
    with channels_last(teacher):
        torch.testing.assert_close(teacher(images), expected)
        assert teacher.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert [p.stride() for p in teacher.parameters()] == before


def test_an_error_of_the_network_itself_is_not_swallowed(teacher):
    with channels_last(teacher), pytest.raises(RuntimeError, match="expected input"):
        teacher(torch.randn(2, 3, 8, 8))
    with channels_last(teacher):
        teacher(torch.randn(2, 1, 8, 8))


def test_a_forward_that_a_user_replaced_stays_replaced(teacher):
    own = copy.deepcopy(teacher)
    teacher.forward = lambda x: own(2 * x)
    with channels_last(teacher):
        torch.testing.assert_close(teacher(torch.ones(1, 1, 8, 8)), own(2 * torch.ones(1, 1, 8, 8)))
    assert "forward" in vars(teacher)
