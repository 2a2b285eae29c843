"""Class-incremental learning: its losses, the room for new classes, steps in a row, and that it resumes exactly."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import DREAMS, Interrupt, Interrupted, command
from experiments import experiment, run
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dfkd.errors import ConfigError, ModelError
from dfkd.incremental import (
    ClassifierTuning,
    ClassIncrementalLearning,
    IncrementalRecipe,
    PairedDataModule,
    class_weights,
    incremental_losses,
    turned_losses,
    weighted_cross_entropy,
)
from dfkd.incremental.recipe import LOSSES
from dfkd.models.classifier import extend_classifier, features_and_logits
from dfkd.models.freezing import requiring_grad
from dfkd.reporting.class_incremental import over_steps
from dfkd.tasks import CLASS_INCREMENTAL
from dfkd.training.augmentation import quarter_turns
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace, fit

RECIPE = IncrementalRecipe(new_classes=3, updates=12, batch_size=8, learning_rate=0.05)
CPU = TrainerOptions(accelerator="cpu", checkpoint_updates=5)


@pytest.fixture
def network(teacher) -> nn.Module:
    """A copy of the teacher with room for three new classes."""
    model = copy.deepcopy(teacher)
    extend_classifier(model, 10, 3)
    return model


@pytest.fixture
def sets() -> tuple[TensorDataset, TensorDataset]:
    new = TensorDataset(torch.randn(20, 1, 8, 8), 10 + torch.arange(20) % 3)
    return new, TensorDataset(torch.randn(33, 1, 8, 8).half(), torch.arange(33) % 10)


def test_the_losses_are_the_published_formula():
    new, dreams = torch.randn(5, 7, dtype=torch.double), torch.randn(6, 7, dtype=torch.double)
    old, old_dreams = torch.randn(5, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    labels = torch.tensor([4, 5, 6, 4, 5])
    terms = incremental_losses(new, labels, old, dreams, old_dreams, 2.0)
    p = F.pad((old_dreams / 2).softmax(1), (0, 3))  # the old network gives new classes no chance
    q = (dreams / 2).softmax(1)
    torch.testing.assert_close(terms["dreams"], 4 * torch.xlogy(p, p / q).sum(1).mean())
    torch.testing.assert_close(terms["new"], F.cross_entropy(new, labels))
    p, q = (old / 2).softmax(1), (new[:, :4] / 2).softmax(1)  # among the old classes
    torch.testing.assert_close(terms["old"], 4 * (p * (p / q).log()).sum(1).mean())
    apart = incremental_losses(new, labels, old, dreams, old_dreams, 2.0, separate_heads=True)
    torch.testing.assert_close(apart["new"], F.cross_entropy(new[:, 4:], labels - 4))
    p, q = (old_dreams / 2).softmax(1), (dreams[:, :4] / 2).softmax(1)
    torch.testing.assert_close(apart["dreams"], 4 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(apart["old"], terms["old"])
    by_logits = incremental_losses(new, labels, old, dreams, old_dreams, 2.0, separate_heads=True, logit_weight=0.5)
    torch.testing.assert_close(by_logits["dreams"], 0.5 * (dreams[:, :4] - old_dreams).square().mean())
    torch.testing.assert_close(by_logits["old"], 0.5 * (new[:, :4] - old).square().mean())
    torch.testing.assert_close(by_logits["new"], apart["new"])


def test_each_class_and_turn_is_a_class_of_its_own():
    upright, turned = torch.randn(3, 8), torch.randn(3, 8)  # two classes, each by four turns
    labels, turns = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 3])
    one, other = turned_losses(upright, turned, labels, turns)
    torch.testing.assert_close(one, F.cross_entropy(upright, labels))
    torch.testing.assert_close(other, -turned.log_softmax(1)[range(3), [3, 5, 7]].mean())
    image = torch.arange(4.0).view(1, 1, 2, 2)
    by_turn = quarter_turns(image.expand(4, 1, 2, 2), torch.arange(4))
    assert [corner.tolist() for corner in by_turn[:, 0, 0]] == [[0, 1], [1, 3], [3, 2], [2, 0]]


def test_turned_images_reach_the_backbone_and_leave_nothing_behind(teacher, network, sets, tmp_path):
    ends = {}
    for weight in (0.0, 1.0):
        recipe = replace(RECIPE, rotation_weight=weight, logit_weight=0.1)
        learner = copy.deepcopy(network)
        module = ClassIncrementalLearning(learner, teacher, recipe, 3, "linear")
        before = [value.clone() for value in module.parameters()]
        history = fit(module, PairedDataModule(*sets, Stream(8, 12, 3)), Workplace(tmp_path / str(weight), CPU))
        assert ("turned" in history[-1]) == bool(weight)
        assert not any(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
        ends[weight] = learner.state_dict()
    assert ends[1.0].keys() == network.state_dict().keys()
    assert not torch.allclose(ends[0.0]["conv1.weight"], ends[1.0]["conv1.weight"])


def test_images_that_are_not_square_cannot_be_turned(tmp_path):
    options = [
        *DREAMS, "task=class_incremental", "data@new_data=digits", "data.only=[0,1,2,3,4]", "new_data.only=[5,6,7,8,9]",
        "input.num_classes=5", "incremental.new_classes=5", "incremental.rotation_weight=1",
        "input.image_shape=[1,8,6]",
    ]  # fmt: skip
    done = command(options, tmp_path, check=False)
    assert done.returncode == 1, done.stdout
    assert "incremental.rotation_weight must be 0 for images that are not square, got 1.0" in done.stderr


def test_every_class_weighs_the_same():
    labels = torch.tensor([0, 0, 0, 2, 4, 4])
    weights = class_weights(labels)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    for label in (0, 2, 4):
        torch.testing.assert_close(weights[labels == label].sum(), torch.tensor(2.0))
    logits = torch.randn(6, 5)
    by_class = [F.cross_entropy(logits[labels == label], labels[labels == label]) for label in (0, 2, 4)]
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), torch.stack(by_class).mean())


def gradients(network: nn.Module, old: nn.Module, losses: str) -> dict[str, Tensor]:
    """Of the losses of one batch, by parameter."""
    torch.manual_seed(0)
    recipe = IncrementalRecipe(new_classes=3, losses=losses)
    module = ClassIncrementalLearning(copy.deepcopy(network).train(), old, recipe, classifier="linear")
    images, labels = torch.randn(8, 2, 1, 8, 8), torch.stack([10 + torch.arange(8) % 3, torch.arange(8)], 1)
    module.losses(images, labels)["total"].backward()
    return {name: parameter.grad for name, parameter in module.network.named_parameters()}


def test_the_loss_among_all_classes_trains_the_classifier_alone(teacher, network):
    found = {losses: gradients(network, teacher, losses) for losses in ("balanced", "separate_heads")}
    backbone = [name for name in found["balanced"] if not name.startswith("linear")]
    assert backbone and all(torch.equal(*(found[losses][name] for losses in found)) for name in backbone)
    assert not torch.allclose(*(found[losses]["linear.weight"] for losses in found))


class AfterItsClassifier(nn.Module):
    """A network that changes what its last linear layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).log_softmax(1)


