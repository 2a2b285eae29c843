"""Global magnitude pruning, and the zeros it leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dfkd
from dfkd.errors import ConfigError, ModelError
from dfkd.pruning import layer_sparsity, prune_by_global_magnitude, sparsity


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
