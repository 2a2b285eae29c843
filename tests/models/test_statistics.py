"""Statistics of batch norm's inputs: in bfloat16 what they are in double precision, as far as bfloat16 tells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfkd.models.batch_norm import batch_statistics, channel_statistics
from dfkd.models.freezing import frozen

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def inputs(*shape):
    """Images whose channels differ in scale and mean; the first is constant."""
    torch.manual_seed(0)
    per_channel = (1, -1, *[1] * (len(shape) - 2))
    images = torch.randn(shape) * torch.logspace(-2, 1, shape[1]).view(per_channel) + torch.arange(shape[1]).view(
        per_channel
    )
    images[:, 0] = 1.5
    return images.bfloat16()


def layer_of(x):
    layer = LAYERS[x.dim()](x.shape[1])
    for values in (layer.weight, layer.running_var):
        values.data.uniform_(0.5, 2)
    for values in (layer.bias, layer.running_mean):
        values.data.uniform_(-1, 1)
    return layer.eval()


def found(layer, x):
    """Output, statistics and the input's gradient of a layer, for a sum of all that has different weights."""
    x = x.clone().requires_grad_()
    with frozen(layer), batch_statistics(layer) as records:
        output = layer(x)
    [(mean, variance)] = records[""]
    assert mean.dtype is variance.dtype is (torch.float32 if x.dtype is torch.bfloat16 else torch.float64)
    weights = torch.linspace(-1, 1, x.shape[1], dtype=mean.dtype)
    (output.sum() / 7 + (100 * weights * mean).sum() + (30 * weights.flip(0) * variance).sum()).backward()
    assert output.dtype is x.dtype is x.grad.dtype
    return output, mean, variance, x.grad


@pytest.mark.parametrize("shape", [(64, 6), (32, 6, 9), (16, 6, 8, 8), (8, 6, 3, 4, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_bfloat16_gives_what_double_precision_does(shape, last):
    x = inputs(*shape)
    if last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    layer = layer_of(x)
    expected = found(layer.double(), x.double())
    output, mean, variance, gradient = found(layer.float(), x)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance.double(), expected[2], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(output.double(), expected[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(gradient.double(), expected[3], rtol=0.02, atol=0.01 * expected[3].abs().max().item())
    assert output.stride() == x.stride()


def test_statistics_alone_are_the_same_in_bfloat16():
    x = inputs(16, 6, 8, 8)
    variance, mean = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    told = channel_statistics(x)
    torch.testing.assert_close(told[0].double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told[1].double(), variance, rtol=1e-3, atol=1e-6)


def test_a_channel_that_hardly_varies_has_no_negative_variance():
    x = 20 + 1e-4 * torch.randn(64, 16, 8, 8)
    assert (channel_statistics(x)[1] >= 0).all()
