"""A batch of images on its way to dreams: its state between two iterations, and the file it is continued from."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.errors import ArtifactError
from dfkd.files import load_tensors, save_tensors

log = logging.getLogger(__name__)

LARGEST_SHARE = 1 / 20  # of the time that goes into checkpoints
IMAGES = ("images", "best_images", "best_loss", "all_finite", "generator")


@dataclass
class BatchState:
    """All that the next iteration depends on.

    Attributes:
        images: (B, C, H, W) as they are.
        generator: state of the source of jitter and flips.
        best_images: of the lowest loss of this stretch.
        best_loss: that loss, ().
        all_finite: whether all losses were, ().
        stretch: number of the stretch.
        iteration: the next one, within the stretch.
        moments: Adam's state; empty at the beginning of a stretch.
        history: rows of the iteration and the terms' values.
    """

    images: Tensor
    generator: Tensor
    best_images: Tensor
    best_loss: Tensor
    all_finite: Tensor
    stretch: int = 0
    iteration: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def beginning(cls, images: Tensor, generator: torch.Generator) -> BatchState:
        """The state of images that nothing was done to yet; they are copied."""
        # The images keep the usual format whatever the network's: of 3 channels, the priors are faster in it.
        images = images.detach().clone(memory_format=torch.contiguous_format)
        all_finite = torch.ones((), dtype=torch.bool, device=images.device)
        return cls(images, generator.get_state(), images.clone(), _infinite(images), all_finite)

    def next_stretch(self) -> None:
        """Go on from the best images of the stretch that is over."""
        self.images, self.moments = self.best_images, {}
        self.best_images, self.best_loss = self.images.clone(), _infinite(self.images)
        self.stretch, self.iteration = self.stretch + 1, 0


def _infinite(images: Tensor) -> Tensor:
    return torch.full((), float("inf"), device=images.device)


class BatchCheckpoint:
    """Keeps the state of a batch in a file now and then, so that little of a long batch is lost when it is interrupted.

    A batch that continues from it ends bit by bit as one that was not interrupted.

    Args:
        path: of the file.
        seconds: between two checkpoints, or more where writing one takes long; 0: one after every iteration.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for one."""
        interval = max(self.seconds, self._took / LARGEST_SHARE) if self.seconds else 0.0
        return time.monotonic() - self._last >= interval

    def save(self, state: BatchState) -> None:
        """Keep the state in place of an earlier one."""
        begun = time.monotonic()
        tensors = {name: getattr(state, name) for name in IMAGES}
        tensors |= {f"moments.{name}": value for name, value in state.moments.items()}
        notes = {"stretch": state.stretch, "iteration": state.iteration, "history": state.history}
        save_tensors(self.path, tensors, notes)
        self._last = time.monotonic()
        self._took = self._last - begun

    def load(self, device: torch.device) -> BatchState | None:
        """The state that was kept; None without one that can be read."""
        if not self.path.exists():
            return None
        try:
            tensors, notes = load_tensors(self.path)
            # The generator is the CPU's. Adam's step count is where the images are: the fused form reads it there.
            found: dict[str, Any] = {name: v if name == "generator" else v.to(device) for name, v in tensors.items()}
            moments = {name.removeprefix("moments."): found.pop(name) for name in tensors if name not in IMAGES}
            return BatchState(**found, **notes, moments=moments)
        except (ArtifactError, TypeError) as error:
            log.warning("%s This batch starts again.", error)
            return None
