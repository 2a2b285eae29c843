"""Two ranks that train together give the network that one gives, and each continues what the other began."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import running
import torch
from conftest import TINY, command, result_of
from experiments import LEARNING, SMALLEST, experiment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from torch.utils.data import TensorDataset

import dfkd
from dfkd.distillation import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule, Dreams
from dfkd.errors import ConfigError, TrainingError
from dfkd.incremental import ClassIncrementalLearning, IncrementalRecipe, PairedDataModule
from dfkd.models import CifarResNet
from dfkd.models.classifier import extend_classifier
from dfkd.pruning import prune_by_global_magnitude, sparsity
from dfkd.quantization import QuantizationRecipe
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace, fit
from dfkd.training.teacher import TeacherRecipe, TeacherTraining

UPDATES = 8


def workplace(directory: Path, ranks: int) -> Workplace:
    return Workplace(directory, TrainerOptions(accelerator="cpu", devices=ranks, checkpoint_updates=3))


@pytest.fixture
def dreams() -> Dreams:
    labels = torch.arange(48) % 10
    return Dreams((0.5 + 2 * torch.randn(48, 1, 8, 8)).half(), labels, labels, torch.ones(48))


def prune(network: nn.Module, share: float) -> None:
    prune_by_global_magnitude(network, 0.8 * share)


@pytest.fixture
def recovered(teacher, dreams, tmp_path):
    """Recovers a student on some ranks; gives its weights and history."""

    def recover(ranks: int, directory: str = "", pruning=prune, quantization=None, **changes):
        settings = {"updates": UPDATES, "batch_size": 16, "learning_rate": 0.01, "crop_padding": 1, "gradual": 0}
        recipe = DistillationRecipe(**settings | {"cutmix": 0.5, "label_weight": 0.1} | changes)
        student = copy.deepcopy(teacher) if recipe.gradual else dfkd.prune(teacher, 0.8)
        history = recover_student(
            student, teacher, DreamDataModule(dreams, Stream(16, UPDATES, seed=3)), recipe,
            workplace(tmp_path / (directory or str(ranks)), ranks), pruning if recipe.gradual else None,
            TensorDataset(dreams.images.flip(3), dreams.labels), quantization,
        )  # fmt: skip
        assert sparsity(student) == pytest.approx(0.8, abs=2e-3) or quantization is not None
        return student.state_dict(), history

    return recover


def assert_same(one, other) -> None:
    """Weights and histories are equal but for rounding."""
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradual", [0.5, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["aligned", "live", pytest.param("frozen", marks=pytest.mark.slow)])
def test_two_ranks_recover_the_student_that_one_recovers(recovered, mode, gradual):
    one, two = (recovered(ranks, batch_norm=mode, gradual=gradual) for ranks in (1, 2))
    assert_same(one, two)
    assert {"total", "features", "labels", "held_out_kl"} <= set(two[1][-1])


def test_a_quantised_student_is_that_of_one_rank_but_for_what_lies_between_two_values_of_a_grid(recovered):
    recipe = QuantizationRecipe(weight_bits=4, input_bits=4)
    ends = (recovered(ranks, quantization=recipe, gradual=0.5, optimizer="sgd", batch_norm="live") for ranks in (1, 2))
    (one, first), (two, second) = ends
    assert second[-1]["total"] == pytest.approx(first[-1]["total"], rel=0.02)
    for name, value in one.items():
        alike = torch.isclose(two[name].double(), value.double(), rtol=0.01, atol=1e-4).double().mean()
        assert alike > (0.9 if value.dim() > 1 else 0.6), name


@pytest.mark.parametrize("changes", [{"weight_averaging": 0.9, "gradual": 0.5}, {"patience": 1, "learning_rate": 0.5}])
def test_averages_and_patience_are_those_of_one_rank(recovered, changes):
    one, two = (recovered(ranks, batch_norm="live", optimizer="sgd", **changes) for ranks in (1, 2))
    assert [row["update"] for row in one[1]] == [row["update"] for row in two[1]]
    assert ("patience" in changes) == (two[1][-1]["update"] < UPDATES)
    assert_same(one, two)


def test_two_ranks_train_the_teacher_that_one_trains(dreams, tmp_path):
    ends = {}
    for ranks in (1, 2):
        torch.manual_seed(0)
        network = CifarResNet(8, num_classes=10, in_channels=1, width=4)
        module = TeacherTraining(
            network, TeacherRecipe(updates=UPDATES, batch_size=16, crop_padding=1, flip=True, cutmix=0.5), 0
        )
        data = DreamDataModule(dreams, Stream(16, UPDATES))
        ends[ranks] = network.state_dict(), fit(module, data, workplace(tmp_path / str(ranks), ranks))
    assert_same(ends[1], ends[2])


@pytest.mark.parametrize("losses", ["balanced", "deepinversion"])
def test_two_ranks_learn_the_new_classes_that_one_learns(teacher, dreams, losses, tmp_path):
    ends = {}
    for ranks in (1, 2):
        torch.manual_seed(0)
        network = copy.deepcopy(teacher)
        extend_classifier(network, 10, 2, (1, 8, 8))
        new = TensorDataset(torch.randn(32, 1, 8, 8), 10 + torch.arange(32) % 2)
        recipe = IncrementalRecipe(updates=UPDATES, batch_size=8, crop_padding=1, new_classes=2, losses=losses)
        data = PairedDataModule(new, TensorDataset(dreams.images, dreams.labels), Stream(8, UPDATES))
        module = ClassIncrementalLearning(network, teacher, recipe, classifier="linear")
        history = fit(module, data, workplace(tmp_path / str(ranks), ranks))
        ends[ranks] = network.state_dict(), history
    assert_same(ends[1], ends[2])


def fail(network: nn.Module, share: float) -> None:
    """Prunes as `prune`, and fails when it has done so in full."""
    prune(network, share)
    if share == 1:
        raise Stopped


class Stopped(Exception):
    """A training was stopped on purpose."""


def die(network: nn.Module, share: float) -> None:
    """As `fail`, without a word."""
    if share == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_continues_what_was_begun(recovered, first, then, tmp_path):
    changes = {"gradual": 0.8, "weight_averaging": 0.5}
    with pytest.raises((Stopped, TrainingError)) as error:
        recovered(first, "shared", pruning=fail, **changes)
    assert first == 1 or "Stopped" in str(error.value)
    assert torch.load(tmp_path / "shared" / "resume.ckpt", weights_only=True)["global_step"] == 6
    assert_same(recovered(1, "whole", **changes), recovered(then, "shared", **changes))


def test_a_rank_that_dies_says_how_to_go_on(recovered, tmp_path):
    with pytest.raises(TrainingError, match=r"A process of this training died.*SIGKILL.*Run the same again"):
        recovered(2, pruning=die, gradual=0.8)
    assert (tmp_path / "2" / "resume.ckpt").exists()


def test_what_goes_wrong_on_a_rank_is_told_as_on_one(recovered):
    with pytest.raises(TrainingError, match="^train: the loss was not finite by update 1 .*distillation.learning_rate"):
        recovered(2, logits_weight=1e39)


def test_batches_are_divided_into_equal_shares(recovered):
    with pytest.raises(ConfigError, match=r"distillation\.batch_size must be a multiple .*num_nodes = 3, got 16"):
        recovered(3)


class OwnBatchNorm(nn.BatchNorm2d):
    """Batch norm with a forward of its own."""

    def forward(self, x):
        return super().forward(x)


class OwnNetwork(CifarResNet):
    """A network with such layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.bn1 = OwnBatchNorm(options["width"])


