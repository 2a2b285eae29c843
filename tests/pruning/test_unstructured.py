"""Unstructured pruning: which weights go by each criterion, and the zeros that are left."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dfkd
from dfkd.errors import ConfigError, ModelError
from dfkd.pruning import (
    layer_sparsity,
    prune_at_random,
    prune_by_global_magnitude,
    prune_by_layer_adaptive_magnitude,
    prune_by_layer_magnitude,
    prune_n_of_m,
    sparsity,
)

ALL = [prune_by_global_magnitude, prune_by_layer_magnitude, prune_by_layer_adaptive_magnitude, prune_at_random]


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 0.99))
def test_the_smallest_weights_of_the_whole_network_go(amount):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    before = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).detach().clone()
    prune_by_global_magnitude(model, amount)
    after = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).detach()
    gone = after == 0
    assert int(gone.sum()) == round(amount * len(before))
    assert torch.equal(after[~gone], before[~gone])
    if gone.any() and not gone.all():
        assert before[gone].abs().max() <= before[~gone].abs().min()


@pytest.mark.parametrize("prune", ALL)
def test_every_criterion_removes_the_share_and_touches_nothing_else(teacher, prune):
    student = copy.deepcopy(teacher)
    prune(student, 0.6)
    assert sparsity(student) == pytest.approx(0.6, abs=0.01)
    for name, value in teacher.state_dict().items():
        left = student.state_dict()[name]
        assert torch.equal(left[left != 0], value[left != 0]), name
    prune(student, 0.8)  # what is gone already counts
    assert sparsity(student) == pytest.approx(0.8, abs=0.01)


def test_layer_magnitude_gives_every_layer_the_same_sparsity(teacher):
    prune_by_layer_magnitude(teacher, 0.5)
    assert {round(layer.sparsity, 1) for layer in layer_sparsity(teacher)} == {0.5}


def test_layer_adaptive_magnitude_follows_its_formula_and_spares_a_layer_of_small_weights():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -2.0], [1.0, 4.0]]))
        model[1].weight.copy_(torch.tensor([[0.02, -0.01]]))
    # w^2 / sum of the squares not smaller: 9/25, 4/29, 1/30, 16/16 and 4/4, 1/5
    by_score, by_magnitude = copy.deepcopy(model), copy.deepcopy(model)
    prune_by_layer_adaptive_magnitude(by_score, 0.5)
    prune_by_global_magnitude(by_magnitude, 0.5)
    assert by_score[0].weight.tolist() == [[3.0, 0.0], [0.0, 4.0]]
    assert by_score[1].weight.count_nonzero() == 1
    assert by_magnitude[1].weight.count_nonzero() == 0


def test_random_pruning_is_its_seeds(teacher):
    students = [copy.deepcopy(teacher) for _ in range(3)]
    for student, seed in zip(students, (0, 0, 1), strict=True):
        prune_at_random(student, 0.5, seed)
    weights = [student.layer3[0].conv1.weight for student in students]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_two_of_four_keeps_the_two_largest_of_four_neighbouring_input_channels(teacher, caplog):
    student = copy.deepcopy(teacher)
    with caplog.at_level(logging.INFO):
        prune_n_of_m(student)
    assert "conv1" in caplog.text and torch.equal(student.conv1.weight, teacher.conv1.weight)  # one input channel
    for before, after in ((teacher.linear.weight, student.linear.weight),
                          (teacher.layer3[0].conv2.weight, student.layer3[0].conv2.weight)):  # fmt: skip
        before, after = before.unflatten(1, (-1, 4)), after.unflatten(1, (-1, 4))
        kept = after != 0
        assert (kept.sum(2) == 2).all() and torch.equal(after[kept], before[kept])
        smallest_kept = torch.where(kept, before.abs(), torch.inf).amin(2)
        assert (smallest_kept >= torch.where(kept, 0, before.abs()).amax(2)).all()


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (2.0, 4)])
def test_an_impossible_pattern_is_refused(teacher, n, m):
    with pytest.raises(ConfigError, match=r"pruning\.n must be from 1 to pruning\.m - 1"):
        prune_n_of_m(teacher, n, m)


def test_everything_but_convolution_and_linear_weights_stays(teacher):
    student = dfkd.prune(teacher, 0.9)
    for name, value in teacher.state_dict().items():
        if name.endswith(("bias", "running_mean", "running_var")) or ".bn" in name or name.startswith("bn"):
            assert torch.equal(value, student.state_dict()[name]), name
    assert sparsity(student) == pytest.approx(0.9, abs=1e-3)
    assert sparsity(teacher) == 0.0
    assert list(student.state_dict()) == list(teacher.state_dict())


def test_the_report_names_every_layer_and_adds_up(teacher):
    layers = layer_sparsity(dfkd.prune(teacher, 0.5))
    assert layers[0].layer == "conv1" and layers[-1].layer == "linear"
    assert sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers) == pytest.approx(0.5, abs=1e-3)
    assert len({round(layer.sparsity, 3) for layer in layers}) > 1  # one threshold for the whole network


@pytest.mark.parametrize("amount", [1.0, -0.1, 1.5, float("nan"), "half", True])
def test_an_amount_outside_its_range_is_refused(teacher, amount):
    with pytest.raises(ConfigError, match=r"pruning\.amount must be a number in \[0, 1\)"):
        dfkd.prune(teacher, amount)


def test_a_network_without_weights_to_prune_is_refused():
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        prune_by_global_magnitude(nn.BatchNorm2d(3), 0.5)
