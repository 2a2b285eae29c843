"""The inner loop: it minimises, keeps copies of the best, follows its seed, and stops on non-finite losses."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import Interrupted
from torch import nn

from dfkd.errors import ConfigError, InversionError, ModelError
from dfkd.inversion import InversionRecipe, inversion_objective, losses, optimise
from dfkd.inversion.checkpoint import BatchCheckpoint, BatchState
from dfkd.inversion.invert import fill_bank
from dfkd.training.fit import TrainerOptions, Workplace

LABELS = torch.arange(16) % 10


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(teacher, images=None, valid_range=None, seed=0, **changes):
    recipe = InversionRecipe(**{"iterations": 30, "jitter": 1, "restarts": 0, **changes})
    with inversion_objective(teacher, recipe) as objective:
        generator = torch.Generator().manual_seed(seed)
        return optimise(start() if images is None else images, LABELS, objective, generator, valid_range)


def test_the_loss_falls_and_the_start_is_left_alone(teacher):
    images = start()
    result = run(teacher, images)
    assert result.history[-1]["total"] < 0.7 * result.history[0]["total"]
    assert torch.equal(images, start())


def test_the_images_are_those_of_the_lowest_loss_not_the_last(teacher):
    # A step of this size overshoots: the loss ends above its lowest value.
    recipe = InversionRecipe(iterations=40, restarts=0, jitter=0, learning_rate=3.0, schedule="constant")
    totals = []
    with inversion_objective(teacher, recipe) as objective:
        result = optimise(
            start(), LABELS, objective, torch.Generator(), on_check=lambda _, t: totals.append(t["total"])
        )
        again = objective(result.images, LABELS)["total"].item()
    assert again <= min(totals) + 1e-3
    assert again < totals[-1] - 1e-3


def test_the_same_seed_gives_the_same_images_and_another_seed_others(teacher):
    first, second, other = run(teacher, seed=1), run(teacher, seed=1), run(teacher, seed=2)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_clipping_keeps_the_valid_range(teacher, spec):
    low, high = spec.valid_range()
    images = run(teacher, start().clamp(low, high), (low, high), learning_rate=0.5).images
    assert (images >= low).all() and (images <= high).all()


@pytest.mark.parametrize("label_loss", ["cross_entropy", "entropy"])
def test_both_label_losses_are_minimised(teacher, label_loss):
    result = run(teacher, label_loss=label_loss, feature_weight=0.0, iterations=60)
    assert result.history[-1][label_loss] < result.history[0][label_loss]


def test_a_non_finite_loss_stops_the_batch_with_a_remedy(teacher):
    teacher.linear.weight.data.fill_(float("inf"))
    with pytest.raises(InversionError, match="not finite.*learning_rate"):
        run(teacher)


def test_the_teacher_is_left_as_it_was(teacher):
    teacher.layer1.train()
    next(teacher.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    asks = [parameter.requires_grad for parameter in teacher.parameters()]
    run(teacher, iterations=2)
    assert modes == [module.training for module in teacher.modules()]
    assert asks == [parameter.requires_grad for parameter in teacher.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.modules())


def test_a_teacher_without_batch_norm_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ModelError, match="no batch-norm layer"):
        run(model)


def test_competition_needs_a_student(teacher):
    with pytest.raises(ConfigError, match="competition_weight.*no student"):
        run(teacher, competition_weight=1.0)


def test_competition_seeks_images_on_which_the_student_disagrees(teacher):
    student = type(teacher)(8, in_channels=1, width=4).eval()
    recipe = InversionRecipe(iterations=40, jitter=0, feature_weight=0.0, competition_weight=10.0)
    with inversion_objective(teacher, recipe, student) as objective:
        history = optimise(start(), LABELS, objective, torch.Generator()).history
    assert history[-1]["competition"] < history[0]["competition"]


class Twice(nn.Module):
    """A network that uses one batch norm twice, and another never."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        x = self.bn(self.convolution(x))
        return self.linear(self.bn(x.relu()).mean((2, 3)))


