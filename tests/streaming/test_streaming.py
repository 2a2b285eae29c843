"""Streaming: the bank grows when it should, against the student as it is then, and a resumed stream is the same."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import lightning
import pytest
import torch
from conftest import Interrupt, Interrupted
from torch import nn

import dfkd
from dfkd.distillation import DistillationModule, DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamBank
from dfkd.dreams.mapped import MappedDreams
from dfkd.errors import ArtifactError, ConfigError, TrainingError
from dfkd.inversion import InversionRecipe, memory
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.losses import jensen_shannon
from dfkd.streaming import Dreamer, StreamingDreamDataModule, StreamingRecipe
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace, fit

CPU = TrainerOptions(accelerator="cpu", checkpoint_updates=4)
INVERSION = InversionRecipe(num_images=40, num_held_out=0, batch_size=16, iterations=6, jitter=1)
RECIPE = DistillationRecipe(updates=12, batch_size=16, learning_rate=0.01, gradual=0)


@pytest.fixture
def files(teacher, spec, tmp_path) -> list[Path]:
    """A bank of three batches: 16, 16 and 8 dreams."""
    fill_bank(teacher, INVERSION, spec, 0, Workplace(tmp_path / "bank", CPU))
    return [DreamBank(tmp_path / "bank").path(number) for number in range(3)]


@pytest.fixture
def stream(teacher, spec, files, tmp_path):
    """Makes a student and the data module that streams dreams to it."""

    def make(directory="new", every=5, policy="uniform", weight=1.0, seed=0, on_new_batch=None):
        student = dfkd.prune(teacher, 0.8)
        inversion = dataclasses.replace(INVERSION, competition_weight=weight)
        data = StreamingDreamDataModule(
            files, tmp_path / directory, Dreamer(teacher, student, inversion, spec),
            StreamingRecipe(every=every, policy=policy), Stream(RECIPE.batch_size, RECIPE.updates, seed),
        )  # fmt: skip
        data.on_new_batch = on_new_batch
        return student, data

    return make


def learn(student: nn.Module, teacher: nn.Module, data, directory: Path, *callbacks) -> list[dict[str, float]]:
    return fit(DistillationModule(student, teacher, RECIPE, 3), data, Workplace(directory, CPU), callbacks)


def test_dreams_on_disk_are_those_that_were_written(files):
    dreams = MappedDreams(files)
    whole = DreamBank(files[0].parent).load(3, 0)[0]
    assert len(dreams) == 40 and dreams.sizes == [16, 16, 8]
    order = [39, 0, 16, 15, 31, 0]
    images, labels = (torch.stack(part) for part in zip(*dreams.__getitems__(order), strict=True))
    assert torch.equal(images, whole.images[order]) and torch.equal(labels, whole.labels[order])
    assert torch.equal(dreams[17][0], whole.images[17])
    files[1].write_bytes(files[1].read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="batch_00001"):
        MappedDreams(files)


def test_a_new_batch_joins_before_every_kth_update_and_is_drawn_from_at_once(teacher, stream, tmp_path):
    grown, drawn = [], []
    student, data = stream(policy="recent", on_new_batch=lambda dreams, row: grown.append((dreams, row["update"])))

    class Watching(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            drawn.append(batch[0])

    learn(student, teacher, data, tmp_path / "fit", Watching())
    assert [update for _, update in grown] == [5, 10] and len(drawn) == 12
    assert len(data.dreams) == 40 + 2 * 16
    assert [row["images"] for row in data.history] == [56, 72]
    for dreams, update in grown:
        new = {image.numpy().tobytes() for image in dreams.images}
        seen = [sum(image.numpy().tobytes() in new for image in batch) for batch in drawn]
        assert not any(seen[:update]) and seen[update] > 0
    for row in data.history:
        assert {"update", "images", "loss", "competition", "teacher_accuracy", "student_accuracy", "agreement"} <= set(
            row
        )
        assert all(0 <= row[name] <= 1 for name in ("teacher_accuracy", "student_accuracy", "agreement"))
    assert data.seconds > 0


def test_dreams_are_made_against_the_student_as_it_is_then(teacher, stream, tmp_path):
    """The same new batch with and without competition: with it, teacher and student disagree more on it."""

    def disagreement(weight: float) -> float:
        apart = []

        def measure(dreams, _row):
            images = dreams.images.float()
            with torch.no_grad():
                apart.append(jensen_shannon(teacher(images), copy.deepcopy(student).eval()(images), 3.0).item())

        student, data = stream(f"weight{weight}", weight=weight, on_new_batch=measure)
        learn(student, teacher, data, tmp_path / f"fit{weight}")
        return apart[0]  # up to here both students learned the same

    assert disagreement(1e6) > 1.2 * disagreement(0.0)


def test_a_new_batch_touches_neither_the_student_nor_the_teacher_nor_the_random_state(teacher, stream, tmp_path):
    before, after, expected = [], [], copy.deepcopy(teacher.state_dict())
    student, data = stream(
        on_new_batch=lambda dreams, row: after.append((copy.deepcopy(student.state_dict()), torch.get_rng_state()))
    )

    class Watching(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            before.append((copy.deepcopy(student.state_dict()), torch.get_rng_state()))

    learn(student, teacher, data, tmp_path / "fit", Watching())
    assert student.conv1.weight.requires_grad
    for update, (state, random) in zip((5, 10), after, strict=True):
        assert all(torch.equal(value, before[update - 1][0][name]) for name, value in state.items())
        assert torch.equal(random, before[update - 1][1])
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("policy", ["uniform", "recent", "hardest"])
def test_an_interrupted_stream_ends_with_the_same_numbers(teacher, stream, tmp_path, policy):
    ends = {}
    for name in ("whole", "broken"):
        if name == "broken":  # in the middle of the stream: checkpoint at 8, growth at 5 and 10
            student, data = stream(name, policy=policy, seed=7)
            with pytest.raises(Interrupted):
                learn(student, teacher, data, tmp_path / f"{name}-fit", Interrupt(11))
            assert len(list((tmp_path / name).iterdir())) == 2
        student, data = stream(name, policy=policy, seed=7)
        history = learn(student, teacher, data, tmp_path / f"{name}-fit")
        new = [(path.name, path.read_bytes()) for path in sorted((tmp_path / name).iterdir())]
        ends[name] = history, data.history, new, student.state_dict()
    whole, broken = ends["whole"], ends["broken"]
    assert whole[:3] == broken[:3] and len(whole[2]) == 2
    assert all(torch.equal(value, whole[3][name]) for name, value in broken[3].items())


def test_the_hardest_dreams_are_drawn_most(teacher, stream, files, tmp_path):
    drawn = []
    student, data = stream(policy="hardest", every=0)

    class Still(lightning.Callback):
        """Keeps the student as it is, so that what is hard stays so."""

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            drawn.append(batch[0])
            return -1 if len(drawn) == RECIPE.updates else None

    still = dataclasses.replace(RECIPE, learning_rate=1e-12, batch_norm="frozen")
    fit(DistillationModule(student, teacher, still), data, Workplace(tmp_path / "fit", CPU), [Still()])
    images = DreamBank(files[0].parent).load(3, 0)[0].images
    with torch.no_grad():
        expected, given = teacher(images.float()).log_softmax(1), student.eval()(images.float()).log_softmax(1)
    hard = (expected.exp() * (expected - given)).sum(1)
    times = {image.numpy().tobytes(): 0 for image in images}
    for image in torch.cat(drawn):
        times[image.numpy().tobytes()] += 1
    often = torch.tensor([float(times[image.numpy().tobytes()]) for image in images])
    third = len(images) // 3
    order = hard.argsort()
    assert often[order[-third:]].mean() > 1.3 * often[order[:third]].mean()


@pytest.mark.parametrize(("policy", "weight"), [("recent", 1.0), ("hardest", 0.0)])
def test_two_ranks_see_the_stream_that_one_sees(teacher, stream, tmp_path, policy, weight):
    ends = {}
    for ranks in (1, 2):
        student, data = stream(str(ranks), policy=policy, weight=weight)
        workplace = Workplace(tmp_path / f"fit{ranks}", dataclasses.replace(CPU, devices=ranks))
        history = recover_student(student, teacher, data, RECIPE, workplace)
        assert len(list((tmp_path / str(ranks)).iterdir())) == 2
        ends[ranks] = data.history, history, student.state_dict()
    one, two = ends[1], ends[2]
    torch.testing.assert_close(two[1][:5], one[1][:5], rtol=1e-4, atol=1e-5)
    if weight:  # rounding of the student grows in dreams that are made against it: so it does on one rank
        assert [(row["update"], row["images"]) for row in two[0]] == [(5, 56), (10, 72)]
        assert two[0][0]["loss"] == pytest.approx(one[0][0]["loss"], rel=0.05)
    else:
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def test_without_a_trainer_it_says_so(stream):
    _, data = stream()
    with pytest.raises(TrainingError, match=r"Trainer\.fit"):
        data.train_dataloader()


def test_the_recovery_takes_a_stream(teacher, stream, tmp_path):
    student, data = stream()
    recover_student(student, teacher, data, RECIPE, Workplace(tmp_path / "fit", CPU))
    assert len(data.dreams) == 72


@pytest.mark.parametrize(("option", "value"), [("every", -1), ("policy", "oldest")])
def test_bad_settings_name_the_option_and_what_is_allowed(option, value):
    with pytest.raises(ConfigError, match=rf"streaming\.{option} must be .*got {value!r}"):
        StreamingRecipe(**{option: value})


def test_a_stream_that_ended_elsewhere_has_all_its_dreams(teacher, stream, tmp_path):
    """As where the ranks are processes of their own: what is left of them is the state and the files."""
    student, data = stream(weight=0.0)
    learn(student, teacher, data, tmp_path / "fit")
    _, left = stream(weight=0.0)
    told = []
    left.on_new_batch = lambda _dreams, row: told.append(row["update"])
    left.load_state_dict(data.state_dict())
    assert len(left.training_set()) == 72 and told == [5, 10]


def test_a_batch_that_is_too_large_goes_through_the_networks_in_parts(teacher, stream, tmp_path, monkeypatch, caplog):
    ends = []
    for free in (2**40, 2**10):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, free=free: free)
        student, data = stream(f"free{free}", every=11, weight=0.0)
        assert "parts" not in caplog.text
        with caplog.at_level("INFO"):
            learn(student, teacher, data, tmp_path / f"fit{free}")
        ends.append(data.history[-1]["loss"])
    assert "goes through the network in 16 parts" in caplog.text and ends[0] == pytest.approx(ends[1], rel=1e-3)
