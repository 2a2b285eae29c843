"""Where real images come from: `digits`, CIFAR, any folder of images, or nowhere.

Each source checks at once that it fits the network's input, and reads pixels only when its door is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms import v2

from dfkd.errors import DataError, listing
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.access import RealImages, Split


def no_data(spec: InputSpec) -> None:
    """No real images at all: the run then reports agreement on held-out dreams in place of accuracy."""
    return


def digits(spec: InputSpec, only: Sequence[int] = ()) -> RealImages:
    """The 1,797 scanned digits (8x8, grey) that scikit-learn ships; a fifth of each class is the test split.

    Args:
        spec: the network's input.
        only: the classes to keep, numbered anew in this order; empty: all.

    Raises:
        DataError: the network does not take one channel and as many classes.
    """
    _check_classes(10, spec, "digits", only)
    if spec.image_shape[0] != 1:
        raise DataError(f"data: digits are grey, but input.image_shape says {spec.image_shape[0]} channels, not 1.")

    def opener(split: Split) -> Dataset:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        parts = train_test_split(bunch.images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0)
        pixels, labels = (parts[0], parts[2]) if split is Split.TRAIN else (parts[1], parts[3])
        images = torch.from_numpy(pixels / 16.0).float().unsqueeze(1)
        return TensorDataset(_pixel_transform(spec)(images), torch.from_numpy(np.asarray(labels)).long())

    return _with_classes(only, RealImages("digits", "scikit-learn digits, stratified fifth held out, split 0", opener))


def cifar(spec: InputSpec, root: str = "data", classes: int = 10, only: Sequence[int] = ()) -> RealImages:
    """CIFAR-10 or CIFAR-100 by torchvision, downloaded into `root` where it is not there yet.

    Args:
        spec: the network's input.
        root: the folder.
        classes: 10 or 100.
        only: the classes to keep, numbered anew in this order; empty: all.

    Raises:
        DataError: `classes` is not 10 or 100, or the network has another number of classes.
    """
    if classes not in (10, 100):
        raise DataError(f"data.classes must be 10 or 100, got {classes!r}.")
    name = f"cifar{classes}"
    _check_classes(classes, spec, name, only)
    data_set = CIFAR10 if classes == 10 else CIFAR100

    def opener(split: Split) -> Dataset:
        try:
            return data_set(root, train=split is Split.TRAIN, transform=_file_transform(spec), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} is not in data.root={root} and could not be downloaded ({error}). Put it there, or use "
                "data=image_folder or data=none."
            ) from error

    return _with_classes(only, RealImages(name, name, opener))


def image_folder(
    spec: InputSpec, root: str, train: str = "train", test: str = "test", only: Sequence[int] = ()
) -> RealImages:
    """Images on disk as root/train/<class>/* and root/test/<class>/*; resized to the network's input.

    Args:
        spec: the network's input.
        root: the folder.
        train: its sub-folder for teacher training and the real-data control.
        test: its sub-folder for evaluation.
        only: the classes to keep, by their place in the sorted folders, numbered anew in this order; empty: all.

    Raises:
        DataError: a folder is missing or empty, has a single class, or its classes are not the network's.
    """
    folders = {Split.TRAIN: Path(root) / train, Split.TEST: Path(root) / test}
    digest = hashlib.sha256()
    for folder in folders.values():
        digest.update(_check_folder(folder, spec, only).encode())

    def opener(split: Split) -> Dataset:
        return ImageFolder(str(folders[split]), transform=_file_transform(spec), loader=_load_image)

    return _with_classes(only, RealImages(f"image_folder {Path(root).name}", digest.hexdigest(), opener))


def _check_folder(folder: Path, spec: InputSpec, only: Sequence[int]) -> str:
    """Listing of a folder as text: names and sizes, without opening an image."""
    if not folder.is_dir():
        raise DataError(
            f"data.root: there is no folder {folder}. It should hold one sub-folder of images per class. "
            "Correct data.root, data.train or data.test, or use data=none."
        )
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"data.root: {folder} is empty: it should hold one sub-folder of images per class.")
    lines = []
    for class_folder in classes:
        images = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in extensions)
        if not images:
            raise DataError(f"data.root: the class folder {class_folder} holds no image ({listing(extensions, 9)}).")
        lines += [f"{path.relative_to(folder)} {path.stat().st_size}" for path in images]
    if len(classes) == 1:
        raise DataError(
            f"data.root: {folder} has a single class ({classes[0].name}); a classifier needs two or more. "
            "Is data.root one level too deep or too high?"
        )
    _check_classes(len(classes), spec, str(folder), only)
    return "\n".join(lines)


def _check_classes(classes: int, spec: InputSpec, name: str, only: Sequence[int]) -> None:
    if any(label not in range(classes) for label in only) or len(set(only)) != len(only):
        raise DataError(f"data.only must be different classes of {name}, each in [0, {classes}), got {list(only)}.")
    classes = len(only) or classes
    if classes != spec.num_classes:
        raise DataError(
            f"data: {name} has {classes} classes, but input.num_classes is {spec.num_classes}. "
            "Use the data that the network was trained for, or data=none."
        )


def _with_classes(only: Sequence[int], images: RealImages) -> RealImages:
    """`images` of the classes `only`, or of all."""
    if not only:
        return images
    kept = list(only)
    return RealImages(
        f"{images.name}, classes {kept}", f"{images.fingerprint}, classes {kept}",
        lambda split: _OfClasses(images.opener(split), kept),
    )  # fmt: skip


class _OfClasses(Dataset):
    """The images of some classes of a data set, numbered anew."""

    def __init__(self, images: Dataset, classes: list[int]) -> None:
        labels = images.tensors[1] if isinstance(images, TensorDataset) else images.targets  # type: ignore[attr-defined]
        self.images = images
        self.number = {label: number for number, label in enumerate(classes)}
        self.places = [place for place, label in enumerate(map(int, labels)) if label in self.number]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[self.places[index]]
        return image, self.number[int(label)]


def _load_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"data.root: {path} is not a readable image ({error}). Repair or remove it.") from error


def _file_transform(spec: InputSpec) -> nn.Module:
    """An image in any colour mode to the network's input."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    channels = spec.image_shape[0]
    if channels not in modes:
        raise DataError(
            f"data: image files have 1, 3 or 4 channels, but input.image_shape says {channels}. "
            "Name a function of your own that reads them by data._target_ (see dfkd/real_data/sources.py)."
        )
    return v2.Compose(
        [_ToMode(modes[channels]), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), _pixel_transform(spec)]
    )


class _ToMode(nn.Module):
    """A PIL image in another colour mode."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, image: Image.Image) -> Image.Image:
        return image.convert(self.mode)


def _pixel_transform(spec: InputSpec) -> nn.Module:
    """Pixels in [0, 1] to the network's input: resized and normalised."""
    return v2.Compose(
        [v2.Resize(list(spec.image_shape[1:]), antialias=True), v2.Normalize(list(spec.mean), list(spec.std))]
    )
