"""`dfkd predict` and `dfkd evaluate`: an exported student, tried at once."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import DREAMS, command
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    command(["export", "run", "--format", "int8", "--out", str(folder / "files")], finished)
    digits = load_digits()
    for place, (image, label) in enumerate(zip(digits.images[:60], digits.target[:60], strict=True)):
        for split in ("train", "test"):
            path = folder / "images" / split / f"digit{label}" / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image / 16 * 255).astype(np.uint8)).save(path)
    shutil.copytree(finished / "run", folder / "run")
    return folder


@pytest.mark.parametrize("file", ["files/student.onnx", "files/student.int8.onnx", "run/student.packed.safetensors.gz"])
def test_a_students_predictions_are_those_that_it_is_scored_by(exported, file):
    said = command(["predict", file, "images/test", "--out", "found.csv"], exported).stdout
    assert said == ""
    with (exported / "found.csv").open() as found:
        rows = list(csv.DictReader(found))
    assert len(rows) == 60 and all(0 < float(row["confidence"]) <= 1 for row in rows)
    right = sum(f"/digit{row['class']}/" in row["file"] for row in rows)
    scored = command(["evaluate", file, "data=image_folder", "data.root=images"], exported).stdout
    assert f"{100 * right / 60:.1f} %" in scored and "of 60 images of image_folder images" in scored


def test_a_single_image_is_enough(exported):
    image = next((exported / "images" / "test").rglob("*.png"))
    lines = command(["predict", "files/student.onnx", str(image)], exported).stdout.splitlines()
    assert lines[0] == "file,class,confidence" and len(lines) == 2 and lines[1].startswith(str(image))


def test_what_evaluation_says_is_what_the_run_said(exported, finished):
    accuracy = json.loads((finished / "run" / "result.json").read_text())["recovered"]["accuracy"]
    assert (
        f": {100 * accuracy:.1f} % of " in command(["evaluate", "files/student.onnx", "data=digits"], exported).stdout
    )


def test_a_student_that_learned_new_classes_knows_them_all(exported, tmp_path):
    options = ["experiment=incremental_digits", *DREAMS[1:], "incremental.updates=20", "controls=[]", "run_dir=run"]
    command(options, tmp_path)
    command(["export", "run", "--format", "int8"], tmp_path)
    scores = json.loads((tmp_path / "run" / "export.json").read_text())["int8"]["networks"]
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]["learn"]["combined"]
    assert scores["float"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    for file in ("student.onnx", "student.safetensors"):
        assert f": {100 * accuracy:.1f} % of " in command(["evaluate", f"run/{file}", "data=digits"], tmp_path).stdout
        rows = command(["predict", f"run/{file}", str(exported / "images" / "test")], tmp_path).stdout.splitlines()
        assert {row.split(",")[1] for row in rows[1:]} & set("56789")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "none.onnx", "images"], "FILE must be an exported student, got none.onnx"),
        (["predict", "run/config.yaml", "images"], "FILE must be an .onnx of dfkd export, or student.safetensors"),
        (["predict", "broken.onnx", "images"], "no ONNX file that onnxruntime runs"),
        (["predict", "files/student.onnx", "run"], "IMAGES must be image files or folders of them"),
        (["evaluate", "files/student.onnx", "data=none"], "data must be images to evaluate on"),
        (["evaluate", "files/student.onnx", "seed=3"], "takes options of the group data alone, got seed=3"),
        (["evaluate", "files/student.onnx", "data=image_folder", "data.root=nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_refused(exported, arguments, said):
    (exported / "broken.onnx").write_bytes(b"\x08\x01 nothing that runs")
    for picture in (exported / "run").glob("*.png"):
        picture.unlink()
    done = command(arguments, exported, check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