def test_a_network_whose_features_cannot_be_told_is_refused():
    with pytest.raises(ModelError, match=r"its layer linear .*incremental\.losses=separate_heads"):
        features_and_logits(AfterItsClassifier(), "linear", torch.randn(2, 1, 8, 8))


def test_the_classifier_is_tuned_on_a_backbone_that_stays_as_it_was(network, sets, tmp_path):
    before = copy.deepcopy(network.state_dict())
    data = PairedDataModule(*sets, Stream(8, RECIPE.updates))
    with requiring_grad(False, network), requiring_grad(True, network.linear):
        history = fit(ClassifierTuning(network, RECIPE, 0, "linear"), data, Workplace(tmp_path, CPU))
    assert history[-1]["total"] < history[0]["total"]
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"linear.weight", "linear.bias"}


def test_room_for_new_classes_leaves_the_old_answers_as_they_are(teacher, network):
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert network(images).shape == (4, 13)
        torch.testing.assert_close(network(images)[:, :10], teacher(images))
    with pytest.raises(ModelError, match="no linear layer with 11 outputs"):
        extend_classifier(teacher, 11, 3)


def test_new_images_are_paired_with_the_memory_each_in_epochs_of_its_own(sets):
    data = PairedDataModule(*sets, Stream(8, 6, seed=1))
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    for images, labels in batches:
        assert images.shape == (8, 2, 1, 8, 8) and images.dtype == torch.float32
        assert (labels[:, 0] >= 10).all() and (labels[:, 1] < 10).all()
    first_epoch = torch.cat([images[:, 1] for images, _ in batches[:4]])  # 33 memories: 4 batches of 8
    assert len(first_epoch.unique(dim=0)) == 32
    alone = next(iter(PairedDataModule(sets[0], None, Stream(8, 6)).train_dataloader()))
    assert alone[0].shape == (8, 1, 1, 8, 8)


