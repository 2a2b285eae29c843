"""Accuracy on labelled images, and agreement with the teacher on held-out dreams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy

from dfkd.models.freezing import frozen
from dfkd.training.fit import TrainerOptions
from dfkd.training.progress import Progress

Scores = dict[str, float | None]  # each in [0, 1], None where it cannot be known


def score(
    models: dict[str, nn.Module],
    held_out: Dataset | None,
    test_sets: dict[str, Dataset | None],
    num_classes: int,
    options: TrainerOptions,
    look: Callable[[str, Tensor, Tensor], None] = lambda name, logits, labels: None,
) -> dict[str, Scores]:
    """The scores of every network, by name; one of them is the `teacher`.

    They are, under the name of each test set, the accuracy on these real images; and `agreement`, the share of the
    held-out dreams on which the network predicts what the teacher does.

    Args:
        models: left as they were.
        held_out: held-out dreams, (image, label); None: no agreement.
        test_sets: real images, (image, label), by name; None: no accuracy.
        num_classes: of the labels.
        options: where to compute.
        look: given a network's name, its logits (N, classes) on a test set and the labels (N,).
    """

    def right(name: str, model: nn.Module, images: Dataset) -> float:
        logits, labels = logits_of(model, images, device, options.num_workers)
        look(name, logits, labels)
        return accuracy(logits.argmax(1), labels, num_classes)

    device = options.torch_device()
    predictions: dict[str, Tensor] = {}
    scores: dict[str, Scores] = {}
    with Progress("evaluate", len(models), "networks") as progress:
        for name, model in models.items():
            if held_out is not None:
                predictions[name], _ = predict(model, held_out, device)
            scores[name] = {
                test: None if images is None else right(name, model, images) for test, images in test_sets.items()
            }
            progress.advance(1)
    for name in scores:
        scores[name]["agreement"] = agreement(predictions[name], predictions["teacher"]) if predictions else None
    return scores


def predict(model: nn.Module, dataset: Dataset, device: torch.device, num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """The most likely class of every image and the labels, each (N,); the model is left as it was."""
    logits, labels = logits_of(model, dataset, device, num_workers)
    return logits.argmax(1), labels


def logits_of(model: nn.Module, dataset: Dataset, device: torch.device, num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """The logits (N, classes) of every image and the labels (N,); the model is left as it was."""
    home = next(model.parameters()).device
    found, labels = [], []
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=256, num_workers=num_workers)
    with torch.inference_mode(), frozen(model.to(device)):
        for images, targets in loader:
            found.append(model(images.to(device).float()).cpu())
            labels.append(targets)
    model.to(home)
    return torch.cat(found), torch.cat(labels)


def accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Share of the predictions (N,) that equal the labels (N,)."""
    return round(multiclass_accuracy(predictions, labels, num_classes, average="micro").item(), 6)


def agreement(predictions: Tensor, teacher_predictions: Tensor) -> float:
    """Share of the images to which two networks give the same class."""
    return round((predictions == teacher_predictions).double().mean().item(), 6)
