"""Shares as text."""

from __future__ import annotations

import math

FEW = 100  # images, of fewer than which a share is told with its interval
Z = 1.96  # of a 95 % interval


def percent(value: float | None, count: int | None = None) -> str:
    """A share in [0, 1] in percent, or that it is unknown; of fewer than a hundred images with its 95 % interval."""
    if value is None:
        return "unknown"
    text = f"{100 * value:.1f} %"
    if count is None or not 0 < count < FEW:
        return text
    low, high = interval(value, count)
    return f"{text} ({100 * low:.0f} to {100 * high:.0f})"


def interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of `count` draws (Wilson 1927)."""
    middle, spread = share + Z**2 / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
