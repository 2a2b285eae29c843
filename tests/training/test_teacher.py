"""Training a teacher: images that grow, an average of weights, and what is refused before the work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, command
from experiments import experiment, run
from torch import nn

from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ConfigError
from dfkd.models import InputSpec, torchvision_model
from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.probe import Network
from dfkd.real_data import Purpose
from dfkd.stages.networks import load
from dfkd.training.augmentation import augment, pasted_boxes
from dfkd.training.averaging import Average
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace, fit
from dfkd.training.teacher import TeacherRecipe, TeacherTraining


class Watched(nn.Module):
    """Notes the sides of the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 10, 3, padding=1)
        self.seen: list[tuple[int, int]] = []

    def forward(self, x):
        if self.training:
            self.seen.append(tuple(x.shape[2:]))
        return self.convolution(x).mean((2, 3))


def train(network: nn.Module, recipe: TeacherRecipe, directory: Path, averaging: bool = False) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 16, 24, generator=generator)
    labels = torch.arange(32) % 10
    data = DreamDataModule(Dreams(images, labels, labels, torch.ones(32)), Stream(recipe.batch_size, recipe.updates))
    callbacks = [Average(recipe.weight_averaging)] if averaging and recipe.weight_averaging else []
    fit(TeacherTraining(network, recipe, 0), data, Workplace(directory, TrainerOptions(accelerator="cpu")), callbacks)


def test_images_grow_to_their_whole_size_over_three_quarters_of_the_updates(tmp_path):
    network = Watched()
    train(network, TeacherRecipe(updates=16, batch_size=8, progressive_size=0.5), tmp_path)
    heights, widths = zip(*network.seen, strict=True)
    assert network.seen[0] == (8, 12)
    assert list(heights) == sorted(heights)
    assert list(widths) == sorted(widths)
    assert set(network.seen[12:]) == {(16, 24)}
    assert {side % 4 for side in (*heights, *widths)} == {0}
    assert network.seen[6] == (12, 16)  # half of the way, in steps of four pixels


def test_sides_that_are_no_multiple_of_the_steps_become_whole_too():
    recipe = TeacherRecipe(updates=16, progressive_size=0.5)
    assert [recipe.side(29, update) for update in (0, 11, 12, 15)] == [16, 28, 29, 29]


def test_without_a_progressive_size_images_are_whole(tmp_path):
    network = Watched()
    train(network, TeacherRecipe(updates=3, batch_size=8), tmp_path)
    assert set(network.seen) == {(16, 24)}


def test_the_teacher_is_the_average_of_the_weights_it_went_through(tmp_path):
    recipe = TeacherRecipe(updates=4, batch_size=32, schedule="constant", weight_decay=0.0, weight_averaging=0.5)
    last, averaged = Watched(), Watched()
    averaged.load_state_dict(last.state_dict())
    weights = []

    def follow(*_) -> None:
        weights.append(last.convolution.weight.detach().clone())

    last.register_forward_pre_hook(follow)  # sees the weights before each update
    train(last, recipe, tmp_path / "last")
    train(averaged, recipe, tmp_path / "averaged", averaging=True)
    visited = [*weights[-3:], last.convolution.weight.detach()]  # after each update
    average = visited[0]
    for weight in visited[1:]:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(averaged.convolution.weight.detach(), average)
    assert not torch.equal(average, visited[-1])


class Fixed(nn.Module):
    """Answers the mean colour of each image's patch of every class: a box of another image can be read off."""

    def forward(self, x):
        return 20 * torch.stack([(x - place).abs().lt(0.5).float().mean((1, 2, 3)) for place in range(8)], 1)