def test_a_batch_norm_used_twice_is_compared_with_the_mean_of_its_uses():
    model = Twice().eval()
    x = start()
    first = model.convolution(x)
    second = model.bn(first).relu()
    mean = (first.mean((0, 2, 3)) + second.mean((0, 2, 3))) / 2
    variance = (first.var((0, 2, 3), correction=0) + second.var((0, 2, 3), correction=0)) / 2
    expected = (mean - model.bn.running_mean).norm() + (variance - model.bn.running_var).norm()
    with inversion_objective(model, InversionRecipe(feature_form="norm", feature_weight=1.0)) as objective:
        found = objective(x, LABELS)["feature"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_images", 0), ("iterations", 0), ("learning_rate", 0.0), ("beta1", 1.0), ("label_loss", "hinge"),
     ("tv_l2_norm", "mean"), ("start", "zeros"), ("start_families", ["leaf"]), ("start_candidates", 0),
     ("feature_form", "l1"), ("feature_history", -1), ("restarts", -1), ("label_share", 1.5),
     ("tv_l1_reduction", "max"), ("layer_weights", [-1.0]), ("feature_weight", -1.0), ("num_held_out", -1)],
)  # fmt: skip
def test_bad_settings_name_the_option_and_what_is_allowed(option, value):
    with pytest.raises(ConfigError, match=rf"inversion\.{option} must be .*got {re.escape(repr(value))}"):
        InversionRecipe(**{option: value})


def test_a_half_resolution_stage_sees_pooled_images_with_half_the_jitter_and_improves_the_start(teacher):
    seen = []
    teacher.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[-2:]))
    result = run(teacher, half_resolution_iterations=20, iterations=10, jitter=1)
    assert seen[:20] == [(4, 4)] * 20 and seen[20:] == [(8, 8)] * 10
    assert [row["iteration"] for row in result.history] == sorted({row["iteration"] for row in result.history})
    assert result.history[-1]["iteration"] == 29
    alone = run(teacher, iterations=10, jitter=1)
    assert result.images.shape == alone.images.shape and not torch.equal(result.images, alone.images)


def share_seen(teacher, images):
    with torch.no_grad():
        return (teacher(images.half().float()).argmax(1) == LABELS).double().mean().item()


def test_a_batch_is_gone_through_again_with_more_weight_on_its_labels_until_they_are_seen():
    # Linear in the image, so that every label can be reached.
    teacher = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        teacher[0].weight.fill_(1)
        teacher[3].weight.mul_(10)
    few = {"iterations": 5, "learning_rate": 0.02, "label_weight": 0.1, "label_share": 0.9, "jitter": 0,
           "feature_weight": 1.0}  # fmt: skip
    shares, iterations = [], []
    for restarts in (0, 3, 30):
        result = run(teacher, **few, restarts=restarts)
        shares.append(share_seen(teacher, result.images))
        iterations.append(result.history[-1]["iteration"] + 1)
    assert shares[0] <= shares[1] < 0.9 <= shares[2]
    assert iterations[:2] == [5, 20] and 20 < iterations[2] < 155
    # The last restart was needed: without it, fewer are seen.
    assert share_seen(teacher, run(teacher, **few, restarts=iterations[2] // 5 - 2).images) < 0.9
    unlabelled = run(teacher, **few, restarts=30, label_loss="entropy")
    assert len(unlabelled.history) == 5


@pytest.mark.parametrize("stopped_at", [9, 14, 20])
def test_an_interrupted_batch_continues_to_the_same_bits(teacher, spec, tmp_path, stopped_at):
    recipe = InversionRecipe(
        num_images=16, batch_size=16, num_held_out=0, iterations=6, half_resolution_iterations=5, restarts=2,
        label_share=1.0, start_candidates=1, label_weight=1e-6,
    )  # fmt: skip
    options = TrainerOptions(accelerator="cpu", checkpoint_seconds=0)
    forwards = 0

    def stop(*_):
        nonlocal forwards
        forwards += 1
        if forwards == stopped_at:
            raise Interrupted

    handle = teacher.register_forward_pre_hook(stop)
    forwards = 100
    dreams, history = fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path / "undisturbed", options))
    undisturbed, forwards = forwards - 100, 0
    with pytest.raises(Interrupted):
        fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path / "interrupted", options))
    forwards = 100
    again, history_again = fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path / "interrupted", options))
    handle.remove()
    assert torch.equal(dreams.images, again.images) and history == history_again
    assert forwards - 100 <= undisturbed - stopped_at + 5  # those before the first iteration are made again
    assert not list(tmp_path.rglob("unfinished*"))


