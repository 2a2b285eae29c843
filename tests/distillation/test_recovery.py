"""Recovery: what it teaches, what it must not touch, and that resuming it is exact."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import Interrupted
from torch.utils.data import TensorDataset

import dfkd
from dfkd.distillation import DistillationModule, DistillationRecipe, distillation_loss
from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.distillation.module import pruning_steps
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ConfigError, ModelError, TrainingError
from dfkd.models import batch_norm_layers
from dfkd.pruning import prune_by_global_magnitude, sparsity
from dfkd.stages.stage import plain
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace

CPU = TrainerOptions(accelerator="cpu")


@pytest.fixture
def dreams() -> Dreams:
    labels = torch.arange(48) % 10
    return Dreams(torch.randn(48, 1, 8, 8).half(), labels, labels, torch.ones(48))


def held_out(dreams) -> TensorDataset:
    return TensorDataset(dreams.images.flip(3), dreams.labels)


def recipe(**changes) -> DistillationRecipe:
    return DistillationRecipe(**{"updates": 9, "batch_size": 16, "learning_rate": 0.01, "crop_padding": 1, **changes})


def test_matching_features_of_another_architecture_is_refused(teacher, dreams):
    student = type(teacher)(14, in_channels=1, width=4)
    settings = {"updates": 1, "batch_size": 16, "accelerator": "cpu"}
    with pytest.raises(ConfigError, match="feature_weight matches layers"):
        dfkd.recover(student, teacher, dreams, **settings, batch_norm="live")
    narrow = type(teacher)(8, in_channels=1, width=2)
    for other, why in ((student, "different batch-norm layers"), (narrow, "bn1 has 4 channels in the teacher and 2")):
        with pytest.raises(ConfigError, match=f"batch_norm=aligned.*{why}"):
            dfkd.recover(other, teacher, dreams, **settings)
    dfkd.recover(student, teacher, dreams, **settings, feature_weight=0.0, batch_norm="live")


def test_recovery_brings_the_student_closer_and_leaves_the_teacher_alone(teacher, dreams):
    state = copy.deepcopy(teacher.state_dict())
    student = dfkd.prune(teacher, 0.8)
    images = dreams.images.float()

    def distance() -> float:
        with torch.no_grad():
            return distillation_loss(student(images), teacher(images), 3.0).item()

    before = distance()
    history = dfkd.recover(student, teacher, dreams, updates=40, batch_size=16, learning_rate=0.01, accelerator="cpu")
    assert history[-1]["update"] == 40
    assert distance() < 0.5 * before
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in [*teacher.modules(), *student.modules()])


def test_a_recovery_that_does_harm_is_not_kept(teacher, dreams, caplog):
    pruned = dfkd.prune(teacher, 0.8)
    harm = {"updates": 20, "batch_size": 16, "accelerator": "cpu", "learning_rate": 3.0}
    with caplog.at_level("WARNING", logger="dfkd"):
        kept, left = copy.deepcopy(pruned), copy.deepcopy(pruned)
        history = dfkd.recover(kept, teacher, dreams, **harm)
        assert "Training left the student farther from its teacher" in caplog.text
        caplog.clear()
        dfkd.recover(left, teacher, dreams, **harm, keep_nearest=False)
        assert not caplog.text
    assert history[-1]["update"] == 20
    assert torch.equal(kept.conv1.weight, pruned.conv1.weight) and not torch.equal(left.conv1.weight, kept.conv1.weight)


def test_what_dreams_lack_of_real_images_does_not_get_into_a_student(teacher, dreams):
    poor = dataclasses.replace(dreams, images=0.5 + 2 * dreams.images)
    others = torch.randn(64, 1, 8, 8)

    def distance(mode: str) -> float:
        student = copy.deepcopy(teacher)
        dfkd.recover(
            student, teacher, poor, batch_norm=mode, updates=40, batch_size=16, accelerator="cpu", keep_nearest=False
        )
        with torch.no_grad():
            return distillation_loss(student(others), teacher(others), 3.0).item()

    assert distance(DistillationRecipe().batch_norm) < 0.1 * distance("live")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_weights_are_exactly_zero_after_every_step(teacher, dreams, optimizer, tmp_path):
    student = dfkd.prune(teacher, 0.8)
    masks = {name: value == 0 for name, value in student.named_parameters() if value.dim() > 1}
    seen = []

    class Watching(DistillationModule):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            weights = dict(self.network.named_parameters())
            seen.append(all((weights[name][mask] == 0).all() for name, mask in masks.items()))

    settings = recipe(optimizer=optimizer, weight_decay=0.01)
    module = Watching(student, teacher, settings)
    CPU.make_trainer(max_epochs=1).fit(module, DreamDataModule(dreams, Stream(16, settings.updates)))
    assert seen == [True] * settings.updates
    assert sparsity(student) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("mode", ["aligned", "live", "frozen"])
def test_batch_norm_statistics_move_unless_they_are_frozen(teacher, dreams, mode):
    student = dfkd.prune(teacher, 0.5)
    before = student.bn1.running_mean.clone()
    dfkd.recover(
        student, teacher, dreams, updates=3, batch_size=16, batch_norm=mode, reestimate_batch_norm=False,
        learning_rate=0.001, accelerator="cpu", keep_nearest=False,
    )  # fmt: skip
    assert torch.equal(student.bn1.running_mean, before) == (mode == "frozen")


TOO_FAST = {  # it gets worse before long
    "batch_norm": "live", "optimizer": "sgd", "learning_rate": 3.0, "schedule": "constant", "feature_weight": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_norm": "live", "optimizer": "sgd"},
        {"weight_averaging": 0.9},
        {"gradual": 0.9},
        {"patience": 9} | TOO_FAST,
    ],
    ids=str,
)
def test_an_interrupted_recovery_ends_with_the_same_numbers(teacher, dreams, tmp_path, monkeypatch, changes):
    settings = recipe(updates=20, **changes)
    options = TrainerOptions(accelerator="cpu", checkpoint_updates=4)  # not a multiple of the 3 batches of an epoch

    def run(directory):
        gradual = "gradual" in changes
        student = copy.deepcopy(teacher) if gradual else dfkd.prune(teacher, 0.8)
        history = recover_student(
            student, teacher, DreamDataModule(dreams, Stream(16, 20, seed=3)), settings,
            Workplace(directory, options),
            prune=(lambda network, share: prune_by_global_magnitude(network, 0.8 * share)) if gradual else None,
            held_out=held_out(dreams),
        )  # fmt: skip
        assert sparsity(student) == pytest.approx(0.8, abs=2e-3)
        return student.state_dict(), history

    whole, whole_history = run(tmp_path / "whole")
    assert ("patience" in changes) == (11 < whole_history[-1]["update"] < 20)

    updates = DistillationModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 11:
            raise Interrupted
        return updates(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run(tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir())
    resumed, resumed_history = run(tmp_path / "broken")
    assert resumed_history == whole_history
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert not list((tmp_path / "broken").iterdir())


def held_out_kl(student, teacher, dreams) -> float:
    images = held_out(dreams)[:][0].float()
    with torch.no_grad():
        return distillation_loss(student(images), teacher(images), 1.0).item()


def test_patience_keeps_the_student_that_held_out_dreams_like_best(teacher, dreams, tmp_path):
    student = dfkd.prune(teacher, 0.8)
    settings = recipe(updates=60, patience=4, **TOO_FAST)
    data = DreamDataModule(dreams, Stream(16, 60))
    history = recover_student(student, teacher, data, settings, Workplace(tmp_path, CPU), held_out=held_out(dreams))
    checks = [row["held_out_kl"] for row in history if "held_out_kl" in row]
    assert len(checks) < 20 and checks.index(min(checks)) == len(checks) - 1 - 4
    assert held_out_kl(student.eval(), teacher, dreams) == pytest.approx(min(checks), rel=1e-4)
    assert sparsity(student) == pytest.approx(0.8, abs=2e-3)


def test_checks_without_patience_leave_the_training_as_it_is(teacher, dreams, tmp_path):
    students, histories = [], []
    for compared_on in (None, held_out(dreams)):
        students.append(dfkd.prune(teacher, 0.8))
        data = DreamDataModule(dreams, Stream(16, 9))
        place = Workplace(tmp_path, CPU)
        histories.append(recover_student(students[-1], teacher, data, recipe(), place, held_out=compared_on))
    assert all(torch.equal(*pair) for pair in zip(*(s.state_dict().values() for s in students), strict=True))
    *_, last = histories[1]
    assert last["held_out_kl"] == pytest.approx(held_out_kl(students[1].eval(), teacher, dreams), rel=1e-4)
    assert [{k: v for k, v in row.items() if "held_out" not in k} for row in histories[1]] == histories[0]


def test_a_student_that_is_not_pruned_in_full_is_not_chosen(teacher, dreams, tmp_path):
    student = copy.deepcopy(teacher)  # at first it is the teacher: no later check is as good
    settings = recipe(updates=40, patience=3, gradual=0.5)
    recover_student(
        student, teacher, DreamDataModule(dreams, Stream(16, 40)), settings, Workplace(tmp_path, CPU),
        prune=lambda network, share: prune_by_global_magnitude(network, 0.9 * share), held_out=held_out(dreams),
    )  # fmt: skip
    assert sparsity(student) == pytest.approx(0.9, abs=2e-3)


def test_patience_without_held_out_dreams_or_with_averaged_weights_is_refused(teacher, dreams):
    with pytest.raises(ConfigError, match="no held-out dreams"):
        dfkd.recover(dfkd.prune(teacher, 0.5), teacher, dreams, patience=3, batch_size=16, accelerator="cpu")
    with pytest.raises(ConfigError, match="distillation.patience must be null with distillation.weight_averaging"):
        recipe(patience=3, weight_averaging=0.9)


def test_options_that_are_not_used_do_not_tell_two_recoveries_apart():
    assert "patience" not in plain(recipe()) and plain(recipe(patience=3))["patience"] == 3


def test_the_teacher_does_not_travel_in_checkpoints(teacher):
    module = DistillationModule(dfkd.prune(teacher, 0.5), teacher, recipe())
    assert set(module.state_dict()) == {f"network.{name}" for name in teacher.state_dict()}


def test_the_callers_random_state_is_left_alone(teacher, dreams):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dfkd.recover(dfkd.prune(teacher, 0.5), teacher, dreams, updates=2, batch_size=16, accelerator="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite_is_an_error_with_a_remedy(teacher, dreams):
    steps = {"optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant", "warmup_updates": 0, "batch_size": 16}
    with pytest.raises(TrainingError, match=r"not finite.*distillation\.learning_rate"):
        dfkd.recover(dfkd.prune(teacher, 0.5), teacher, dreams, updates=10, accelerator="cpu", **steps)


def test_networks_that_hold_values_that_are_not_finite_are_named(teacher, dreams):
    student = dfkd.prune(teacher, 0.5)
    teacher.linear.bias.data.fill_(float("nan"))
    for networks in ((student, teacher), (teacher, student)):
        with pytest.raises(ModelError, match=r"not finite .*: linear\.bias"):
            dfkd.recover(*networks, dreams, updates=2, batch_size=16, accelerator="cpu")


@pytest.mark.parametrize(
    ("option", "value"),
    [("updates", -1), ("mixup", 1.5), ("weight_averaging", 1.0), ("learning_rate", 0.0),
     ("optimizer", "lion"), ("schedule", "staircase"), ("temperature", 0.0),
     ("batch_norm", "off"), ("momentum", 1.0), ("feature_weight", -1.0)],
)  # fmt: skip
def test_bad_settings_name_the_option_and_what_is_allowed(option, value):
    with pytest.raises(ConfigError, match=rf"distillation\.{option} must be .*got {value!r}"):
        DistillationRecipe(**{option: value})


def test_the_label_loss_is_the_cross_entropy_with_the_teachers_answer(teacher):
    student = dfkd.prune(teacher, 0.8)
    images, labels = torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)
    settings = recipe(batch_norm="live", label_weight=2.0, feature_weight=0.0, crop_padding=0, mixup=0.0)
    losses = DistillationModule(student, teacher, settings).losses(images, labels)
    expected = F.cross_entropy(student(images), teacher(images).argmax(1))
    torch.testing.assert_close(losses["labels"], expected)
    torch.testing.assert_close(losses["total"], losses["logits"] + 2 * expected)


def test_averaged_weights_are_the_moving_average_of_every_update_and_keep_the_zeros(teacher, dreams, tmp_path):
    student = dfkd.prune(teacher, 0.8)
    seen = []

    class Watching(DistillationModule):
        def on_before_zero_grad(self, optimizer):
            seen.append(self.network.conv1.weight.detach().clone())

    settings = recipe(weight_averaging=0.5)
    module = Watching(student, teacher, settings)
    CPU.make_trainer(max_epochs=1).fit(module, DreamDataModule(dreams, Stream(16, settings.updates)))
    weights = [*seen[1:], student.conv1.weight.detach().clone()]
    averaged = dfkd.prune(teacher, 0.8)
    data = DreamDataModule(dreams, Stream(16, settings.updates))
    still = dataclasses.replace(settings, reestimate_batch_norm=False)
    recover_student(averaged, teacher, data, still, Workplace(tmp_path, CPU))
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(averaged.conv1.weight.detach(), expected)
    assert sparsity(averaged) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("batch_norm", ["live", "aligned", "frozen"])
def test_averaged_weights_have_statistics_of_their_own_but_where_these_are_frozen(
    teacher, dreams, batch_norm, tmp_path
):
    settings = recipe(weight_averaging=0.9, batch_norm=batch_norm, learning_rate=0.05)
    student = dfkd.prune(teacher, 0.8)
    data = DreamDataModule(dreams, Stream(16, settings.updates))
    recover_student(student, teacher, data, settings, Workplace(tmp_path, CPU))
    own, unmoved = copy.deepcopy(student), dfkd.prune(teacher, 0.8)
    aligned_with = teacher if batch_norm == "aligned" else None
    for network in (own, unmoved):
        reestimate_batch_norm(network, [images.float() for images, _ in data.first_epoch()], aligned_with)
    found = {name: layer.running_var for name, layer in batch_norm_layers(student).items()}
    for expected, held in ((own, batch_norm != "frozen"), (unmoved, batch_norm == "frozen")):
        variances = {name: layer.running_var for name, layer in batch_norm_layers(expected).items()}
        assert all(torch.allclose(found[name], variances[name], rtol=1e-4) for name in found) == held


def test_pruning_rises_by_a_cubic_to_all_of_it():
    steps = pruning_steps(1000, 0.5)
    assert len(steps) == 25 and max(steps) == 500 and steps[500] == 1
    assert steps[100] == pytest.approx(1 - (1 - 0.2) ** 3)
    assert list(steps.values()) == sorted(steps.values())
    assert pruning_steps(1, 0.5) == {0: 1}


def test_a_student_pruned_as_it_learns_chooses_by_what_it_has_learned(teacher, dreams, tmp_path):
    images, seen = dreams.images.float(), []

    def prune(network, share):
        prune_by_global_magnitude(network, 0.9 * share)
        seen.append(sparsity(network))

    def distance(student) -> float:
        with torch.no_grad():
            return distillation_loss(student(images), teacher(images), 3.0).item()

    student, at_once = copy.deepcopy(teacher), dfkd.prune(teacher, 0.9)
    settings = recipe(updates=60, learning_rate=0.05, gradual=0.5)
    data = DreamDataModule(dreams, Stream(16, 60))
    recover_student(student, teacher, data, settings, Workplace(tmp_path, CPU), prune=prune)
    assert seen == sorted(seen) and len(seen) == 25
    assert sparsity(student) == pytest.approx(0.9, abs=2e-3)
    assert not torch.equal(student.layer2[0].conv1.weight == 0, at_once.layer2[0].conv1.weight == 0)
    assert distance(student) < 0.5 * distance(at_once)


def test_a_pruning_that_flattens_weights_by_view_works_while_the_student_learns(teacher, dreams, tmp_path):
    seen = []

    def prune(network, share):
        with torch.no_grad():
            for weight in (p for p in network.parameters() if p.dim() == 4):
                weight.view(-1)[: int(share * weight.numel() / 2)] = 0
        seen.append(share)

    student = copy.deepcopy(teacher)
    data = DreamDataModule(dreams, Stream(8, 6))
    recover_student(student, teacher, data, recipe(updates=6, batch_size=8), Workplace(tmp_path, CPU), prune)
    assert seen[-1] == 1.0
    for weight in (p for p in student.parameters() if p.dim() == 4):
        half = int(weight.numel() / 2)
        assert weight.is_contiguous() and (weight.view(-1)[:half] == 0).all() and (weight.view(-1)[half:] != 0).any()
