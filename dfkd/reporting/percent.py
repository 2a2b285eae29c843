"""Shares as text."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent, or that it is unknown."""
    return "unknown" if value is None else f"{100 * value:.1f} %"
