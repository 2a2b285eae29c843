"""What cannot work is refused by the real command before the long work starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DREAMS, LEARNING, TINY, command, result_of, without_training
from PIL import Image

import dfkd
from dfkd.errors import ConfigError

DOES_NOTHING = {
    "recovery": (TINY, ["incremental.updates=3", "data@new_data=digits", "model@student=resnet20"]),
    "transfer": ([*LEARNING, "distillation=transfer"], ["pruning.amount=0.5", "rounds=2", "distillation.gradual=0.1"]),
    "class_incremental": (
        ["experiment=incremental_digits", *DREAMS[1:]],
        ["distillation.batch_size=4096", "pruning=filters", "streaming.every=5", "rounds=2"],
    ),
    "a given teacher": (
        [*without_training(TINY), "teacher=pretrained", "teacher.weights=w.pt"], ["teacher.training.updates=3"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOES_NOTHING)
def test_an_option_that_does_nothing_in_a_task_is_refused(case, tmp_path):
    options, ignored = DOES_NOTHING[case]
    for option in ignored:
        task = [] if case == "a given teacher" or "experiment=incremental" in options[0] else [f"task={case}"]
        done = command([*options, *task, option], tmp_path, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"{option.split('=')[0]} does nothing with" in done.stderr or "leave out model@student" in done.stderr


def test_an_option_that_is_not_used_is_no_reason_to_refuse(tmp_path):
    """The default batch of distillation is larger than the dreams, and this task does not distil."""
    options = ["experiment=incremental_digits", *DREAMS[1:], "incremental.updates=2", "incremental.batch_size=8"]
    command([*options, "controls=[]", "inversion.num_images=24", "stage=learn"], tmp_path)


BAD_INPUT = {
    "an amount out of range": (["pruning.amount=1"], "pruning.amount must be a number in [0, 1), got 1"),
    "a mistyped key": (["inversion.iteration=3"], "iteration"),
    "a task that is not there": (["task=pruning"], "task must be one of ('recovery', 'transfer', 'class_incremental')"),
    "a start that is not there": (
        ["teacher.training.start=nowhere.pt"],
        "teacher.training.start: there is no file nowhere.pt",
    ),
    "a verifier that is not there": (["verifier.weights=nowhere.pt"], "verifier.weights: there is no file nowhere.pt"),
    "a patience without held-out dreams": (
        ["distillation.patience=3", "inversion.num_held_out=0"],
        "inversion.num_held_out must be 1 or more with",
    ),
    "a stream with a history": (
        ["streaming.every=5", "inversion.feature_history=2"], "inversion.feature_history must be 0 with streaming",
    ),
    "a missing folder": (["data=image_folder", "data.root=nowhere"], "there is no folder nowhere/train"),
    "a run directory inside a file": (["run_dir=file/run"], "Check that run_dir and store"),
    "more dreams than the disk can hold": (["inversion.num_images=1000000000000"], "MiB free"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_at_once_without_a_traceback(case, tmp_path):
    options, message = BAD_INPUT[case]
    (tmp_path / "file").write_text("")
    done = command([*TINY, "run_dir=run", *options], tmp_path, check=False)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("artifacts/*/*"))


def test_a_run_that_is_refused_opens_no_run_of_wandb(tmp_path):
    options = [*TINY, "logger=wandb", "logger.offline=true", "run_dir=run", "verifier.weights=nowhere.pt"]
    assert command(options, tmp_path, check=False).returncode == 1
    assert not list(tmp_path.rglob("*wandb*"))


def test_rounds_need_an_amount_that_can_rise(tmp_path):
    options = [option for option in TINY if not option.startswith("pruning")]
    done = command([*options, "pruning=two_of_four", "rounds=2"], tmp_path, check=False)
    assert done.returncode and "rounds must be 1 with pruning._target_=dfkd.pruning.prune_n_of_m, got 2" in done.stderr
    assert not (tmp_path / "artifacts" / "teacher").exists()


@pytest.mark.parametrize("name", ["epoch=3-step=99.pt", "~/x.pt"])
def test_a_file_name_that_hydra_takes_for_syntax_is_told_with_the_quoting_that_works(name, tmp_path):
    done = command([*TINY, f"teacher.training.start={name}"], tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    quoted = f'teacher.training.start="{name}"'
    assert f"quote it twice: '{quoted}'" in done.stderr
    done = command([*TINY, quoted, "run_dir=run"], tmp_path, check=False)
    assert f"there is no file {Path(name).expanduser()}" in done.stderr


def test_what_a_users_own_constructor_raises_is_told_without_a_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def network(): raise RuntimeError('no licence found')")
    own = ["experiment=custom", "model._target_=mine.network", "teacher.weights=w.pt", "input.num_classes=7"]
    own += ["input.image_shape=[1,8,8]", "input.mean=[0.5]", "input.std=[0.25]", "run_dir=run"]
    done = command(own, tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model: network cannot be made from {}: RuntimeError: no licence found" in done.stderr


def test_images_of_ones_own_come_from_a_source(tmp_path):
    (tmp_path / "mine.py").write_text("def images(spec, **options): return [1, 2]")
    done = command([*TINY, "data._target_=mine.images", "run_dir=run"], tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data._target_ must give dfkd.real_data.RealImages, or None, but mine.images gave a list" in done.stderr


def test_python_calls_name_an_option_that_is_not_there(teacher):
    with pytest.raises(ConfigError, match=r"iteration is not an option of InversionRecipe\. Did you mean iterations"):
        dfkd.invert(teacher, 8, image_shape=(1, 8, 8), iteration=5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_told_before_the_work(teacher, tmp_path):
    done = command([*TINY, "trainer.accelerator=gpu"], tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "trainer.accelerator=gpu and trainer.device=0 must be what this machine has" in done.stderr
    assert not list(tmp_path.glob("artifacts/*/*"))
    with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu"):
        dfkd.invert(teacher, 8, image_shape=(1, 8, 8), accelerator="gpu")


def test_test_images_alone_score_a_run_without_its_control(finished, tmp_path):
    """And no option lets a student learn from them."""
    for label in range(10):
        folder = tmp_path / "photographs" / "test" / f"digit{label}"
        folder.mkdir(parents=True)
        Image.new("L", (8, 8), 20 * label).save(folder / "one.png")
    options = [*without_training(TINY), "data=image_folder", "data.root=photographs", "distillation.updates=2"]
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    given = ["teacher=pretrained", f"teacher.weights={weights}", "controls=[real]"]
    command([*options, *given, "run_dir=run"], tmp_path)
    result = result_of(tmp_path)
    assert result["recovered"]["accuracy"] is not None and result["controls"]["real"] is None
    assert result["data"]["opened_for"] == ["evaluation"]
    done = command([*options, *given, "data.train=test", "run_dir=run"], tmp_path, check=False)
    assert done.returncode == 1 and "data.train and data.test must be different folders" in done.stderr
    done = command([*options, "teacher=trained", "run_dir=run"], tmp_path, check=False)
    assert done.returncode == 1 and "has no train images, which teacher training needs" in done.stderr


def test_python_calls_take_lists_and_numbers_of_numpy(teacher, tmp_path):
    arguments = {"mean": np.array([0.3]), "std": np.array([0.3]), "seed": np.int64(3), "iterations": np.int64(2)}
    dreams = dfkd.invert(
        teacher, 8, image_shape=[1, 8, 8], directory=tmp_path, learning_rate=np.float32(0.1), **arguments
    )
    assert len(dreams.images) == 8
    with pytest.raises(ConfigError, match='start must be "dreams" with earlier'):
        dfkd.invert(teacher, 8, image_shape=(1, 8, 8), earlier=dreams)
    with pytest.raises(ConfigError, match="seed must be a whole number, got 0.5"):
        dfkd.invert(teacher, 8, image_shape=(1, 8, 8), seed=0.5)
    with pytest.raises(ConfigError, match=r"dreams must be those of dfkd\.invert"):
        dfkd.recover(dfkd.prune(teacher, 0.5), teacher, dreams.images)
