"""Networks in products: saved by the stages that make them, loaded by those that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.models.probe import Network
from dfkd.models.student_file import load_student, save_student
from dfkd.models.weights import TORCHVISION, load_teacher_weights, start_from, weights_identity
from dfkd.store import Product

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Weights:
    """Weights that a user gives: a file, known by its content, or those that torchvision publishes under a name.

    Attributes:
        source: a path, or `torchvision:NAME`.
        model_recipe: of the network, which tells torchvision which one it is.
        option: that named them, for errors.
    """

    source: str
    model_recipe: Mapping[str, Any] = field(default_factory=dict)
    option: str = "teacher.weights"

    def identity(self) -> list[str]:
        """The file's checksum, or torchvision's names for weights and network."""
        published = self.source.startswith(TORCHVISION)
        return [weights_identity(self.source), *([str(self.model_recipe.get("name"))] if published else [])]

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return Path(self.source).name

    def load(self, model: nn.Module) -> None:
        """Load them into `model`, every key (`WeightsError`)."""
        load_teacher_weights(model, self.source, self.model_recipe, self.option)

    def start(self, model: nn.Module, num_classes: int) -> None:
        """Load them into `model`, but for a classifier of other classes (`WeightsError`)."""
        start_from(model, self.source, self.model_recipe, num_classes)


def build(network: Network, seed: int | None = None) -> nn.Module:
    """The network with random weights, those of `seed` where there is one; the random state stays as it was."""
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        return network.build()


def load(network: Network, product: Product) -> nn.Module:
    """The network that a product holds, in eval mode."""
    return load_student(product.directory / WEIGHTS, build(network))


def save(model: nn.Module, directory: Path) -> None:
    """Write a network as a product's own."""
    save_student(directory / WEIGHTS, model)