class NotPortable(CifarResNet):
    """A network that holds a function of no name."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scale = lambda x: x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["teacher.training.batch_size=33"], r"teacher\.training\.batch_size must be a multiple of .* = 2, got 33"),
        (["distillation.batch_size=9"], r"distillation\.batch_size must be a multiple of .* = 2, got 9"),
        (["model._target_=test_ranks.OwnNetwork"], r"trainer\.devices .* must be 1 .*OwnBatchNorm"),
        (["model._target_=test_ranks.NotPortable"], r"trainer\.devices .* must be 1 for NotPortable.*top level"),
        (["trainer.accelerator=mps"], r"trainer\.accelerator must be cpu or gpu with several devices, got 'mps'"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_the_work_begins(options, message):
    with pytest.raises(ConfigError, match=message):
        experiment("trainer.devices=2", *options).check()


@pytest.mark.slow
def test_a_run_on_two_devices_is_that_of_one(finished, tmp_path):
    printed = command([*TINY, "trainer.devices=2", "controls=[]", "run_dir=run"], tmp_path)
    assert not [word for word in ("Lightning", "distributed", "Warning", "Trainer") if word in printed.stderr]
    one, two = result_of(finished), result_of(tmp_path)
    assert two["teacher"]["accuracy"] == pytest.approx(one["teacher"]["accuracy"], abs=0.02)
    assert two["recovered"]["sparsity"] == one["recovered"]["sparsity"]
    made = ("teacher", "dream", "prune", "recover")
    assert [two["artifacts"][name] for name in made] == [one["artifacts"][name] for name in made]


def test_a_training_of_one_process_is_not_for_several_machines():
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes must be 1 .*got 2: torchrun or SLURM"):
        experiment("trainer.num_nodes=2").check()


LAUNCHERS = {
    "torchrun": lambda rank: {
        "TORCHELASTIC_RUN_ID": "run", "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "GROUP_RANK": rank,
    },
    "slurm": lambda rank: {
        "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_JOB_NAME": "dfkd", "SLURM_NTASKS": 2,
        "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2, "SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_NODEID": rank,
    },
}  # fmt: skip


def launched(launcher: str, directory: Path, *options: str) -> list[subprocess.CompletedProcess]:
    """`dfkd` as two ranks, of a machine each, with the variables that a launcher sets."""
    port = find_free_network_port()

    def start(rank: int) -> subprocess.CompletedProcess:
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **LAUNCHERS[launcher](rank)}
        environment = {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}
        return running.run([*SMALLEST, *LEARNING, "run_dir=run", *options], directory, environment, 300)

    with ThreadPoolExecutor(2) as ranks:
        return list(ranks.map(start, (0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_ranks_are_as_good_as_spawned_ones(launcher, tmp_path):
    first, second = launched(launcher, tmp_path, "trainer.num_nodes=2", "stage=recover", "teacher.training.updates=30")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "recover: " in first.stdout and not second.stdout  # the second has no run of its own
    again = command([*SMALLEST, *LEARNING, "run_dir=run", "stage=recover", "teacher.training.updates=30"], tmp_path)
    assert "recover: found in the store" in again.stdout


@pytest.mark.slow
def test_launched_ranks_share_the_dreams_that_one_makes(tmp_path):
    dreaming = ["stage=dream", "inversion.num_images=32", "inversion.batch_size=16", "inversion.num_held_out=8"]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    alone = [*SMALLEST, *LEARNING, *dreaming, "run_dir=run"]
    running.run(alone, one, {"OMP_NUM_THREADS": "1"}, 300).check_returncode()
    shutil.copytree(one / "artifacts/teacher", two / "artifacts/teacher")
    first, second = launched("torchrun", two, "trainer.num_nodes=2", *dreaming)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert not second.stdout
    banks = [{path.name: path.read_bytes() for path in each.glob("artifacts/dreams/*/batch_*")} for each in (one, two)]
    assert len(banks[0]) == 3  # odd for two ranks
    assert banks[0] == banks[1]


def test_launched_ranks_that_are_not_asked_for_are_refused(tmp_path):
    first, second = launched("torchrun", tmp_path)
    assert first.returncode and "must be the 2 ranks launched, got '1 x 1'" in first.stderr
    assert second.returncode and "the first rank has ended" in second.stderr
