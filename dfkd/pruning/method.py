"""A pruning function with its settings, as an experiment holds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dfkd.files import file_checksum


@dataclass(frozen=True)
class PruningMethod:
    """Prunes a network in place by a function that asks for what it needs by the names of its arguments.

    Attributes:
        function: takes the network. Where it has an argument of that name it is also given `teacher`, `dreams` as
            images (N, C, H, W), or an `amount` in place of its own.
        recipe: what it does, as plain JSON.
    """

    function: Callable[..., None]
    recipe: dict[str, Any]

    @property
    def amount(self) -> float | None:
        """The share that goes in the end; None where there is nothing that could rise from step to step."""
        return self.recipe.get("amount")

    def identity(self) -> dict[str, Any]:
        """The settings, and where the function is a user's own, a digest of the file that it is written in."""
        function = self.function.func if isinstance(self.function, partial) else self.function
        if function.__module__.startswith("dfkd."):
            return self.recipe  # the version of the store stands for our own code
        source = inspect.getsourcefile(function)
        return self.recipe | {"code": None if source is None else file_checksum(Path(source))}

    def takes(self, argument: str) -> bool:
        """Whether the function has an argument of that name."""
        return argument in inspect.signature(self.function).parameters

    def apply(self, network: nn.Module, teacher: nn.Module, dreams: Callable[[], Tensor], **amount: float) -> None:
        """Prune `network` in place; `dreams` is only called where they are asked for."""
        offered: dict[str, Callable[[], Any]] = {"teacher": lambda: teacher, "dreams": dreams}
        given = {name: offer() for name, offer in offered.items() if self.takes(name)}
        self.function(network, **given, **amount)
