"""`dfkd predict FILE IMAGES` and `dfkd evaluate FILE data=...`: an exported student, tried at once."""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hydra import compose, initialize_config_module
from torch import Tensor

from dfkd.deployment.finished import finished_run, student_classes
from dfkd.deployment.onnx_file import OnnxFile
from dfkd.errors import ConfigError, DataError
from dfkd.evaluation.scores import accuracy, answers
from dfkd.experiment_config import images_of
from dfkd.files import replacing
from dfkd.models.input_spec import InputSpec
from dfkd.models.student_file import load_student
from dfkd.real_data import Purpose
from dfkd.real_data.class_order import doubt
from dfkd.real_data.folder import FolderImages, image_endings
from dfkd.reporting.percent import percent
from dfkd.reporting.run_files import PACKED_STUDENT, STUDENT

log = logging.getLogger("dfkd")


@dataclass(frozen=True)
class Ready:
    """A student that answers.

    Attributes:
        network: logits (N, classes) of images (N, C, H, W) in normalised input space.
        spec: its input and classes.
        class_names: None where they are not known.
    """

    network: Callable[[Tensor], Tensor]
    spec: InputSpec
    class_names: Sequence[str] | None


def ready(file: Path) -> Ready:
    """The student in an exported ONNX file, or in the safetensors of a run's folder.

    Raises:
        ConfigError: it is neither.
        ArtifactError: the ONNX file does not say what its input is, or a file is damaged.
    """
    if not file.is_file():
        raise ConfigError(f"FILE must be an exported student, got {file}, which is not there.")
    if file.suffix == ".onnx":
        written = OnnxFile(file)
        return Ready(written, *written.about)
    if file.name in (STUDENT, PACKED_STUDENT):
        e = finished_run(file.parent)
        student = load_student(file, e.student.build()).eval()
        return Ready(student, *student_classes(e))
    raise ConfigError(f"FILE must be an .onnx of dfkd export, or {STUDENT} in the folder of its run, got {file}.")


def predict(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd predict`."""
    description = "What an exported student sees in images, as CSV: file, class, confidence."
    parser = argparse.ArgumentParser(prog="dfkd predict", description=description)
    parser.add_argument("file", type=Path, metavar="FILE", help=f"an .onnx of dfkd export, or {STUDENT} of a run")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, help="file to write to (default: the screen)")
    parsed = parser.parse_args(arguments)
    student = ready(parsed.file)
    paths = [path for place in parsed.images for path in _images_in(place)]
    logits, _ = answers(student.network, FolderImages(Path(), [(str(path), 0) for path in paths], student.spec))
    confidence, classes = logits.softmax(1).max(1)
    names = student.class_names or [str(number) for number in range(student.spec.num_classes)]
    rows = [
        (str(path), names[number], f"{sure:.4f}")
        for path, number, sure in zip(paths, classes.tolist(), confidence.tolist(), strict=True)
    ]
    if parsed.out is None:
        _write(rows, sys.stdout)
    else:
        with replacing(parsed.out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            _write(rows, file)


def _write(rows: Sequence[tuple[str, str, str]], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("file", "class", "confidence"))
    writer.writerows(rows)


def _images_in(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in image_endings() and path.is_file())
    if not found:
        raise DataError(f"IMAGES must be image files or folders of them, got {place}, where there is none.")
    return found


def evaluate(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd evaluate`."""
    description = "Accuracy of an exported student on test images: dfkd evaluate FILE data=image_folder data.root=..."
    parser = argparse.ArgumentParser(prog="dfkd evaluate", description=description)
    parser.add_argument("file", type=Path, metavar="FILE", help=f"an .onnx of dfkd export, or {STUDENT} of a run")
    parser.add_argument("data", nargs="+", metavar="data=NAME", help="the images, as a run takes them; data.KEY=VALUE")
    parsed = parser.parse_args(arguments)
    for option in parsed.data:
        if not option.lstrip("+").startswith(("data=", "data.")):
            raise ConfigError(f"dfkd evaluate takes options of the group data alone, got {option}.")
    student = ready(parsed.file)
    with initialize_config_module("dfkd.conf", version_base="1.3"):
        cfg = compose("config", overrides=["experiment=custom", *parsed.data])
    data = images_of("data", cfg.data, student.spec)
    if data is None:
        raise ConfigError("data must be images to evaluate on, got none.")
    data.check(student.spec, Purpose.EVALUATION)
    named, own = data.class_names, student.class_names
    if named is not None and own is not None and list(named) != list(own):
        log.warning("The images' classes are %s, the student's %s.", ", ".join(named), ", ".join(own))
    logits, labels = answers(student.network, data.open(Purpose.EVALUATION))
    doubtful = doubt(logits, labels, named, data.only)
    if doubtful is not None:
        log.warning("%s", doubtful)
    right = accuracy(logits.argmax(1), labels, student.spec.num_classes)
    print(f"{parsed.file}: {percent(right, len(labels))} of {len(labels)} images of {data.name}")
