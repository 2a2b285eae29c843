"""The dream bank: a folder with one self-checking file per batch of dreams."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.errors import ArtifactError
from dfkd.files import load_tensors, save_tensors

log = logging.getLogger(__name__)

TENSORS = ("images", "labels", "predictions", "confidence")


@dataclass(frozen=True)
class Dreams:
    """Synthetic images in the teacher's normalised input space, and what the teacher sees in them.

    Attributes:
        images: (N, C, H, W), float16.
        labels: target classes, (N,); the teacher's prediction where the inversion had no targets.
        predictions: the teacher's most likely class, (N,).
        confidence: the teacher's probability of the label, (N,).
        num_held_out: how many of the last dreams never train a student: it is compared with its teacher on them.
    """

    images: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    num_held_out: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def training(self) -> Dreams:
        """The dreams that train the student."""
        return self._slice(0, len(self) - self.num_held_out)

    @property
    def held_out(self) -> Dreams:
        """The dreams that never train a student."""
        return self._slice(len(self) - self.num_held_out, len(self))

    @property
    def teacher_accuracy(self) -> float:
        """Share of the dreams that the teacher assigns to their label."""
        return (self.predictions == self.labels).double().mean().item()

    def _slice(self, start: int, stop: int) -> Dreams:
        part = slice(start, stop)
        return Dreams(self.images[part], self.labels[part], self.predictions[part], self.confidence[part])


@dataclass(frozen=True)
class DreamBank:
    """A folder of dream batches. Each is written in one step, so what is there is whole whenever a writer dies."""

    directory: Path

    def path(self, index: int) -> Path:
        """Where batch `index` lies."""
        return self.directory / f"batch_{index:05d}.safetensors"

    def checkpoint(self, index: int) -> Path:
        """Where batch `index` is kept on its way."""
        return self.directory / f"unfinished_{index:05d}.safetensors"

    def write(self, index: int, dreams: Dreams, history: list[dict[str, float]]) -> None:
        """Store batch `index` and the history of its inversion; its checkpoint goes."""
        tensors = {name: getattr(dreams, name) for name in TENSORS}
        save_tensors(self.path(index), tensors, notes=history)
        self.checkpoint(index).unlink(missing_ok=True)

    def read(self, index: int) -> tuple[Dreams, list[dict[str, float]]]:
        """Batch `index` and the history of its inversion (`ArtifactError` if missing or damaged)."""
        tensors, history = load_tensors(self.path(index))
        if set(tensors) != set(TENSORS) or len({len(tensor) for tensor in tensors.values()}) != 1:
            raise ArtifactError(f"{self.path(index)} holds no batch of dreams.")
        return _dreams(tensors), history

    def missing(self, count: int) -> list[int]:
        """Which of the batches 0..count-1 are not there; damaged ones are removed and count as missing."""
        missing = []
        for index in range(count):
            if self.path(index).exists():
                try:
                    self.read(index)
                    self.checkpoint(index).unlink(missing_ok=True)  # whoever wrote the batch may have died before
                    continue
                except ArtifactError as error:
                    log.warning("%s It will be made again.", error)
                    self.path(index).unlink()
            missing.append(index)
        return missing

    def load(self, count: int, num_held_out: int) -> tuple[Dreams, list[dict[str, Any]]]:
        """All of the `count` batches as one, and the histories of their inversions, each row with its `batch`."""
        batches = [self.read(index) for index in range(count)]
        joined = _dreams({name: torch.cat([getattr(dreams, name) for dreams, _ in batches]) for name in TENSORS})
        history = [{"batch": index, **row} for index, (_, rows) in enumerate(batches) for row in rows]
        return replace(joined, num_held_out=num_held_out), history


def _dreams(tensors: dict[str, Tensor]) -> Dreams:
    images, labels, predictions, confidence = (tensors[name] for name in TENSORS)
    return Dreams(images, labels, predictions, confidence)
