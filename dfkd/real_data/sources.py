"""Real images that are published: `digits`, CIFAR; or none at all. Folders of images are in `dfkd.real_data.folder`.

Each source checks at once that it fits the network's input, and reads pixels only when its door is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10, CIFAR100

from dfkd.errors import DataError
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.access import RealImages, Split
from dfkd.real_data.classes import OfClasses, check_classes
from dfkd.real_data.pixels import MODES
from dfkd.real_data.subset import few_of_each
from dfkd.real_data.transforms import Normalise, NormalisePicture


def no_data(spec: InputSpec) -> None:
    """No real images at all: the run then reports agreement on held-out dreams in place of accuracy."""
    return


def digits(spec: InputSpec, only: Sequence[int] = (), per_class: int = 0, seed: int = 0) -> RealImages:
    """The 1,797 scanned digits (8x8, grey) that scikit-learn ships; a fifth of each class is the test split.

    Args:
        spec: the network's input.
        only: the classes to keep, numbered anew in this order; empty: all.
        per_class: training images of each class to keep, drawn by `seed`; 0: all.
        seed: of that draw.

    Raises:
        DataError: the network does not take one channel and as many classes.
    """
    check_classes(10, spec, "digits", only)
    if spec.image_shape[0] != 1:
        raise DataError(f"data: digits are grey, but input.image_shape says {spec.image_shape[0]} channels, not 1.")

    def opener(split: Split) -> Dataset[Any]:
        pixels, labels = _digits(split)
        images = torch.from_numpy(pixels / 16.0).float().unsqueeze(1)
        return TensorDataset(Normalise(spec)(images), torch.from_numpy(labels).long())

    def content(split: Split) -> str:
        return hashlib.sha256(b"".join(part.tobytes() for part in _digits(split))).hexdigest()

    whole = RealImages("digits", opener, content, [str(digit) for digit in range(10)])
    return few_of_each(_of_classes(only, whole), per_class, seed)


def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 8, 8) from 0 to 16, and labels (N,)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0)
    pixels, labels = (parts[0], parts[2]) if split is Split.TRAIN else (parts[1], parts[3])
    return np.ascontiguousarray(pixels), np.ascontiguousarray(labels)


def cifar(
    spec: InputSpec,
    root: str = "data",
    classes: int = 10,
    only: Sequence[int] = (),
    per_class: int = 0,
    seed: int = 0,
) -> RealImages:
    """CIFAR-10 or CIFAR-100 by torchvision, downloaded into `root` where it is not there yet.

    Args:
        spec: the network's input.
        root: the folder.
        classes: 10 or 100.
        only: the classes to keep, numbered anew in this order; empty: all.
        per_class: training images of each class to keep, drawn by `seed`; 0: all.
        seed: of that draw.

    Raises:
        DataError: `classes` is not 10 or 100, or the network has another number of classes, or not 1, 3 or 4 channels.
    """
    if classes not in (10, 100):
        raise DataError(f"data.classes must be 10 or 100, got {classes!r}.")
    if not isinstance(root, str):
        raise DataError(f"data.root must be the path of a folder, got {root!r}.")
    name = f"cifar{classes}"
    check_classes(classes, spec, name, only)
    if spec.image_shape[0] not in MODES:
        raise DataError(f"data: {name} has 3 channels, but input.image_shape says {spec.image_shape[0]}.")
    data_set: Callable[..., Dataset[Any]] = CIFAR10 if classes == 10 else CIFAR100

    def opener(split: Split) -> Dataset[Any]:
        try:
            return data_set(root, train=split is Split.TRAIN, transform=NormalisePicture(spec), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} is not in data.root={root} and could not be downloaded ({error}). Put it there, or use "
                "data=image_folder or data=none."
            ) from error

    whole = RealImages(name, opener, name)  # torchvision compares its files with published digests
    return few_of_each(_of_classes(only, whole), per_class, seed)


def _of_classes(only: Sequence[int], images: RealImages) -> RealImages:
    """`images` of the classes `only`, or of all."""
    if not only:
        return images
    whole, names = images.content, images.class_names

    def content(split: Split) -> str:
        return f"{whole(split) if callable(whole) else whole}, classes {list(only)}"

    return replace(
        images,
        name=f"{images.name}, classes {list(only)}",
        opener=lambda split: OfClasses(images.opener(split), only),
        content=content,
        class_names=None if names is None else [names[label] for label in only],
        digests=None,  # the whole's are of other classes too
        only=only,
    )
