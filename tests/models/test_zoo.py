"""Every architecture: it builds, takes small or odd images, and can be inverted, pruned and recovered."""

from __future__ import annotations

import pytest
import torch
from conftest import large_ones_are_slow
from safetensors.torch import load_file

import dfkd
from dfkd.errors import ConfigError, ModelError
from dfkd.models import CifarResNet, InputSpec, WideResNet, batch_norm_layers, torchvision_model
from dfkd.models.input_spec import check_model
from dfkd.pruning import sparsity

TORCHVISION = [
    "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v2", "vgg11_bn", "vgg19_bn", "densenet121",
    "shufflenet_v2_x1_0",
]  # fmt: skip


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_resnets_have_their_depth(depth):
    model = CifarResNet(depth)
    weighted = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert len(weighted) == depth


@pytest.mark.parametrize(("depth", "factor", "millions"), [(16, 1, 0.17), (16, 2, 0.69), (40, 1, 0.56), (40, 2, 2.2)])
def test_wide_resnets_have_the_published_number_of_parameters(depth, factor, millions):
    count = sum(p.numel() for p in WideResNet(depth, factor).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_resnet20_takes_the_shared_teacher(shared):
    model = CifarResNet(20)
    model.load_state_dict(load_file(shared / "teachers" / "resnet20-cifar10-jpeg.safetensors"))


@pytest.mark.parametrize("name", large_ones_are_slow(TORCHVISION))
def test_torchvision_models_with_a_small_image_stem_go_through_the_whole_job(name):
    teacher = torchvision_model(name, num_classes=7, in_channels=2, small_image_stem=True).eval()
    shape = (2, 32, 40)
    dreams = dfkd.invert(teacher, 4, image_shape=shape, iterations=1, batch_size=4, accelerator="cpu")
    assert dreams.images.shape == (4, *shape) and dreams.images.isfinite().all()
    student = dfkd.prune(teacher, 0.5)
    dfkd.recover(
        student, teacher, dreams, updates=1, batch_size=4, learning_rate=1e-3, accelerator="cpu", keep_nearest=False
    )
    assert sparsity(student) == pytest.approx(0.5, abs=1e-3)
    assert student.state_dict().keys() == teacher.state_dict().keys()


def test_the_small_image_stem_keeps_resolution():
    features = {}
    for stem in (False, True):
        model = torchvision_model("mobilenet_v2", 10, small_image_stem=stem).eval()
        features[stem] = model.features(torch.zeros(1, 3, 32, 32)).shape[-1]
    assert features == {False: 1, True: 4}


def test_unknown_names_and_families_are_refused():
    with pytest.raises(ConfigError, match="resnet19"):
        torchvision_model("resnet19")
    with pytest.raises(ModelError, match="small_image_stem is not defined for EfficientNet"):
        torchvision_model("efficientnet_b0", small_image_stem=True)
    with pytest.raises(ConfigError, match="depth must be 6n"):
        CifarResNet(21)
    with pytest.raises(ConfigError, match="depth must be 6n"):
        WideResNet(20)


def test_batch_norm_is_found_by_what_it_holds():
    class Renamed(torch.nn.BatchNorm2d):
        pass

    model = torch.nn.Sequential(
        torch.nn.SyncBatchNorm(3), Renamed(3), torch.nn.BatchNorm2d(3, track_running_stats=False),
        torch.nn.InstanceNorm2d(3, track_running_stats=True), torch.nn.BatchNorm1d(3),
    )  # fmt: skip
    assert list(batch_norm_layers(model)) == ["0", "1", "4"]


def test_class_count_and_image_shape_must_fit_the_model():
    model = torchvision_model("vgg11_bn", 5, small_image_stem=True)
    with pytest.raises(ConfigError, match=r"input\.num_classes must be 5.*got 6"):
        check_model(model, InputSpec((3, 32, 32), 6, (0,) * 3, (1,) * 3))
    with pytest.raises(ModelError, match=r"input\.image_shape=\[3, 8, 8\]"):
        check_model(model, InputSpec((3, 8, 8), 5, (0,) * 3, (1,) * 3))
    with pytest.raises(ModelError, match=r"input\.image_shape=\[1, 32, 32\]"):
        check_model(model, InputSpec((1, 32, 32), 5, (0,), (1,)))


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"image_shape": (3, 32)}, "image_shape"), ({"num_classes": 1}, "num_classes"), ({"mean": (0.5,)}, "mean"),
     ({"std": (1.0, 1.0, 0.0)}, "std")],
)  # fmt: skip
def test_an_input_that_makes_no_sense_is_refused(changes, option):
    good = {"image_shape": (3, 32, 32), "num_classes": 10, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(ConfigError, match=rf"input\.{option}"):
        InputSpec(**{**good, **changes})
