"""Options that make no sense are refused by name, from Python too: never a traceback of a library."""

from __future__ import annotations

import pytest

import dfkd
from dfkd.errors import DfkdError
from dfkd.models import CifarResNet, InputSpec, WideResNet, torchvision_model
from dfkd.pruning import prune_by_global_magnitude, prune_filters, prune_n_of_m
from dfkd.real_data import cifar, digits, image_folder

GREY = InputSpec((1, 8, 8), 10, (0.3,), (0.3,))
COLOUR = InputSpec((3, 8, 8), 10, (0.3,) * 3, (0.3,) * 3)


def net():
    return CifarResNet(8, width=4)


CALLS = {
    "num_classes must be a whole number": [
        *(lambda v=v: torchvision_model("resnet18", num_classes=v) for v in (0, -1, 2.5, "x", None, True)),
        *(lambda v=v: CifarResNet(8, num_classes=v) for v in (0, "a")),
        *(lambda v=v: InputSpec((1, 8, 8), v, (0.3,), (0.3,)) for v in (1, 2.5, "x")),
        lambda: WideResNet(16, num_classes=-1),
    ],
    "in_channels must be": [lambda v=v: torchvision_model("resnet18", in_channels=v) for v in (0, -2, None)],
    "depth must be 6n": [
        lambda v=v, kind=kind: kind(v) for v in (8.0, "16", None) for kind in (CifarResNet, WideResNet)
    ],
    "width must be": [lambda: CifarResNet(8, width=2.5)],
    "widen_factor must be": [lambda: WideResNet(16, 1.5)],
    "cannot build resnet18 with": [lambda: torchvision_model("resnet18", foo=1)],
    "teacher.weights=torchvision:NAME": [lambda: torchvision_model("resnet18", weights="DEFAULT")],
    "model.name must be a torchvision classifier": [lambda v=v: torchvision_model(v) for v in (None, 3)],
    r"input\.image_shape must be": [
        *(lambda v=v: InputSpec(v, 10, (0.3,), (0.3,)) for v in ((1, 8), "abc", None, (1.5, 8, 8), ("1", "8", "8"))),
        *(lambda v=v: dfkd.invert(net(), 4, image_shape=v) for v in ((3, 8), 8)),
        *(lambda v=v: prune_filters(net(), 0.3, v) for v in ((3, 8), None, (3, 0, 8), "x")),
    ],
    r"input\.(mean|std) must be": [
        lambda: InputSpec((1, 8, 8), 10, None, (0.3,)),
        lambda: InputSpec((1, 8, 8), 10, ("a",), (0.3,)),
        lambda: InputSpec((1, 8, 8), 10, (0.3,), 0.3),
        lambda: dfkd.invert(net(), 4, image_shape=(3, 8, 8), mean=0.5, std=0.25),
        lambda: dfkd.invert(net(), 4, image_shape=(3, 8, 8), mean=[0.5] * 3, std=[]),
    ],
    "cannot take images": [lambda: prune_filters(net(), 0.3, (1, 8, 8))],
    r"pruning\.amount must be": [lambda v=v: prune_by_global_magnitude(net(), v) for v in ("x", None, [0.5], {"a": 1})],
    r"pruning\.n must be": [lambda n=n, m=m: prune_n_of_m(net(), n, m) for n, m in ((1, None), ("a", 4), (True, 4))],
    r"data\.root must be": [
        lambda v=v, make=make: make(COLOUR, root=v) for v in (None, 5) for make in (cifar, image_folder)
    ],
    r"data\.train must be": [lambda: image_folder(COLOUR, "x", train=None)],
    r"data\.only must be": [lambda v=v: digits(GREY, only=v) for v in (3, "ab", [1.5], [True, False], [1, 1], [10])],
    "got the class CifarResNet: make one": [lambda: dfkd.prune(CifarResNet)],
    "A torch.nn.Module is needed, got NoneType": [lambda: dfkd.prune(None)],
}


@pytest.mark.parametrize("message", CALLS)
def test_an_option_that_makes_no_sense_is_refused_by_name(message):
    for call in CALLS[message]:
        with pytest.raises(DfkdError, match=message):
            call()
