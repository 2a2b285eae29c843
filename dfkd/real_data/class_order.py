"""Whether a folder's classes are numbered as the network's are: a network that is sure and wrong tells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SURE = 0.5  # mean confidence
BETTER = 0.25  # of accuracy, that another order must bring


def likely_order(predictions: Tensor, labels: Tensor, num_classes: int) -> list[int] | None:
    """The order in which the classes fit the predictions, for `data.only`; None where it is as they are numbered.

    It is the assignment of labels to predicted classes with the most hits, told only where it hits more than half of
    at least five images per class, and a quarter of all images more than the labels as they are.

    Args:
        predictions: classes (N,).
        labels: of the same images (N,).
        num_classes: of both.
    """
    from scipy.optimize import linear_sum_assignment

    if len(labels) < 5 * num_classes:
        return None
    counts = torch.bincount(predictions * num_classes + labels, minlength=num_classes**2)
    hits = counts.view(num_classes, num_classes).double()  # [predicted class, label]
    classes, order = linear_sum_assignment(hits.numpy(), maximize=True)
    best = hits[classes, order].sum() / len(labels)
    return order.tolist() if best > 0.5 and best - hits.trace() / len(labels) > BETTER else None


def doubt(
    logits: Tensor, labels: Tensor, class_names: Sequence[str] | None = None, only: Sequence[int] = ()
) -> str | None:
    """What is doubtful about a trained network's accuracy on real images, for the user to read; None: nothing.

    Args:
        logits: of the teacher, (N, classes).
        labels: of the images (N,).
        class_names: in the order of the labels.
        only: numbers of the labels' classes in `data.only`; empty: those of the labels.
    """
    num_classes = logits.shape[1]
    predictions = logits.argmax(1)
    accuracy = (predictions == labels).double().mean().item()
    order = likely_order(predictions, labels, num_classes)
    if order is not None:
        named = "" if class_names is None else f" ({', '.join(class_names[label] for label in order[:5])}, ...)"
        return (
            f"The teacher is right on {accuracy:.1%} of the real images, but would be on many more if the classes were "
            f"in another order{named}: it seems to have been trained with them in that one. Set "
            f"data.only=[{','.join(str(only[label] if only else label) for label in order)}]."
        )
    confidence = logits.float().softmax(1).amax(1).mean().item()
    if accuracy < 2 / num_classes and confidence > max(SURE, 2 / num_classes) and len(labels) >= 5 * num_classes:
        return (
            f"The teacher is right on {accuracy:.1%} of the real images, about what chance gives, though it is sure of "
            f"itself ({confidence:.0%} on average): these are other classes, or input.mean, input.std or "
            "input.image_shape are not those it was trained with."
        )
    return None
