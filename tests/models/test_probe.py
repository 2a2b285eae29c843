"""What a network computes, as text: edits are noticed, each by those that depend on it, and nothing else is."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from dfkd.models import CifarResNet
from dfkd.models.probe import Network, module_identity, probe

SHAPE = (1, 8, 8)


class Net(nn.Module):
    """A user's network, with a knob for everything that an edit of its code could change."""

    def __init__(self, activation=torch.relu, width=8, dropout=0.1, momentum=0.1, spread=1.0, eps=1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width, momentum=momentum, eps=eps)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 10)
        self.activation = activation
        self.conv.weight.data.mul_(spread)

    def forward(self, x):
        return self.fc(self.drop(self.activation(self.norm(self.conv(x))).mean((2, 3))))


def of(**changes):
    return probe(functools.partial(Net, **changes), SHAPE)


@pytest.mark.parametrize(
    ("changes", "aspects"),
    [({"activation": torch.sin}, {"inference", "training"}), ({"eps": 1e-3}, {"inference", "training"}),
     ({"width": 9}, {"inference", "training", "initialisation"}), ({"dropout": 0.5}, {"training"}),
     ({"momentum": 0.2}, {"training"}), ({"spread": 2.0}, {"initialisation"})],
)  # fmt: skip
def test_an_edit_changes_the_digests_of_what_it_touches(changes, aspects):
    before, after = of(), of(**changes)
    assert {aspect for aspect in before if before[aspect] != after[aspect]} == aspects


def test_the_same_network_has_the_same_digests_whatever_the_threads_and_the_random_state():
    first = of()
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        state = torch.get_rng_state()
        assert of() == first
        assert torch.equal(state, torch.get_rng_state())
    finally:
        torch.set_num_threads(threads)


class Single(Net):
    """A network that insists on single precision."""

    def forward(self, x):
        return super().forward(x.float())


def test_a_network_that_cannot_be_asked_in_double_precision_is_asked_as_it_is():
    single, edited = (probe(functools.partial(Single, activation=f), SHAPE) for f in (torch.relu, torch.sin))
    assert single["inference"] != edited["inference"]
    assert probe(functools.partial(Single), SHAPE) == single


def test_only_the_aspects_that_count_are_part_of_an_identity():
    plain, dropped = (Network(functools.partial(Net, dropout=p), SHAPE) for p in (0.1, 0.5))
    assert plain.identity() == dropped.identity()
    learning = [Network(network.build, SHAPE, ("inference", "training")) for network in (plain, dropped)]
    assert learning[0].identity() != learning[1].identity()


def test_a_module_is_told_by_its_weights_and_by_what_it_computes():
    torch.manual_seed(0)
    model = CifarResNet(8, in_channels=1, width=4)
    identity, state = module_identity(model, SHAPE), {k: v.clone() for k, v in model.state_dict().items()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.linear.bias[0] += 1e-3
    changed = module_identity(model, SHAPE)
    assert changed["state"] != identity["state"] and changed["inference"] == identity["inference"]


def test_a_module_that_was_asked_can_be_forgotten():
    network = Net()
    module_identity(network, SHAPE)
    left = weakref.ref(network)
    del network
    gc.collect()
    assert left() is None
