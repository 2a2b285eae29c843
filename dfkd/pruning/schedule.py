"""How the pruned share rises where pruning goes in steps."""

from __future__ import annotations


def cubic_share(step: int, steps: int) -> float:
    """1 - (1 - step / steps)^3, the share of the final amount that is gone by a step (Zhu and Gupta 2017)."""
    return 1 - (1 - step / steps) ** 3
