"""Accuracy on labelled images, and agreement with the teacher on held-out dreams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy

from dfkd.models.freezing import channels_last, frozen
from dfkd.training.fit import TrainerOptions
from dfkd.training.progress import Progress

Scores = dict[str, float | None]  # each in [0, 1], None where it cannot be known


def score(
    models: dict[str, nn.Module],
    teacher: nn.Module,
    held_out: Dataset[Any] | None,
    test_sets: dict[str, Dataset[Any] | None],
    num_classes: int,
    options: TrainerOptions,
) -> dict[str, Scores]:
    """The scores of every network, by name.

    They are, under the name of each test set, the accuracy on these real images; and `agreement`, the share of the
    held-out dreams on which the network predicts what the teacher does.

    Args:
        models: left as they were.
        teacher: whom they are to agree with; left as it was.
        held_out: held-out dreams, (image, label); None: no agreement.
        test_sets: real images, (image, label), by name; None: no accuracy.
        num_classes: of the labels.
        options: where to compute.
    """

    def right(model: nn.Module, images: Dataset[Any]) -> float:
        return accuracy(*predict(model, images, device, options.num_workers), num_classes)

    def alike(model: nn.Module) -> float | None:
        if held_out is None or expected is None:
            return None
        return agreement(predict(model, held_out, device)[0], expected)

    device = options.torch_device()
    expected = None if held_out is None else predict(teacher, held_out, device)[0]
    scores: dict[str, Scores] = {}
    with Progress("evaluate", len(models), "networks") as progress:
        for name, model in models.items():
            scores[name] = {
                test: None if images is None else right(model, images) for test, images in test_sets.items()
            }
            scores[name]["agreement"] = alike(model)
            progress.advance(1)
    return scores


def predict(
    model: nn.Module, dataset: Dataset[Any], device: torch.device, num_workers: int = 0
) -> tuple[Tensor, Tensor]:
    """The most likely class of every image and the labels, each (N,); the model is left as it was."""
    logits, labels = logits_of(model, dataset, device, num_workers)
    return logits.argmax(1), labels


def logits_of(
    model: nn.Module, dataset: Dataset[Any], device: torch.device, num_workers: int = 0
) -> tuple[Tensor, Tensor]:
    """The logits (N, classes) of every image and the labels (N,); the model is left as it was."""
    home = next(model.parameters()).device
    with frozen(model.to(device)), channels_last(model):
        found = answers(lambda images: model(images.to(device)).cpu(), dataset, num_workers)
    model.to(home)
    return found


def answers(network: Callable[[Tensor], Tensor], dataset: Dataset[Any], num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """What anything that takes images (N, C, H, W) says to every image of a data set, and the labels (N,)."""
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=256, num_workers=num_workers)
    with torch.inference_mode():
        found = [(network(images.float()), labels) for images, labels in loader]
    return torch.cat([said for said, _ in found]), torch.cat([labels for _, labels in found])


def accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Share of the predictions (N,) that equal the labels (N,)."""
    return round(multiclass_accuracy(predictions, labels, num_classes, average="micro").item(), 6)


def agreement(predictions: Tensor, teacher_predictions: Tensor) -> float:
    """Share of the images to which two networks give the same class."""
    return round((predictions == teacher_predictions).double().mean().item(), 6)
