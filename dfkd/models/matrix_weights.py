"""Which weights a network's convolutions and matrix products are computed with."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfkd.errors import ModelError, listing
from dfkd.models.freezing import frozen
from dfkd.models.layers import WeightedLayer

log = logging.getLogger(__name__)

PRODUCTS = ("convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "linear")
STANDARD = {layer.forward for layer in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d,
                                        nn.Linear)}  # fmt: skip


class _Products(TorchDispatchMode):
    """Notes where the operands of all convolutions and matrix products lie in memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operands: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in PRODUCTS:
            self.operands.update(map(_storage, [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]))
        return function(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def warn_of_other_weights(model: nn.Module, images: Tensor) -> None:
    """Log which parameters take part in products, but belong to no convolution or linear layer and so stay dense.

    Raises:
        ModelError: a convolution or linear layer with a forward of its own computes with another weight than its
            parameter, whose zeros would then not be those of the network.
    """
    entered: dict[str, WeightedLayer] = {}
    products = _Products()
    own = {name: layer for name, layer in model.named_modules() if isinstance(layer, WeightedLayer)}
    with torch.no_grad(), frozen(model), ExitStack() as stack:
        for name, layer in own.items():
            note = layer.register_forward_pre_hook(lambda layer, _, name=name: entered.update({name: layer}))
            stack.callback(note.remove)
        with products:
            model(images)
    other = [name for name, layer in entered.items()
             if type(layer).forward not in STANDARD and _storage(layer.weight) not in products.operands]  # fmt: skip
    if other:
        raise ModelError(
            f"The layers {listing(other)} compute with another weight than their parameter `weight` (standardised, "
            "scaled or quantised in their forward), so that its zeros would not be theirs. Replace them by plain "
            "layers that hold the weight they compute with."
        )
    prunable = {_storage(layer.weight) for layer in own.values()}
    dense = [
        f"{name} ({value.numel():,})"
        for name, value in model.named_parameters()
        if value.dim() > 1 and _storage(value) in products.operands - prunable
    ]
    if dense:
        log.warning(
            "%s: weights that are not those of a torch.nn convolution or linear layer stay dense, and do not count as "
            "prunable: %s", type(model).__name__, listing(dense),
        )  # fmt: skip
