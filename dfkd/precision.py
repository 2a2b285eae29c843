"""The precision that a calculation needs whatever the networks compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in float32 where it has half precision: for sums and differences that would be rounding there.

    Autocast on a CPU leaves softmax and its relatives in bfloat16.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