@pytest.mark.parametrize("losses", LOSSES)
def test_an_interrupted_learning_ends_with_the_same_numbers(teacher, network, sets, losses, tmp_path):
    recipe = replace(RECIPE, losses=losses, rotation_weight=1.0)
    before, ends = copy.deepcopy(teacher.state_dict()), []
    for name, callbacks in (("whole", []), ("broken", [Interrupt(8)]), ("broken", [])):
        learner = copy.deepcopy(network)
        module = ClassIncrementalLearning(learner, teacher, recipe, 3, "linear")
        data = PairedDataModule(*sets, Stream(recipe.batch_size, recipe.updates, 3))
        try:
            history = fit(module, data, Workplace(tmp_path / name, CPU), callbacks)
        except Interrupted:
            continue
        ends.append((history, learner.state_dict()))
    (whole_history, whole), (history, resumed) = ends
    assert history == whole_history and {"new", "old", "dreams"} <= set(history[-1])
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("new_classes", -1),
        ("steps", 0),
        ("losses", "mine"),
        ("temperature", 0.0),
        ("dream_weight", -1.0),
        ("old_weight", -1.0),
        ("logit_weight", -1.0),
        ("rotation_weight", -1.0),
        ("classifier_share", 1.0),
    ],
)
def test_bad_settings_name_the_option_and_what_is_allowed(option, value):
    with pytest.raises(ConfigError, match=rf"incremental\.{option} must be .*got {value!r}"):
        IncrementalRecipe(**{option: value})


def test_controls_are_the_same_whatever_the_losses_of_the_learning_network(tmp_path):
    options = [
        *DREAMS, "task=class_incremental", "data@new_data=digits", "data.only=[0,1,2,3,4]", "new_data.only=[5,6,7,8,9]",
        "input.num_classes=5", "incremental.new_classes=5", "incremental.updates=5", "incremental.classifier_share=0.4",
    ]  # fmt: skip
    made = []
    for losses in ("deepinversion", "balanced"):
        extra = ["incremental.logit_weight=0.1", "incremental.rotation_weight=1"] if losses == "balanced" else []
        command([*options, *extra, f"incremental.losses={losses}", f"run_dir={losses}"], tmp_path)
        made.append(json.loads((tmp_path / losses / "result.json").read_text())["artifacts"])
    one, balanced = made
    assert {name for name in balanced if one.get(name) != balanced[name]} == {"learn", "learn_backbone", "evaluate"}
    assert len({one[name] for name in CLASS_INCREMENTAL.controls}) == len(CLASS_INCREMENTAL.controls)


def test_the_old_name_of_the_losses_is_refused_with_the_new(tmp_path):
    done = command(["experiment=incremental_digits", "incremental.separate_heads=true"], tmp_path, check=False)
    assert done.returncode == 1 and "is called incremental.losses=separate_heads now" in done.stderr


IN_STEPS = [
    "task=class_incremental", "data@new_data=digits", "data.only=[0,1]", "new_data.only=[2,3,4,5,6,7]",
    "input.num_classes=2", "incremental.new_classes=2", "incremental.steps=3", "incremental.updates=5",
    "incremental.batch_size=8", "incremental.classifier_share=0.4", "controls=[learning_without_forgetting,joint]",
]  # fmt: skip


def test_each_step_learns_from_the_network_before_it_beside_dreams_of_that(tmp_path):
    made = experiment(*IN_STEPS)
    stages = {stage.name: stage for part in CLASS_INCREMENTAL.plan(made).values() for stage in part}
    assert stages["learn_2_backbone"].inputs["teacher"] is stages["learn_1"]
    assert stages["learn_2_backbone"].inputs["dreams"] is stages["dream_2"]
    assert stages["dream_2"].inputs["teacher"] is stages["learn_1"]
    assert stages["joint"].inputs["teacher"] is stages["joint_2"]
    labels = stages["learn_backbone"].inputs["new"].open()
    assert {int(labels[place][1]) for place in range(len(labels))} == {6, 7}
    old = stages["joint"].inputs["old"].open()
    assert {int(old[place][1]) for place in range(len(old))} == set(range(6))
    runner = run(made, tmp_path)
    tasks = runner.products["evaluate"].notes["tasks"]["learn"]
    scores = runner.products["evaluate"].notes["scores"]["learn"]
    assert len(tasks) == 4 and min(tasks) <= scores["combined"] <= max(tasks)
    assert len(runner.products["evaluate_1"].notes["tasks"]["learn"]) == 2


def test_average_and_forgetting_are_the_published_formulas():
    rows = [
        {"combined": 0.7, "tasks": [0.8, 0.6]},
        {"combined": 0.6, "tasks": [0.85, 0.5, 0.45]},
        {"combined": 0.5, "tasks": [0.6, 0.7, 0.4, 0.3]},
    ]
    found = over_steps(0.9, rows)
    assert found["average"] == pytest.approx((0.9 + 0.7 + 0.6 + 0.5) / 4)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.6 - 0.7) + (0.45 - 0.4)) / 3, abs=1e-6)
    assert over_steps(None, rows) == {"average": None, "forgetting": None}


def test_the_classes_of_several_steps_are_listed():
    for only in ("[2,3,4,5]", "[2,3,4,5,6,6]", "[]"):
        with pytest.raises(ConfigError, match=r"new_data\.only must be a list of 6 different classes"):
            experiment(*IN_STEPS, f"new_data.only={only}")