def test_with_cutmix_the_label_of_a_box_counts_as_much_as_the_box_covers():
    labels = torch.arange(8)
    images = labels.float()[:, None, None, None].expand(8, 1, 32, 32)
    module = TeacherTraining(Fixed(), TeacherRecipe(cutmix=1.0), 0)
    torch.manual_seed(0)
    mixed, others, areas = pasted_boxes(images, 1.0)
    covered = (mixed == labels[others].float()[:, None, None, None]).float().mean((1, 2, 3))
    elsewhere = others != labels
    assert elsewhere.sum() > 4 and areas.max() > 0.3
    torch.testing.assert_close(areas[elsewhere], covered[elsewhere])
    target = torch.lerp(F.one_hot(labels, 8).float(), F.one_hot(others, 8).float(), areas[:, None])
    expected = -(target * module.network(mixed).log_softmax(1)).sum(1).mean()
    torch.manual_seed(0)
    torch.testing.assert_close(module.losses(images, labels)["total"], expected)


def test_the_share_of_boxes_is_a_share():
    with pytest.raises(ConfigError, match=r"teacher\.training\.cutmix must be in \[0, 1\], got 1\.5"):
        TeacherRecipe(cutmix=1.5)


@pytest.mark.parametrize(
    ("option", "value"), [("progressive_size", 0.0), ("progressive_size", 1.5), ("weight_averaging", 1.0)]
)
def test_shares_are_shares(option, value):
    with pytest.raises(ConfigError, match=rf"teacher\.training\.{option} must be in \(0, 1\), or null, got {value}"):
        TeacherRecipe(**{option: value})


class Halving(nn.Module):
    """Takes no image of less than sixteen pixels."""

    def forward(self, x):
        for _ in range(4):
            x = F.max_pool2d(x, 2)
        return x.flatten(1)


def test_a_network_that_does_not_take_small_images_is_told_apart_from_one_that_does():
    recipe = TeacherRecipe(progressive_size=0.5)
    recipe.require_takes(Halving(), (1, 32, 32))
    with pytest.raises(ConfigError, match=r"progressive_size must be larger .* got 0\.5: .* 8 x 12 pixels"):
        recipe.require_takes(Halving(), (1, 16, 24))


def test_a_run_refuses_it_before_the_work():
    spec = InputSpec((1, 32, 32), 10, (0.3,), (0.3,))
    build = partial(torchvision_model, "vgg11_bn", num_classes=10, in_channels=1, small_image_stem=True)
    made = experiment("teacher.training.progressive_size=0.25")
    with pytest.raises(ConfigError, match=r"progressive_size must be larger .* got 0\.25: .* 8 x 8 pixels"):
        replace(made, spec=spec, network=Network(build, spec.image_shape)).check()


@pytest.mark.parametrize("changes", [{"averaging": 0.99, "size": 0.5}, {"averaging": 0.99}, {"size": 0.5}])
def test_an_average_of_weights_has_the_statistics_of_whole_images(changes, tmp_path):
    size, averaging = (changes.get(name, "null") for name in ("size", "averaging"))
    made = experiment(
        f"teacher.training.progressive_size={size}", f"teacher.training.weight_averaging={averaging}",
        "teacher.training.updates=24",
    )  # fmt: skip
    runner = run(made, tmp_path, last="teacher")
    teacher = load(made.network, runner.products["teacher"])
    before = {name: layer.running_var.clone() for name, layer in batch_norm_layers(teacher).items()}
    images = torch.stack([image for image, _ in made.images(Purpose.TEACHER_TRAINING).open()])
    torch.manual_seed(1)
    reestimate_batch_norm(teacher, [augment(images, made.teacher.training.crop_padding)])
    off = [(layer.running_var / before[name]).log().abs().max() for name, layer in batch_norm_layers(teacher).items()]
    assert (max(off) < 0.1) == ("averaging" in changes)  # a network's own, of its last batches, are never so near


def test_a_run_trains_its_teacher_so(tmp_path):
    command([*TINY, "stage=teacher", "run_dir=plain"], tmp_path)
    options = ["teacher.training.progressive_size=0.5", "teacher.training.weight_averaging=0.5"]
    command([*TINY, *options, "stage=teacher", "run_dir=run"], tmp_path)
    command([*TINY, "teacher.training.cutmix=0.5", "stage=teacher", "run_dir=boxes"], tmp_path)
    weights = [path.read_bytes() for path in sorted((tmp_path / "artifacts").glob("teacher/*/*.safetensors"))]
    assert len(set(weights)) == 3
