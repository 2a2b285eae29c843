"""When new batches of dreams join a bank while a student learns, and how it is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.errors import require

POLICIES = ("uniform", "recent", "hardest")


@dataclass(frozen=True)
class StreamingRecipe:
    """Settings of the stream. A new batch is inverted by the run's `inversion`, whose `competition_weight` is for it.

    Attributes:
        every: student updates between two new batches of dreams; 0: all dreams are made before.
        policy: how batches are drawn from the bank: `uniform`; `recent`, an image of the newest batch n times as often
            as one that n - 1 batches followed; `hardest`, in proportion to KL(teacher || student) on the image,
            measured whenever a new batch joins.
    """

    every: int = 0
    policy: str = "uniform"

    def __post_init__(self) -> None:
        require(self.every >= 0, "streaming.every", self.every, "0 or more")
        require(self.policy in POLICIES, "streaming.policy", self.policy, f"one of {POLICIES}")

    def new_batches(self, updates: int) -> int:
        """How many batches join within `updates`: one before update `every`, 2 `every`, ..."""
        return (updates - 1) // self.every if self.every and updates else 0
