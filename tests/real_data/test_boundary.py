"""Real data-freeness: nothing that makes or uses dreams can reach a real image.

Three proofs: the packages on the dream's side do not import the real-data package; the door to real images opens for
five purposes only; and a real run, watched by an audit hook, opens no image file outside teacher training, evaluation
and the real-data control, or where new classes are learned, but theirs. The scan, which reads all images for their
digests before the work, is left out of the last proof: nothing but digests leaves it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DREAMS, TINY
from PIL import Image
from running import FORKS

import dfkd
from dfkd.real_data import Purpose, RealImages, Split
from dfkd.tasks import CLASS_INCREMENTAL, RECOVERY

PACKAGE = Path(dfkd.__file__).parent
DREAM_SIDE = [
    "inversion",
    "procedural",
    "dreams",
    "streaming",
    "incremental",
    "distillation",
    "pruning",
    "quantization",
    "models",
    "training",
    "api.py",
    "stages/stage.py",
    "stages/networks.py",
    "stages/dreams.py",
    "stages/pruning.py",
    "stages/learning.py",
    "stages/new_classes.py",
]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("place", DREAM_SIDE)
def test_the_dreams_side_does_not_import_real_data(place):
    files = sorted((PACKAGE / place).rglob("*.py")) if not place.endswith(".py") else [PACKAGE / place]
    assert files
    for path in files:
        for name in imported_modules(path):
            forbidden = ("dfkd.real_data", "dfkd.privacy", "dfkd.tasks", "dfkd.app", "torchvision.datasets", "sklearn")
            assert not name.startswith(forbidden), f"{path.name} imports {name}"


def test_every_folder_of_the_package_is_on_a_known_side():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    both_sides = {"deployment", "real_data", "evaluation", "privacy", "reporting", "stages", "tasks"}
    assert folders == {name for name in DREAM_SIDE if "." not in name} | both_sides


def test_the_door_opens_for_five_purposes_and_records_them():
    opened = []
    images = RealImages("some", opener=lambda split: opened.append(split))  # type: ignore[arg-type]
    for purpose in Purpose:
        images.open(purpose)
    assert opened == [Split.TRAIN, Split.TEST, Split.TRAIN, Split.TRAIN, Split.TRAIN]
    assert images.opened == [
        "teacher training", "evaluation", "real-data control", "learning new classes", "privacy audit"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="distillation"):
        images.open("distillation")  # type: ignore[arg-type]


def opened_images(root: str) -> set[str]:
    """From now on, the image files under `root` that this process opens, but for the check before the work.

    The check reads all images, in any run: that they can be read, and what identifies them.
    """
    seen: set[str] = set()

    def checking(frame) -> bool:
        while frame is not None and not (
            frame.f_code.co_filename.endswith("real_data/scan.py") or frame.f_code.co_name == "check_images"
        ):
            frame = frame.f_back
        return frame is not None

    def watch(event, arguments) -> None:
        name = str(arguments[0]) if event == "open" else ""
        if name.startswith(root) and name.endswith(".png") and not checking(sys._getframe()):
            seen.add(name)

    sys.addaudithook(watch)
    return seen


def run_watched(root: str, arguments: list[str], directory: str, found) -> None:
    """`dfkd ARGUMENTS` in a process of its own; puts the classes and the number of images that it opened."""
    os.chdir(directory)
    seen = opened_images(root)
    sys.argv = ["dfkd", *arguments]

    from dfkd.app import main

    main()
    found.put((len(seen), sorted({name.removeprefix(root).split("/")[2] for name in seen})))


@pytest.fixture
def folder(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label in range(10):
            (tmp_path / "images" / split / f"class{label}").mkdir(parents=True)
            for index in range(count // 10):
                pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / f"class{label}" / f"{index}.png")
    return tmp_path / "images"


def watched(parts, folder: Path, directory: Path, options: list[str]) -> dict[str, tuple[int, list[str]]]:
    """How many image files each part of a run opens, and of which classes."""
    opened = {}
    for part in parts:
        found = FORKS.Queue()
        arguments = (str(folder), [*options, f"stage={part}"], str(directory), found)
        process = FORKS.Process(target=run_watched, args=arguments)
        process.start()
        opened[part] = found.get(timeout=300)
        process.join()
        assert process.exitcode == 0
    return opened


@pytest.mark.parametrize(
    "method",
    [
        ["rounds=2", "distillation.reconstruct=true"],
        ["pruning=filters_taylor", "pruning.amount=0.3", "streaming.every=5"],
    ],
)
def test_only_teacher_training_evaluation_and_the_control_open_image_files(folder, tmp_path, method):
    options = [
        *TINY,
        *method,
        "data=image_folder",
        f"data.root={folder}",
        "teacher.training.batch_size=16",
        "run_dir=run",
    ]
    opened = {stage: count for stage, (count, _) in watched(RECOVERY.parts, folder, tmp_path, options).items()}
    assert opened == {"teacher": 50, "dream": 0, "prune": 0, "recover": 0, "controls": 40, "evaluate": 10}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["data"]["opened_for"] == ["evaluation"]  # by the last part, which found the control in the store


def test_new_classes_are_learned_without_an_image_of_the_old(folder, tmp_path):
    options = [
        *DREAMS, "task=class_incremental", "data=image_folder", f"data.root={folder}", "data.only=[0,1,2,3,4,5]",
        "data@new_data=image_folder", f"new_data.root={folder}", "new_data.only=[6,7,8,9]", "input.num_classes=6",
        "incremental.new_classes=4", "incremental.updates=3", "incremental.batch_size=8",
        "teacher.training.batch_size=16", "run_dir=run",
    ]  # fmt: skip
    opened = watched(CLASS_INCREMENTAL.parts, folder, tmp_path, options)
    new = ["class6", "class7", "class8", "class9"]
    assert opened["teacher"] == (30, [f"class{label}" for label in range(6)])
    assert opened["dream"] == (0, []) and opened["learn"] == (16, new)
    assert opened["controls"][0] == 40  # for joint training, those of both
    assert opened["evaluate"][0] == 10
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["data"]["opened_for"] == ["evaluation"]
    assert set(result["scores"]) == {"teacher", "learn", *CLASS_INCREMENTAL.controls}
    assert result["classes"] == {"old": 6, "new": 4}
    for marks in result["scores"].values():
        assert marks["combined"] == pytest.approx((6 * marks["old"] + 4 * marks["new"]) / 10, abs=1e-5)
