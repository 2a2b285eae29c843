"""Exported students: small files that are the student to the bit, and ONNX that answers as it does."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import torch
from conftest import command
from omegaconf import OmegaConf
from torch import nn

from dfkd import config
from dfkd.errors import ArtifactError, ConfigError
from dfkd.export import export_onnx, export_run
from dfkd.models import CifarResNet
from dfkd.models.student_file import load_student, save_student
from dfkd.pruning import prune_by_global_magnitude, prune_filters, prune_n_of_m


@pytest.mark.parametrize(
    ("prune", "at_most"),
    [
        (lambda model: prune_by_global_magnitude(model, 0.9), 0.2),
        (lambda model: prune_n_of_m(model, 2, 4), 0.58),  # 0.53 of a weight: half of them and a bit for each of 32
        (lambda model: prune_filters(model, 0.4, image_shape=(3, 16, 16)), 1.02),  # smaller already: nothing to pack
    ],
)
def test_a_packed_student_is_the_student_to_the_bit_and_small(prune, at_most, tmp_path):
    student = CifarResNet(20)
    prune(student)
    save_student(tmp_path / "dense.safetensors", student)
    save_student(tmp_path / "packed.safetensors", student, packed=True)
    again = load_student(tmp_path / "packed.safetensors", CifarResNet(20)).state_dict()
    assert again.keys() == student.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in student.state_dict().items())
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "dense")]
    assert sizes[0] < at_most * sizes[1]


def test_a_run_is_exported_to_files_that_answer_as_its_student_does(sweep, tmp_path):
    run = min(path.parent for path in (sweep / "sweep").glob("*/result.json"))
    printed = command(["export", str(run), "--out", "files"], tmp_path).stdout
    files = json.loads((tmp_path / "files" / "export.json").read_text())
    assert set(files) == {"onnx", "pytorch"}
    for entry in files.values():
        assert (tmp_path / "files" / entry["file"]).stat().st_size == entry["bytes"]
        assert f"{entry['bytes']:,} bytes" in printed
    student = load_student(run / "student.packed.safetensors", _network(run))
    images = torch.randn(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "files" / "student.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(logits, student(images).detach(), rtol=1e-4, atol=1e-4)
    state = torch.load(tmp_path / "files" / "student.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    result = json.loads((run / "result.json").read_text())
    assert result["recovered"]["bytes"] == {
        "dense": (run / "student.safetensors").stat().st_size,
        "packed": (run / "student.packed.safetensors").stat().st_size,
    }
    assert result["teacher"]["parameters"] == result["recovered"]["parameters"]  # zeros stay in place
    assert result["teacher"]["sparsity"] == 0 < result["recovered"]["sparsity"]


def _network(run) -> nn.Module:
    config.register()
    return config.instantiate("model", OmegaConf.load(run / "config.yaml").model)


def test_a_student_whose_filters_were_pruned_is_exported(tmp_path):
    student = CifarResNet(8, width=8).eval()
    prune_filters(student, 0.4, image_shape=(3, 16, 16))
    assert export_onnx(student, tmp_path / "student.onnx", (3, 16, 16))["largest_difference"] < 1e-4


def test_bad_input_is_refused(sweep, tmp_path):
    with pytest.raises(ConfigError, match="must be the folder of a finished run, but it has no student.safetensors"):
        export_run(tmp_path, ["onnx"], tmp_path)
    run = min(path.parent for path in (sweep / "sweep").glob("*/result.json"))
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "student.safetensors").write_bytes((run / "student.safetensors").read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="damaged"):
        export_run(tmp_path, ["onnx"], tmp_path)
