"""Class-incremental learning: its loss, the room for new classes, and that it resumes exactly."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import DREAMS, Interrupt, Interrupted, command
from torch import nn
from torch.utils.data import TensorDataset

from dfkd.errors import ConfigError, ModelError
from dfkd.incremental import ClassIncrementalLearning, IncrementalRecipe, PairedDataModule, incremental_losses
from dfkd.models.classifier import extend_classifier
from dfkd.tasks import CLASS_INCREMENTAL
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


def test_an_interrupted_learning_ends_with_the_same_numbers(teacher, network, sets, tmp_path):
    before, ends = copy.deepcopy(teacher.state_dict()), []
    for name, callbacks in (("whole", []), ("broken", [Interrupt(8)]), ("broken", [])):
        learner = copy.deepcopy(network)
        module = ClassIncrementalLearning(learner, teacher, RECIPE, 3)
        data = PairedDataModule(*sets, Stream(RECIPE.batch_size, RECIPE.updates, 3))
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
    ("option", "value"), [("new_classes", -1), ("temperature", 0.0), ("dream_weight", -1.0), ("old_weight", -1.0)]
)
def test_bad_settings_name_the_option_and_what_is_allowed(option, value):
    with pytest.raises(ConfigError, match=rf"incremental\.{option} must be .*got {value!r}"):
        IncrementalRecipe(**{option: value})


def test_controls_are_the_same_whatever_the_heads_of_the_learning_network(tmp_path):
    options = [
        *DREAMS, "task=class_incremental", "data@new_data=digits", "data.only=[0,1,2,3,4]", "new_data.only=[5,6,7,8,9]",
        "input.num_classes=5", "incremental.new_classes=5", "incremental.updates=3",
    ]  # fmt: skip
    made = []
    for heads in ("false", "true"):
        command([*options, f"incremental.separate_heads={heads}", f"run_dir=heads_{heads}"], tmp_path)
        made.append(json.loads((tmp_path / f"heads_{heads}" / "result.json").read_text())["artifacts"])
    one, apart = made
    assert {name for name in one if one[name] != apart[name]} == {"learn", "evaluate"}
    assert len({one[name] for name in CLASS_INCREMENTAL.controls}) == len(CLASS_INCREMENTAL.controls)
