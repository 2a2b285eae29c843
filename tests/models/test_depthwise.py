"""Depthwise convolutions with a stride: where they leave bfloat16, and that they stay the same layers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from dfkd.models.depthwise import strided_depthwise_in_float32


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 3, stride=2),
    )


def dtypes(network, images, autocast=True):
    """What each layer computes in, told by the weights' gradient: bfloat16 rounds it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network(images).float().square().sum().backward()
    rounded = [layer.weight.grad.bfloat16().float().equal(layer.weight.grad) for layer in network]
    network.zero_grad()
    return ["bfloat16" if r else "float32" for r in rounded]


def test_only_depthwise_layers_with_a_stride_leave_bfloat16(network):
    images = torch.randn(2, 3, 8, 8)
    assert dtypes(network, images) == ["bfloat16"] * 4
    with strided_depthwise_in_float32(network):
        assert dtypes(network, images) == ["bfloat16", "float32", "bfloat16", "bfloat16"]
        assert network[0](images).dtype is torch.float32
    assert dtypes(network, images) == ["bfloat16"] * 4


def test_what_follows_gets_what_it_had(network):
    inputs = torch.randn(2, 8, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected = network[1](inputs)
        with strided_depthwise_in_float32(network):
            out = network[1](inputs)
    assert out.dtype is expected.dtype is torch.bfloat16
    assert torch.allclose(out.float(), expected.float(), atol=0.02)


def test_without_autocast_nothing_changes(network):
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    with strided_depthwise_in_float32(network):
        assert network(images).equal(expected)


def test_it_keeps_what_a_user_put_on_a_layer(network):
    network[1].forward = own = lambda images: F.avg_pool2d(images, 2)
    with strided_depthwise_in_float32(network):
        assert network[1].forward is own
    assert network[1].forward is own


def test_parametrised_copied_and_pickled_layers_compute_with_their_own_weights(network):
    inputs = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), strided_depthwise_in_float32(network):
        layer = network[1]
        other = pickle.loads(pickle.dumps(network))[1], copy.deepcopy(network)[1]
        expected = layer(inputs)
        for copied in other:
            assert copied(inputs).equal(expected)
            copied.weight.zero_()
            copied.bias.zero_()
            assert not copied(inputs).any()
        layer.bias.zero_()
        expected = layer(inputs)
        parametrize.register_parametrization(layer, "weight", Doubled())
        assert torch.allclose(layer(inputs), 2 * expected)
