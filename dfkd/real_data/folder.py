"""Real images in a folder, with one sub-folder per class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dfkd.errors import DataError, listing, printable
from dfkd.models.input_spec import InputSpec
from dfkd.real_data.access import RealImages, Split
from dfkd.real_data.classes import check_classes
from dfkd.real_data.pixels import DECODING, MODES, decode, formats, strict_about_size, to_tensor
from dfkd.real_data.scan import scan
from dfkd.real_data.subset import few_of_each
from dfkd.real_data.transforms import Normalise

log = logging.getLogger(__name__)


def image_folder(
    spec: InputSpec,
    root: str,
    train: str = "train",
    test: str = "test",
    only: Sequence[int] = (),
    per_class: int = 0,
    seed: int = 0,
) -> RealImages:
    """Images on disk as root/test/<class>/* and, if any, root/train/<class>/*; resized to the network's input.

    Classes are numbered by the order of their names, as by torchvision's `ImageFolder`. The folder is known by the
    content of its images (`dfkd.real_data.scan`).

    Args:
        spec: the network's input.
        root: the folder.
        train: its sub-folder for teacher training and the real-data control. There need not be one.
        test: its sub-folder for evaluation.
        only: the classes to keep, by their place in the sorted folders, numbered anew in this order; empty: all.
        per_class: training images of each class to keep, drawn by `seed`; 0: all.
        seed: of that draw.

    Raises:
        DataError: a folder is missing or empty, has a single class, its classes are not the network's, or training and
            test folder have different ones, or are the same.
    """
    channels = spec.image_shape[0]
    if channels not in MODES:
        raise DataError(
            f"data: image files have 1, 3 or 4 channels, but input.image_shape says {channels}. "
            "Name a function of your own that reads them by data._target_ (see dfkd/real_data/folder.py)."
        )
    for option, value in (("root", root), ("train", train), ("test", test)):
        if not isinstance(value, str | os.PathLike):
            raise DataError(f"data.{option} must be the path of a folder, got {value!r}.")
    top = Path(root).expanduser()
    folders = {Split.TRAIN: top / train, Split.TEST: top / test}
    if folders[Split.TRAIN].resolve() == folders[Split.TEST].resolve():
        raise DataError(
            f"data.train and data.test must be different folders, got {printable(top / test)} for both: what learns "
            "from images may not be scored on them. Without training images leave data.train alone."
        )
    if folders[Split.TEST].is_dir() and not folders[Split.TRAIN].is_dir():
        log.info("data.root: there is no folder %s, so no real image is learned from.", printable(top / train))
        del folders[Split.TRAIN]
    classes = {split: _class_names(folder) for split, folder in folders.items()}
    _require_equal_classes(folders, classes)
    names = classes[Split.TEST]
    for folder in folders.values():
        check_classes(len(names), spec, printable(folder), only)
    _warn_of_number_order(names, only)
    kept = [names[place] for place in only] or names
    files = {split: {name: _images_of(folder, name) for name in kept} for split, folder in folders.items()}

    def scanned(split: Split) -> dict[str, str]:
        return scan(folders[split], [path for name in sorted(kept) for path in files[split][name]], channels)

    def content(split: Split) -> str:
        digest = hashlib.sha256(f"image folder, decoding {DECODING}, {channels} channels".encode())
        for path, own in scanned(split).items():
            digest.update(os.fsencode(path) + b"\0" + own.encode())
        return digest.hexdigest()

    def opener(split: Split) -> Dataset[Any]:
        labelled = [(path, label) for label, name in enumerate(kept) for path in files[split][name]]
        return FolderImages(folders[split], labelled, spec)

    title = f"image_folder {printable(Path(root).name)}" + (f", classes {list(only)}" if only else "")
    labels = [printable(name) for name in kept]
    images = RealImages(title, opener, content, labels, lambda split: scanned(split).values(), tuple(folders), only)
    return few_of_each(images, per_class, seed)


class FolderImages(Dataset[Any]):
    """Labelled image files as (normalised image (C, H, W), label).

    Args:
        folder: where the files are.
        files: their paths within it, and their labels.
        spec: the network's input.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[str, int]], spec: InputSpec) -> None:
        self.folder, self.files, self.channels = folder, files, spec.image_shape[0]
        self.targets = [label for _, label in files]
        self.normalise = Normalise(spec)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with strict_about_size():
                pixels = decode((self.folder / path).read_bytes(), self.channels)
        except (OSError, DataError) as error:
            raise DataError(
                f"data.root: {printable(self.folder / path)} cannot be used ({printable(error)}). Repair or remove it."
            ) from error
        return self.normalise(to_tensor(pixels)), label


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"data.root: there is no folder {printable(folder)}. It should hold one sub-folder of images per class. "
            "Correct data.root, data.train or data.test, or use data=none."
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"data.root: {printable(folder)} is empty: it should hold one sub-folder of images per class.")
    if len(names) == 1:
        raise DataError(
            f"data.root: {printable(folder)} has a single class ({printable(names[0])}); a classifier needs two or "
            "more. Is data.root one level too deep or too high?"
        )
    return names


def _require_equal_classes(folders: dict[Split, Path], classes: dict[Split, list[str]]) -> None:
    # Labels are numbered by the order of the names: other names would give other numbers.
    train, test = (set(classes.get(split, classes[Split.TEST])) for split in Split)
    if train != test:
        differing = [f"{names} only in {printable(folders[split])}" for split, names in (
            (Split.TRAIN, listing(map(printable, sorted(train - test)))),
            (Split.TEST, listing(map(printable, sorted(test - train)))),
        ) if names]  # fmt: skip
        raise DataError(
            f"data.root: the classes of training and test folder differ: {'; '.join(differing)}. Both need sub-folders "
            "of the same names, one per class of the network."
        )


def _warn_of_number_order(names: Sequence[str], only: Sequence[int]) -> None:
    by_number = sorted(names, key=lambda name: (len(name), name))
    if all(name.isdecimal() for name in names) and by_number != list(names) and not only:
        log.warning(
            "data.root: classes are numbered by the order of their names as text, as by torchvision: %s. If the "
            "network was trained with them in the order of the numbers, set data.only=[%s].",
            listing(names), ",".join(str(names.index(name)) for name in by_number),
        )  # fmt: skip


def image_endings() -> set[str]:
    """How the names of images end, in all formats that PIL opens."""
    known = formats()
    return {ending for ending, name in Image.registered_extensions().items() if name in known}


def _images_of(folder: Path, name: str) -> list[str]:
    """Paths within `folder` of the images of a class, sorted; links to folders are followed."""
    endings = image_endings()
    found: list[str] = []
    other: list[str] = []
    seen: set[str] = set()
    for directory, below, files in os.walk(folder / name, followlinks=True):
        if os.path.realpath(directory) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(os.path.realpath(directory))
        for file in files:
            path = os.path.relpath(os.path.join(directory, file), folder)  # noqa: PTH118 (walk gives text)
            (found if Path(file).suffix.lower() in endings else other).append(path)
    if not found:
        raise DataError(
            f"data.root: the class folder {printable(folder / name)} holds no file that ends as images do (.jpg, .png, "
            "or any other format that PIL opens)."
        )
    if other:
        log.warning(
            "data.root: %d files of %s are left out, since they are no images by their names: %s",
            len(other), printable(folder / name), listing(map(printable, sorted(other))),
        )  # fmt: skip
    return sorted(found)
