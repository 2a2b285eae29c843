"""Small networks of every kind, made by combining traits, and what makes one unsupported."""

from __future__ import annotations

import itertools
import random

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
import torchvision
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from dfkd.models import InputSpec, batch_norm_layers

SHAPE = (3, 8, 8)
SPEC = InputSpec(SHAPE, 4, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
WIDTH = 8


class OwnBatchNorm(nn.BatchNorm2d):
    """A batch norm with a forward of its own and an activation, as timm has."""

    def forward(self, x):
        return F.silu(super().forward(x))


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False), nn.Conv2d(WIDTH, WIDTH, 1))


class Residual(nn.Module):
    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv, self.in_place = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), in_place

    def forward(self, x):
        y = self.conv(x)
        if self.in_place:
            y += x
            return y
        return y + x


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH // 2, 1), nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        return self.bn(self.conv(F.relu(self.bn(self.conv(x)))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other, self.bn = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(3, 3), nn.BatchNorm2d(5)

    def forward(self, x):
        return self.conv(x)


BLOCKS = {
    "plain": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
    "depthwise": Depthwise,
    "grouped": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    "dilated": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding="same", dilation=2, padding_mode="circular"),
    "residual": Residual,
    "residual in place": lambda: Residual(in_place=True),
    "concatenation": Concatenation,
    "twice": Twice,
    "tied": Tied,
    "attention": Attention,
    "unused": Unused,
}
NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(WIDTH),
    "no affine": lambda: nn.BatchNorm2d(WIDTH, affine=False),
    "no shift": lambda: nn.BatchNorm2d(WIDTH, bias=False),
    "no momentum": lambda: nn.BatchNorm2d(WIDTH, momentum=None),
    "momentum 0": lambda: nn.BatchNorm2d(WIDTH, momentum=0.0),
    "synchronised": lambda: nn.SyncBatchNorm(WIDTH),
    "own forward": lambda: OwnBatchNorm(WIDTH),
    "fixed": lambda: torchvision.ops.FrozenBatchNorm2d(WIDTH),
    "and group norm": lambda: nn.Sequential(nn.BatchNorm2d(WIDTH), nn.GroupNorm(2, WIDTH)),
    "and instance norm": lambda: nn.Sequential(
        nn.InstanceNorm2d(WIDTH, track_running_stats=True), nn.BatchNorm2d(WIDTH)
    ),
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "prelu": lambda: nn.PReLU(WIDTH),
    "silu": nn.SiLU,
    "dropout": lambda: nn.Sequential(nn.Hardswish(), nn.Dropout2d(0.2)),
    "stochastic depth": lambda: nn.Sequential(nn.GELU(), torchvision.ops.StochasticDepth(0.2, "row")),
}
FLATTENS = {
    "mean": lambda x: x.mean((2, 3)),
    "flatten": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "view": lambda x: F.max_pool2d(x, 8).view(x.size(0), -1),
    "permuted": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
}
HEADS = {
    "linear": lambda: nn.Linear(WIDTH, 4),
    "no bias": lambda: nn.Linear(WIDTH, 4, bias=False),
    "layers": lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, 4)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (WIDTH, 1, 1)), nn.Conv2d(WIDTH, 4, 1), nn.Flatten()),
    "log softmax": lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.LogSoftmax(1)),
}
FLAGS = {
    "as it is": lambda m: m,
    "frozen": lambda m: m.requires_grad_(False),
    "frozen backbone": lambda m: (m.stem.requires_grad_(False), m.block.requires_grad_(False), m)[-1],
    "in training mode": lambda m: m.train(),
    "hooked": lambda m: (m.block.register_forward_hook(lambda *_: None), m)[-1],
}
TRAITS = (BLOCKS, NORMS, ACTIVATIONS, FLATTENS, HEADS, FLAGS)


class Generated(nn.Module):
    """stem, batch norm; block, norm, activation; flattened; head. Modules are registered from the last to the first."""

    def __init__(self, block: str, norm: str, activation: str, flatten: str, head: str) -> None:
        super().__init__()
        self.head = HEADS[head]()
        self.activation, self.norm, self.block = ACTIVATIONS[activation](), NORMS[norm](), BLOCKS[block]()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.flattened = FLATTENS[flatten]

    def forward(self, x):
        return self.head(self.flattened(self.activation(self.norm(self.block(F.relu(self.stem(x)))))))


def combinations(count: int = 48) -> list[tuple[str, ...]]:
    """Combinations in which every value of every trait occurs, the same at each run."""
    draw = random.Random(0)
    longest = max(map(len, TRAITS))
    columns = [list(itertools.islice(itertools.cycle(draw.sample(list(trait), len(trait))), count)) for trait in TRAITS]
    for column in columns:
        for start in range(0, count, longest):  # so that the traits do not keep step
            column[start : start + longest] = draw.sample(
                column[start : start + longest], len(column[start : start + longest])
            )
    return list(zip(*columns, strict=True))


def built(*traits: str) -> nn.Module:
    """A network with statistics that are not those of its initialisation."""
    torch.manual_seed(0)
    model = Generated(*traits[:5])
    for layer in batch_norm_layers(model).values():
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    return FLAGS[traits[5]](model.eval())


def with_block(change):
    def wrap(model):
        model.block = change(nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        return model

    return wrap


def changed(method, result):
    """A change of the network's class: `method` does `result(self, own method's result)`."""

    def wrap(model):
        own = getattr(type(model), method)
        model.__class__ = type(
            "Changed", (type(model),), {method: lambda self, x: result(self, lambda y: own(self, y), x)}
        )
        return model

    return wrap


def masked(layer):
    torch_prune.random_unstructured(layer, "weight", 0.5)
    return layer


def with_nan(model):
    with torch.no_grad():
        next(iter(batch_norm_layers(model).values())).running_mean[0] = torch.nan
    return model


UNSUPPORTED = {
    "softmax": lambda m: nn.Sequential(m, nn.Softmax(1)),
    "sigmoid": lambda m: nn.Sequential(m, nn.Sigmoid()),
    "auxiliary": changed("forward", lambda self, own, x: (own(x), own(x)) if self.training else own(x)),
    "dictionary": changed("forward", lambda self, own, x: {"logits": own(x)}),
    "single logit": changed("forward", lambda self, own, x: own(x)[:, :1]),
    "in place": changed("forward", lambda self, own, x: own(x.mul_(2))),
    "checkpointing": changed("forward", lambda self, own, x: checkpoint(own, x, use_reentrant=False)),
    "no gradient": changed("forward", lambda self, own, x: own(x.detach())),
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "not a number": with_nan,
    "weight norm": with_block(parametrizations.weight_norm),
    "spectral norm": with_block(parametrizations.spectral_norm),
    "masks": with_block(masked),
    "lazy": with_block(lambda _: nn.LazyConv2d(WIDTH, 3)),
    "parallel": nn.DataParallel,
    "no batch norm": lambda m: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
}
