"""What a network gets right: on labelled images, and in the eyes of its teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy

from dfkd.models.freezing import frozen
from dfkd.training.fit import TrainerOptions
from dfkd.training.progress import Progress

Marks = dict[str, float | None]  # each in [0, 1], None where it cannot be known


def score(
    models: dict[str, nn.Module],
    held_out: Dataset | None,
    test_sets: dict[str, Dataset | None],
    num_classes: int,
    options: TrainerOptions,
) -> dict[str, Marks]:
    """The marks of every network, by name; one of them is the `teacher`.

    Its marks are, under the name of each test set, the share of these real images that it classifies rightly; and
    `agreement`, the share of the held-out dreams on which its answer is the teacher's.

    Args:
        models: left as they were.
        held_out: dreams that no network has learned from, (image, label); None: no agreement.
        test_sets: real images, (image, label), by name; None: no accuracy.
        num_classes: of the labels.
        options: where to compute.
    """
    device = options.torch_device()
    answers: dict[str, Tensor] = {}
    marks: dict[str, Marks] = {}
    with Progress("evaluate", len(models), "networks") as progress:
        for name, model in models.items():
            if held_out is not None:
                answers[name], _ = predict(model, held_out, device)
            marks[name] = {
                test: None
                if images is None
                else accuracy(*predict(model, images, device, options.num_workers), num_classes)
                for test, images in test_sets.items()
            }
            progress.advance(1)
    for name in marks:
        marks[name]["agreement"] = agreement(answers[name], answers["teacher"]) if answers else None
    return marks


def predict(model: nn.Module, dataset: Dataset, device: torch.device, num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """The most likely class of every image and the labels, each (N,); the model is left as it was."""
    home = next(model.parameters()).device
    predictions, labels = [], []
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=256, num_workers=num_workers)
    with torch.inference_mode(), frozen(model.to(device)):
        for images, targets in loader:
            predictions.append(model(images.to(device).float()).argmax(dim=1).cpu())
            labels.append(targets)
    model.to(home)
    return torch.cat(predictions), torch.cat(labels)


def accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Share of the predictions (N,) that equal the labels (N,)."""
    return round(multiclass_accuracy(predictions, labels, num_classes, average="micro").item(), 6)


def agreement(predictions: Tensor, teacher_predictions: Tensor) -> float:
    """Share of the images to which two networks give the same class."""
    return round((predictions == teacher_predictions).double().mean().item(), 6)
