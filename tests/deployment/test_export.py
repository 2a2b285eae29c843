"""Exported students: small files that are the student to the bit, and ONNX that answers as it does."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import torch
from conftest import command, large_ones_are_slow
from omegaconf import OmegaConf
from torch import nn

import dfkd
from dfkd import config
from dfkd.deployment import OnnxFile, export_onnx, export_run
from dfkd.deployment.graph import layers_of
from dfkd.deployment.int8 import costly_layers, quantize_onnx
from dfkd.deployment.integers import without_quantizers
from dfkd.errors import ArtifactError, ConfigError
from dfkd.models import CifarResNet, torchvision_model
from dfkd.models.student_file import load_student, save_student
from dfkd.pruning import prune_by_global_magnitude, prune_filters, prune_n_of_m
from dfkd.quantization import QuantizationRecipe, quantize


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
    printed = command(["export", str(run), "--out", "files", "--store", f"{sweep}/artifacts"], tmp_path).stdout
    files = json.loads((tmp_path / "files" / "export.json").read_text())
    assert set(files) == {"onnx", "pytorch", "int8"}
    for entry in files.values():
        assert (tmp_path / "files" / entry["file"]).stat().st_size == entry["bytes"]
        assert f"{entry['bytes']:,} bytes" in printed
    student = load_student(run / "student.packed.safetensors.gz", _network(run))
    images = torch.randn(3, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "files" / "student.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(logits, student(images).detach(), rtol=1e-4, atol=1e-4)
    state = torch.load(tmp_path / "files" / "student.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    result = json.loads((run / "result.json").read_text())
    assert result["recovered"]["bytes"] == {
        "dense": (run / "student.safetensors").stat().st_size,
        "packed": (run / "student.packed.safetensors.gz").stat().st_size,
    }
    assert result["teacher"]["parameters"] == result["recovered"]["parameters"]  # zeros stay in place
    assert result["teacher"]["sparsity"] == 0 < result["recovered"]["sparsity"]


def test_int8_is_calibrated_on_the_runs_dreams_and_scored_beside_the_float_student(sweep, tmp_path):
    run = min(path.parent for path in (sweep / "sweep").glob("*/result.json"))
    options = ["--format", "int8", "--images", "32", "--controls", "noise", "procedural", "real"]
    printed = command(["export", str(run), *options, "--out", str(tmp_path)], sweep).stdout
    entry = json.loads((tmp_path / "export.json").read_text())["int8"]
    assert entry["calibration"] == {"dreams": 32}
    assert set(entry["networks"]) == {"float", "int8", "int8 on noise", "int8 on procedural", "int8 on real"}
    result = json.loads((run / "result.json").read_text())
    assert entry["networks"]["float"]["accuracy"] == pytest.approx(result["recovered"]["accuracy"], abs=1e-6)
    assert f"int8: accuracy {100 * entry['networks']['int8']['accuracy']:.1f} %" in printed
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"student.onnx", "student.int8.onnx"}

    dreams = dfkd.load_dreams(run, sweep / "artifacts")
    command(["export", str(run), "--format", "int8", "--images", "100000", "--out", str(tmp_path / "all")], sweep)
    calibration = json.loads((tmp_path / "all" / "export.json").read_text())["int8"]["calibration"]
    assert calibration == {"dreams": len(dreams.training.images)} and dreams.num_held_out > 0

    written = OnnxFile(tmp_path / "student.int8.onnx")
    images = dreams.images.float()
    expected = load_student(run / "student.safetensors", _network(run))(images).detach()
    assert 0 < (written(images) - expected).std() / expected.std() < 0.5
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "student.int8.onnx").graph.initializer if tensor.dims}
    assert onnx.TensorProto.INT8 in types
    spec, classes = written.about
    assert spec.image_shape == (1, 8, 8) and len(classes or []) in (0, 10)


def test_without_the_runs_dreams_there_is_no_int8_and_the_rest_is_exported(sweep, tmp_path):
    run = min(path.parent for path in (sweep / "sweep").glob("*/result.json"))
    done = command(["export", str(run), "--out", "files"], tmp_path)
    assert set(json.loads((tmp_path / "files" / "export.json").read_text())) == {"onnx", "pytorch"}
    assert "int8 is left out" in done.stderr and "--store" in done.stderr
    refused = command(["export", str(run), "--out", "files", "--format", "int8"], tmp_path, check=False)
    assert refused.returncode == 1 and "store must hold dreams/" in refused.stderr


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)])
def test_a_quantised_student_has_its_integers_in_the_file(bits, tmp_path):
    network, images = CifarResNet(8, width=8), torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.normal_()  # of either sign, which folding puts into the integers
        network.train()(images)
    quantize(network.eval(), QuantizationRecipe(weight_bits=bits[0], input_bits=bits[1]), images)
    export_onnx(network, tmp_path / "student.onnx", (3, 16, 16))
    expected = network(images).detach()
    error = (OnnxFile(tmp_path / "student.onnx")(images) - expected).abs().mean() / expected.abs().mean()
    assert error < (0.02 if bits[1] == 8 else 0.1)  # onnxruntime moves some roundings elsewhere
    tensors = onnx.load(tmp_path / "student.onnx").graph.initializer
    kinds = [tensor.data_type for tensor in tensors if tensor.name.endswith("weight.integers")]
    types = onnx.TensorProto
    assert kinds.count(types.INT4) == (len(kinds) - 2 if bits[0] == 4 else 0) and types.INT8 in kinds
    if bits[1] == 8:
        export_onnx(without_quantizers(network), tmp_path / "plain.onnx", (3, 16, 16))
        quantize_onnx(tmp_path / "plain.onnx", tmp_path / "int8.onnx", images, student=network)
        near = (OnnxFile(tmp_path / "int8.onnx")(images) - expected).abs().mean() / expected.abs().mean()
        assert near < 0.05


def test_layers_can_stay_in_float_and_the_costly_ones_are_found(tmp_path):
    network = CifarResNet(8, width=8).eval()
    with torch.no_grad():
        network.layer2[0].conv1.weight[0] *= 500.0  # nothing of the other channels is left in eight bits
    source, images = tmp_path / "float.onnx", torch.randn(16, 3, 16, 16)
    export_onnx(network, source, (3, 16, 16))
    assert set(layers_of(source)) == {
        name for name, layer in network.named_modules() if hasattr(layer, "kernel_size")
    } | {"linear"}
    cost = costly_layers(source, images)
    assert next(iter(cost)) == "layer2.0.conv2"  # which takes them

    def error(in_float) -> float:
        quantize_onnx(source, tmp_path / "int8.onnx", images, in_float)
        return (OnnxFile(tmp_path / "int8.onnx")(images) - OnnxFile(source)(images)).abs().max().item()

    assert error(["layer2.0.conv2"]) < error([])
    with pytest.raises(ConfigError, match=r"in_float must name layers of the network, got 'conv9'"):
        quantize_onnx(source, tmp_path / "int8.onnx", images, ["conv9"])
    with pytest.raises(ConfigError, match="calibration needs one image or more"):
        quantize_onnx(source, tmp_path / "int8.onnx", images[:0])


@pytest.mark.parametrize("name", large_ones_are_slow(["mobilenet_v3_small", "efficientnet_b0", "mobilenet_v2"]))
def test_networks_with_depthwise_convolutions_and_their_activations_run_in_int8(name, tmp_path):
    torch.manual_seed(0)
    network = torchvision_model(name, num_classes=7, in_channels=3, small_image_stem=False).eval()
    source, images = tmp_path / "float.onnx", torch.randn(8, 3, 32, 32)
    export_onnx(network, source, (3, 32, 32))
    quantize_onnx(source, tmp_path / "int8.onnx", images)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * source.stat().st_size
    assert OnnxFile(tmp_path / "int8.onnx")(images).isfinite().all()


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
