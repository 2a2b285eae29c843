"""Quantisation: what a layer of few bits computes, what it learns by, and that everything else can live with it."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import pytest
import torch
from conftest import LEARNING, TINY, Interrupt, Interrupted, command, result_of
from networks import SPEC, Depthwise, Tied, Twice
from torch import nn

import dfkd
from dfkd.distillation import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ArtifactError, ConfigError, ModelError
from dfkd.files import load_tensors
from dfkd.models import CifarResNet
from dfkd.models.freezing import frozen
from dfkd.models.student_file import load_student, save_student
from dfkd.pruning import prune_by_global_magnitude, prune_filters
from dfkd.quantization import QuantizationRecipe, quantize, quantized_layers
from dfkd.quantization.grid import best_scale, on_grid
from dfkd.quantization.layer import LayerQuantizer
from dfkd.quantization.quantize import best_range
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace, fit

W4A4 = QuantizationRecipe(weight_bits=4, input_bits=4)
CPU = TrainerOptions(accelerator="cpu")


@pytest.fixture
def dreams() -> Dreams:
    labels = torch.arange(48) % 10
    return Dreams(torch.randn(48, 1, 8, 8).half(), labels, labels, torch.ones(48))


def quantized(network: nn.Module, recipe: QuantizationRecipe = W4A4) -> nn.Module:
    student = copy.deepcopy(network)
    quantize(student, recipe, torch.randn(32, 1, 8, 8))
    return student


def distinct_weights(layer: nn.Module) -> int:
    return max(len(row.unique()) for row in layer.weight.flatten(1))


def test_weights_and_inputs_have_as_many_values_as_their_bits_allow(teacher):
    student = quantized(teacher)
    layers = quantized_layers(student)
    seen = {}
    for name, (layer, _) in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    student(torch.randn(16, 1, 8, 8))
    assert [quantizer.weight_bits for _, quantizer in layers.values()] == [8, *[4] * (len(layers) - 2), 8]
    for name, (layer, quantizer) in layers.items():
        assert distinct_weights(layer) <= 2**quantizer.weight_bits - 1
        assert len(seen[name].unique()) <= 2**quantizer.input_bits
        assert (quantizer(torch.zeros(1)) == 0).all()  # padding stays what it is


def test_eight_bits_change_little_four_more_and_two_much(teacher):
    images = torch.randn(64, 1, 8, 8)
    expected, errors = teacher(images), []
    for bits in (8, 4, 2):
        recipe = QuantizationRecipe(weight_bits=bits, input_bits=bits, edge_bits=None)
        errors.append((quantized(teacher, recipe)(images) - expected).std() / expected.std())
    assert errors[0] < 0.03 < errors[1] < errors[2]


def test_scales_leave_less_error_than_the_largest_value_would():
    weight = torch.randn(6, 90)
    weight[0] = 0
    largest = weight.abs().amax(1).clamp_min(1e-9) / 7
    error = (on_grid(weight, best_scale(weight, 7), 7) - weight).square().sum(1)
    worse = (on_grid(weight, largest, 7) - weight).square().sum(1)
    assert error[0] == 0 and (error[1:] < worse[1:]).all()
    values = torch.randn(5000).abs()
    scale, zero = best_range(values, 15)
    assert zero == 0 and 0 < 15 * scale < values.max()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradients_are_those_of_learned_step_sizes(memory_format):
    quantizer = LayerQuantizer(1, 4, 4)
    quantizer.input_log_scale.data.fill_(-1.5)
    quantizer.input_zero.fill_(5)
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    upstream = torch.randn(3, 4, 5, 6)
    (quantizer(x) * upstream).sum().backward()
    own, of_scale = x.grad.clone(), quantizer.input_log_scale.grad.clone()

    log_scale = quantizer.input_log_scale.detach().requires_grad_()
    x.grad = None
    ratio = x / log_scale.exp()
    straight = ratio.detach().round() + (ratio - ratio.detach())  # of the value of round(x), and the gradient of x
    inside = (straight >= -5) & (straight <= 10)
    expected = torch.where(inside, straight, straight.detach().clamp(-5, 10)) * log_scale.exp()
    (expected * upstream).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(quantizer(x), expected)
    torch.testing.assert_close(own, x.grad)
    torch.testing.assert_close(of_scale, log_scale.grad / (x.numel() * 15) ** 0.5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantised_student_is_read_from_its_file_to_the_bit(teacher, packed, tmp_path):
    student = copy.deepcopy(teacher).eval()
    prune_filters(student, 0.3, (1, 8, 8))
    quantize(student, W4A4, torch.randn(32, 1, 8, 8))
    save_student(tmp_path / "student.st", student, packed)
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        again = load_student(tmp_path / "student.st", copy.deepcopy(teacher))
        assert torch.equal(again(images), student(images))
        another = copy.deepcopy(again)
        for _, quantizer in quantized_layers(another).values():
            quantizer.input_log_scale += 1
        assert torch.equal(again(images), student(images)) and not torch.equal(another(images), again(images))


def test_a_packed_student_takes_less_than_a_tenth(tmp_path):
    student = CifarResNet(20).eval()
    save_student(tmp_path / "float", student)
    prune_by_global_magnitude(student, 0.75)
    quantize(student, QuantizationRecipe(weight_bits=8), torch.randn(8, 3, 32, 32))
    save_student(tmp_path / "packed", student, packed=True)
    assert (tmp_path / "packed").stat().st_size < (tmp_path / "float").stat().st_size / 10


def test_a_packed_file_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dfkd.files.LARGEST", 2**21)
    (tmp_path / "student.st").write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(ArtifactError, match=r"holds more than 2\.0 MiB"):
        load_tensors(tmp_path / "student.st")


def learn(student, teacher, dreams, directory: Path, interrupt: int | None = None, **changes) -> nn.Module:
    recipe = DistillationRecipe(
        **{"updates": 12, "batch_size": 16, "learning_rate": 0.01, "batch_norm": "live", **changes}
    )
    place = Workplace(directory, TrainerOptions(accelerator="cpu", checkpoint_updates=1))
    data = DreamDataModule(dreams, Stream(16, 12))

    def prune(network: nn.Module, share: float) -> None:
        prune_by_global_magnitude(network, 0.6 * share)

    if interrupt is None:
        recover_student(student, teacher, data, recipe, place, prune, quantization=W4A4)
        return student.eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dfkd.distillation.recover.fit",
            lambda module, data, place, callbacks: fit(module, data, place, [*callbacks, Interrupt(interrupt)]),
        )
        with pytest.raises(Interrupted):
            recover_student(student, teacher, data, recipe, place, prune, quantization=W4A4)
    return student


def test_a_student_that_is_pruned_and_quantised_learns_and_stays_both(teacher, dreams, tmp_path):
    student = learn(copy.deepcopy(teacher), teacher, dreams, tmp_path)
    for layer, quantizer in quantized_layers(student).values():
        assert distinct_weights(layer) <= 2**quantizer.weight_bits - 1
    assert dfkd.pruning.sparsity(student) >= 0.599
    before = quantized(teacher)
    scales = [quantizer.input_log_scale.item() for _, quantizer in quantized_layers(student).values()]
    assert scales != [quantizer.input_log_scale.item() for _, quantizer in quantized_layers(before).values()]


@pytest.mark.parametrize("at", [4, 9])  # while it is pruned, and after
def test_an_interrupted_quantised_recovery_ends_at_the_same_bits(teacher, dreams, at, tmp_path):
    torch.manual_seed(0)
    whole = learn(copy.deepcopy(teacher), teacher, dreams, tmp_path / "whole")
    learn(copy.deepcopy(teacher), teacher, dreams, tmp_path / "parts", interrupt=at)
    continued = learn(copy.deepcopy(teacher), teacher, dreams, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], value), name


def test_learning_with_the_grid_ends_nearer_than_bringing_a_network_to_it(teacher, dreams):
    images, recipe = dreams.images.float(), QuantizationRecipe(weight_bits=2, input_bits=4, edge_bits=None)
    student, at_once = copy.deepcopy(teacher), copy.deepcopy(teacher)
    quantize(at_once, recipe, images)
    dfkd.recover(
        student,
        teacher,
        dreams,
        quantization=recipe,
        updates=80,
        batch_size=16,
        learning_rate=0.01,
        batch_norm="live",
        mixup=0.0,
        keep_nearest=False,
        accelerator="cpu",
    )
    with torch.no_grad():
        far, near = ((network(images) - teacher(images)).square().mean() for network in (at_once, student))
    assert near < far / 2


@pytest.mark.parametrize("part", [Depthwise, Tied, Twice, nn.SiLU, nn.ReLU6, nn.Hardswish])
def test_layers_of_all_kinds_can_be_quantised(part):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), part(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    images = torch.randn(16, *SPEC.image_shape)
    with torch.no_grad():
        expected = network(images)
        quantize(network, QuantizationRecipe(weight_bits=8), images)
        assert (network(images) - expected).abs().max() < 0.1 * expected.abs().max()


def test_bad_options_and_networks_are_named(teacher):
    with pytest.raises(ConfigError, match=r"quantization\.weight_bits must be in \[2, 8\], or null, got 1"):
        QuantizationRecipe(weight_bits=1)
    with pytest.raises(ConfigError, match=r"quantization\.in_float must be names of its layers .*got 'fc'"):
        quantized(teacher, QuantizationRecipe(weight_bits=4, in_float=["fc"]))
    with pytest.raises(ConfigError, match=r"quantization\.weight_bits must be in \[2, 8\] to quantise, got None"):
        quantized(teacher, QuantizationRecipe())
    with pytest.raises(ModelError, match="quantised already"):
        quantized(quantized(teacher))
    kept = quantized(teacher, QuantizationRecipe(weight_bits=4, in_float=["linear"]))
    assert "linear" not in quantized_layers(kept) and torch.equal(kept.linear.weight, teacher.linear.weight)


def test_a_run_prunes_quantises_and_recovers(tmp_path):
    command([*TINY, "quantization=w4a4", "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    assert (result["recovered"]["weight_bits"], result["recovered"]["input_bits"]) == (4, 4)
    assert "weight_bits" not in result["teacher"] and result["choices"]["quantization"] == "w4a4"
    assert result["controls"]["real"] is not None and "quantize" in result["artifacts"]
    command([*LEARNING, "quantization=none", "pruning=none", "controls=[]", "run_dir=plain"], tmp_path)
    assert "weight_bits" not in result_of(tmp_path, "plain")["recovered"]
    done = command(["export", "run"], tmp_path)
    assert "int8 is left out" in done.stderr and {path.name for path in tmp_path.glob("run/*.onnx")} == {"student.onnx"}
    refused = command(["export", "run", "--format", "int8"], tmp_path, check=False)
    assert refused.returncode == 1 and "fewer than eight bits" in refused.stderr
    report = command(["report", "run", "plain"], tmp_path).stdout
    assert "| w4a4 |" in report and "quantization.input_bits" not in report
    for options, told in (
        (["quantization=int8", "task=transfer"], "quantization does nothing with task=transfer"),
        (["quantization=int8", "rounds=2"], "rounds must be 1 with quantization"),
        (["quantization=int8", "quantization.in_float=[fc]"], "quantization.in_float must be names of its layers"),
    ):
        refused = command([*LEARNING, *options, "run_dir=refused"], tmp_path, check=False)
        assert refused.returncode == 1 and told in refused.stderr, refused.stderr


def test_images_get_a_gradient_through_a_network_that_is_quantised_and_frozen(teacher):
    student, images = quantized(teacher), torch.randn(4, 1, 8, 8, requires_grad=True)
    slopes = {}
    for name, network in {"float": teacher, "quantised": student}.items():
        with frozen(network):
            (slopes[name],) = torch.autograd.grad(network(images).logsumexp(1).sum(), images)
    alike = torch.cosine_similarity(slopes["float"].flatten(), slopes["quantised"].flatten(), dim=0)
    assert alike > 0.7 and all(parameter.grad is None for parameter in student.parameters())
