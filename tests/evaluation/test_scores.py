"""Scores: what a network says, whichever memory format it takes, and that it is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dfkd.evaluation.scores import logits_of


class FlattensByView(nn.Sequential):
    def forward(self, images):
        return self[1](self[0](images).view(len(images), -1))


@pytest.mark.parametrize("kind", [FlattensByView, lambda conv, linear: nn.Sequential(conv, nn.Flatten(), linear)])
def test_a_network_is_asked_in_either_memory_format_and_keeps_its_own(kind):
    torch.manual_seed(0)
    network = kind(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 10)).train()
    images, labels = torch.randn(300, 3, 8, 8), torch.arange(300)
    strides, keys = [p.stride() for p in network.parameters()], set(vars(network))
    said, told = logits_of(network, TensorDataset(images, labels), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(said, network(images))
    assert told.equal(labels) and network.training
    assert [p.stride() for p in network.parameters()] == strides and set(vars(network)) == keys
