"""Networks of every kind, made by combining traits, through the whole job: right, or refused before it begins."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from networks import SHAPE, SPEC, UNSUPPORTED, built, combinations
from torch import nn

import dfkd
from dfkd.deployment import export_onnx, export_pytorch
from dfkd.errors import DfkdError, ModelError
from dfkd.models import InputSpec, batch_norm_layers, torchvision_model
from dfkd.models.input_spec import check_model
from dfkd.models.student_file import load_student, save_student
from dfkd.pruning import prune_filters, sparsity

# Layers that no forward comes to, keys' biases, which softmax does not feel, and a slope where nothing is negative.
NO_GRADIENT = ("block.other", "block.bn", "block.attention.in_proj_bias", "activation.weight")


def everything_of(model: nn.Module) -> dict:
    """What must not change of a user's network."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "asked": [p.requires_grad for p in model.parameters()],
        "layout": [p.stride() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [(set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "momentum": [getattr(module, "momentum", None) for module in model.modules()],
    }


def require_unchanged(model: nn.Module, before: dict) -> None:
    after = everything_of(model)
    values, expected = after.pop("values"), before["values"]
    assert after == {key: value for key, value in before.items() if key != "values"}
    assert all(torch.equal(value, expected[name]) for name, value in values.items())


@pytest.mark.parametrize("traits", combinations(), ids=", ".join)
def test_a_network_of_any_kind_goes_through_the_whole_job(traits, tmp_path):
    teacher = built(*traits)
    before = everything_of(teacher)
    check_model(teacher, SPEC)
    dreams = dfkd.invert(
        teacher, 8, image_shape=SHAPE, mean=SPEC.mean, std=SPEC.std, iterations=2, batch_size=8, accelerator="cpu"
    )
    assert dreams.images.isfinite().all()
    student = dfkd.prune(teacher, 0.5)
    pruned = copy.deepcopy(student.state_dict())
    dfkd.recover(
        student, teacher, dreams, updates=2, batch_size=8, warmup_updates=0, accelerator="cpu", keep_nearest=False
    )
    require_unchanged(teacher, before)

    assert sparsity(student) == pytest.approx(0.5, abs=0.01)
    assert [p.requires_grad for p in student.parameters()] == before["asked"]
    for name, parameter in student.named_parameters():
        if not name.startswith(NO_GRADIENT):
            assert not torch.equal(parameter, pruned[name]), f"{name} never learned"
    for name in batch_norm_layers(student):
        if not ("fixed" in traits and name == "norm") and not ("unused" in traits and name == "block.bn"):
            assert not torch.equal(student.state_dict()[f"{name}.running_var"], pruned[f"{name}.running_var"]), name

    images = torch.randn(4, *SHAPE)
    again = built(*traits)
    save_student(tmp_path / "student.safetensors", student, packed=True)
    load_student(tmp_path / "student.safetensors", again)
    assert torch.equal(again(images), student(images))
    export_pytorch(student, tmp_path / "student.pt")
    assert torch.load(tmp_path / "student.pt", weights_only=True).keys() == student.state_dict().keys()
    try:
        shrunk = copy.deepcopy(teacher).eval()
        prune_filters(shrunk, 0.2, SHAPE)
    except ModelError:
        return  # where filters cannot go, single weights can
    save_student(tmp_path / "shrunk.safetensors", shrunk)
    assert torch.equal(load_student(tmp_path / "shrunk.safetensors", built(*traits))(images), shrunk(images))


FEW = [traits for traits in combinations() if traits[0] in ("attention", "transposed", "tied")][:3]
ONNX = [pytest.param(t, id=", ".join(t), marks=() if t in FEW else pytest.mark.slow) for t in combinations()]


@pytest.mark.parametrize("traits", ONNX)
def test_a_network_of_any_kind_is_exported(traits, tmp_path):
    assert export_onnx(built(*traits).eval(), tmp_path / "student.onnx", SHAPE)["largest_difference"] < 1e-3


@pytest.mark.parametrize("unsupported", UNSUPPORTED)
def test_a_network_that_is_not_supported_is_refused_before_the_work(unsupported):
    traits = combinations()[list(UNSUPPORTED).index(unsupported)]
    model = UNSUPPORTED[unsupported](built(*traits))
    with pytest.raises(DfkdError):
        dfkd.invert(model, 8, image_shape=SHAPE, iterations=2, batch_size=8, accelerator="cpu")


def torchvision_classifiers() -> list[str]:
    """Those with batch norm, without the largest two."""
    names = torchvision.models.list_models(module=torchvision.models)
    without = ("alexnet", "convnext", "squeezenet", "swin", "vit", "regnet_y_128gf", "regnet_x_32gf")
    return [name for name in names if not name.startswith(without) and (not name.startswith("vgg") or "bn" in name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_classifiers())
def test_every_torchvision_classifier_with_batch_norm_goes_through_the_whole_job(name, tmp_path):
    size = 224 if name.startswith("maxvit") else 96  # its windows fit one size alone
    shape = (3, size, size)
    teacher = torchvision_model(name, num_classes=10).eval()
    check_model(teacher, InputSpec(shape, 10, (0.5,) * 3, (0.5,) * 3))
    dreams = dfkd.invert(teacher, 4, image_shape=shape, iterations=2, batch_size=4, accelerator="cpu")
    student = dfkd.prune(teacher, 0.5)
    dfkd.recover(student, teacher, dreams, updates=2, batch_size=4, accelerator="cpu")
    assert sparsity(student) == pytest.approx(0.5, abs=0.01)
    save_student(tmp_path / "student.safetensors", student)
    again = load_student(tmp_path / "student.safetensors", torchvision_model(name, num_classes=10))
    images = torch.randn(2, *shape)
    assert torch.equal(again(images), student(images))