def test_a_batch_continues_on_the_device_of_its_images(tmp_path):
    """All but the generator's state: fused Adam reads its step count where the images are."""
    state = BatchState.beginning(torch.randn(2, 1, 8, 8), torch.Generator())
    state.moments = {name: torch.ones(()) for name in ("step", "exp_avg", "exp_avg_sq")}
    kept = BatchCheckpoint(tmp_path / "kept.safetensors", 0)
    kept.save(state)
    found = kept.load(torch.device("meta"))
    tensors = {name: value for name, value in vars(found).items() if isinstance(value, torch.Tensor)} | found.moments
    assert {name for name, value in tensors.items() if value.device.type == "cpu"} == {"generator"}


def test_layers_can_be_weighted_one_by_one(teacher):
    layers = len([module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)])
    parts = []
    for position in range(layers):
        weights = [0.0] * layers
        weights[position] = 2.0
        recipe = InversionRecipe(feature_form="norm", layer_weights=weights, first_layer_weight=3.0)
        with inversion_objective(teacher, recipe) as objective:
            parts.append(objective(start(), LABELS)["feature"])
    with inversion_objective(teacher, InversionRecipe(feature_form="norm")) as objective:
        whole = objective(start(), LABELS)["feature"]
    torch.testing.assert_close((parts[0] / 3 + sum(parts[1:])) / 2, whole)
    with pytest.raises(ConfigError, match=r"inversion.layer_weights must be empty, or one weight for each"):
        run(teacher, layer_weights=[1.0])


def test_the_first_layer_is_the_one_that_a_forward_comes_to_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.last, self.first = nn.Linear(2, 10), nn.BatchNorm2d(2), nn.BatchNorm2d(1)
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.head(self.last(self.conv(self.first(x))).mean((2, 3)))

    teacher = Backwards().eval()

    def distance(shape=None, **changes):
        recipe = InversionRecipe(feature_form="norm", **changes)
        with inversion_objective(teacher, recipe, image_shape=shape) as objective:
            return objective(start(), LABELS)["feature"]

    last, first = distance(layer_weights=[1.0, 0.0]), distance(layer_weights=[0.0, 1.0])
    torch.testing.assert_close(distance((1, 8, 8), first_layer_weight=3.0), last + 3 * first)
    torch.testing.assert_close(distance(first_layer_weight=3.0), 3 * last + first)


def test_a_clip_limit_is_kept(teacher, spec, tmp_path):
    recipe = InversionRecipe(
        num_images=8, num_held_out=0, batch_size=8, iterations=5, learning_rate=0.5, clip_limit=0.7
    )
    dreams, _ = fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path, TrainerOptions(accelerator="cpu")))
    assert dreams.images.abs().max() == torch.tensor(0.7).half()


def test_total_variation_l1_as_a_sum_is_that_of_the_ppr_code():
    images = torch.randn(2, 3, 5, 6)
    expected = sum(difference.abs().sum() for difference in losses.shifted_differences(images))
    torch.testing.assert_close(losses.total_variation_l1(images, "sum"), expected)
