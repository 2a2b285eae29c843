"""Real images as an input of a stage: opened for one purpose, known by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from dfkd.models.input_spec import InputSpec
from dfkd.real_data import Purpose, RealImages
from dfkd.stages.stage import plain


@dataclass(frozen=True)
class Images:
    """Real images behind their door.

    Attributes:
        data: the data set.
        purpose: what it is opened for, which says what part of it.
        spec: how pixels become a network's input.
    """

    data: RealImages
    purpose: Purpose
    spec: InputSpec

    def identity(self) -> dict[str, Any]:
        """The digest of the part that the purpose opens, and how pixels are normalised."""
        return {"content": self.data.identity(self.purpose), "input": plain(self.spec)}

    def open(self) -> Dataset[Any]:
        """The images, (normalised image (C, H, W), label)."""
        return self.data.open(self.purpose)
