"""A bank of dreams is the same however it was made, and never holds what it should not."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dfkd
from dfkd.distillation import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule
from dfkd.errors import ConfigError, InversionError
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.plan import balanced_labels, plan_batches
from dfkd.training.data import Stream
from dfkd.training.fit import TrainerOptions, Workplace

RECIPE = InversionRecipe(num_images=40, num_held_out=10, batch_size=16, iterations=4, jitter=1)
OPTIONS = TrainerOptions(accelerator="cpu")


def test_an_interrupted_or_damaged_bank_ends_as_an_undisturbed_one(teacher, spec, tmp_path):
    whole, _ = fill_bank(teacher, RECIPE, spec, 7, Workplace(tmp_path / "whole", OPTIONS))
    fill_bank(teacher, RECIPE, spec, 7, Workplace(tmp_path / "broken", OPTIONS))
    files = sorted((tmp_path / "broken").iterdir())
    assert len(files) == 4  # 40 = 16 + 16 + 8, and 10 held out
    files[0].unlink()
    content = files[2].read_bytes()
    files[2].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    kept = files[1].stat().st_mtime_ns
    repaired, history = fill_bank(teacher, RECIPE, spec, 7, Workplace(tmp_path / "broken", OPTIONS))
    assert files[1].stat().st_mtime_ns == kept
    for name in ("images", "labels", "predictions", "confidence"):
        assert torch.equal(getattr(whole, name), getattr(repaired, name))
    assert {row["batch"] for row in history} == {0, 1, 2, 3}


def test_a_bank_with_history_is_repaired_to_the_same_bits_and_its_batches_depend_on_those_before(
    teacher, spec, tmp_path
):
    recipe = dataclasses.replace(RECIPE, feature_history=2, feature_form="divergence")
    fill_bank(teacher, recipe, spec, 7, Workplace(tmp_path / "whole", OPTIONS))
    whole = contents(tmp_path / "whole")
    fill_bank(teacher, recipe, spec, 7, Workplace(tmp_path / "broken", OPTIONS))
    for number in (1, 3):
        (tmp_path / "broken" / f"batch_0000{number}.safetensors").unlink()
    fill_bank(teacher, recipe, spec, 7, Workplace(tmp_path / "broken", OPTIONS))
    assert contents(tmp_path / "broken") == whole
    fill_bank(teacher, dataclasses.replace(recipe, feature_history=0), spec, 7, Workplace(tmp_path / "alone", OPTIONS))
    same = [content == whole[name] for name, content in contents(tmp_path / "alone").items()]
    assert same == [True, False, False, True]  # the first of the training and of the held-out dreams stand alone


def test_batches_with_history_are_not_shared_by_devices(teacher, spec, tmp_path):
    options = TrainerOptions(accelerator="cpu", dream_devices=2)
    with pytest.raises(ConfigError, match="trainer.dream_devices must be 1 with inversion.feature_history.*got 2"):
        fill_bank(teacher, dataclasses.replace(RECIPE, feature_history=1), spec, 0, Workplace(tmp_path, options))


def test_earlier_dreams_are_made_better(teacher, spec, tmp_path):
    fresh, before = fill_bank(teacher, RECIPE, spec, 0, Workplace(tmp_path / "first", OPTIONS))
    again = dataclasses.replace(RECIPE, start="dreams")
    _, after = fill_bank(teacher, again, spec, 1, Workplace(tmp_path / "second", OPTIONS), earlier=fresh)
    assert after[0]["total"] < before[0]["total"]


def test_training_and_held_out_dreams_are_apart_and_balanced(teacher, spec, tmp_path):
    dreams, _ = fill_bank(teacher, RECIPE, spec, 0, Workplace(tmp_path, OPTIONS))
    assert len(dreams.training) == 40 and len(dreams.held_out) == 10
    assert dreams.images.dtype == torch.float16 and dreams.images.shape == (50, 1, 8, 8)
    assert dreams.training.labels.bincount(minlength=10).tolist() == [4] * 10
    assert dreams.held_out.labels.bincount(minlength=10).tolist() == [1] * 10
    with torch.no_grad():
        probabilities = teacher(dreams.images.float()).softmax(1)
    torch.testing.assert_close(dreams.confidence, probabilities[torch.arange(50), dreams.labels], rtol=1e-3, atol=1e-5)


def test_half_precision_keeps_images_and_statistics_in_float32(teacher, spec, tmp_path):
    recipe = InversionRecipe(num_images=16, num_held_out=0, batch_size=16, iterations=40, jitter=1)
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        options = TrainerOptions(accelerator="cpu", precision=precision)
        dreams, history = fill_bank(teacher, recipe, spec, 0, Workplace(tmp_path / precision, options))
        assert dreams.images.isfinite().all()
        losses[precision] = history[-1]["total"] / history[0]["total"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.1)
    student = dfkd.prune(teacher, 0.5)
    settings = DistillationRecipe(updates=3, batch_size=8, learning_rate=0.01)
    data = DreamDataModule(dreams, Stream(8, 3))
    history = recover_student(student, teacher, data, settings, Workplace(tmp_path, options))
    assert all(np.isfinite(row["total"]) for row in history)


def test_labels_differ_by_one_at_most_and_do_not_come_sorted():
    labels = balanced_labels(1003, 100, seed=3)
    counts = labels.bincount(minlength=100)
    assert counts.max() - counts.min() == 1
    assert labels[:100].tolist() != list(range(100))


def test_batches_have_seeds_of_their_own():
    plan = plan_batches(RECIPE, 10, seed=0)
    assert len({batch.seed for batch in plan}) == len(plan) == 4
    assert plan[0].seed != plan_batches(RECIPE, 10, seed=1)[0].seed


def test_a_batch_that_fails_is_not_stored_and_those_before_it_are(teacher, spec, tmp_path):
    fill_bank(teacher, RECIPE, spec, 0, Workplace(tmp_path, OPTIONS))
    for path in sorted(tmp_path.iterdir())[1:]:
        path.unlink()
    teacher.linear.bias.data.fill_(float("nan"))
    with pytest.raises(InversionError, match="Batch 1: .*It was not stored"):
        fill_bank(teacher, RECIPE, spec, 0, Workplace(tmp_path, OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["batch_00000.safetensors"]


def test_without_targets_the_labels_are_the_teachers_predictions(teacher):
    dreams = dfkd.invert(
        teacher, 16, image_shape=(1, 8, 8), iterations=3, batch_size=16, label_loss="entropy", accelerator="cpu"
    )
    assert torch.equal(dreams.labels, dreams.predictions)


def bank_in_a_process(directory, devices, extra="") -> subprocess.Popen:
    """A process of its own that fills the bank `directory` for a fixed teacher, with so many ranks."""
    program = f"""
from pathlib import Path
import torch
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.models import CifarResNet, InputSpec
from dfkd.training.fit import TrainerOptions, Workplace
if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = CifarResNet(8, in_channels=1, width=4).eval()
    settings = dict(num_images=40, num_held_out=10, batch_size=8, iterations=4, jitter=1)
    recipe = InversionRecipe(**settings | dict({extra}))
    options = TrainerOptions(accelerator="cpu", dream_devices={devices})
    spec = InputSpec((1, 8, 8), 10, (0.3,), (0.4,))
    fill_bank(teacher, recipe, spec, 7, Workplace(Path({str(directory)!r}), options))
"""
    directory.mkdir(exist_ok=True)
    script = directory.with_suffix(".py")
    script.write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)


def fill_in_a_process(directory, devices, extra="") -> None:
    process = bank_in_a_process(directory, devices, extra)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors


def contents(directory):
    # By the batches' names: whoever is killed while it writes leaves a temporary file, which the store clears away.
    return {path.name: path.read_bytes() for path in sorted(directory.glob("batch_*.safetensors"))}


def test_two_ranks_make_the_bank_that_one_makes(tmp_path):
    for devices in (1, 2):
        fill_in_a_process(tmp_path / str(devices), devices)
    assert len(contents(tmp_path / "1")) == 7  # 40 = 5 x 8, and 10 = 8 + 2 held out: odd for two ranks
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_the_batch_in_hand_only(tmp_path):
    process = bank_in_a_process(tmp_path / "killed", 2, "iterations=150")
    while len(contents(tmp_path / "killed")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in ranks}
    os.kill(next(pid for pid in reversed(ranks) if "spawn_main" in commands[pid]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "A process that was making dreams died" in errors and "run the same again" in errors
    kept = contents(tmp_path / "killed")
    assert 2 <= len(kept) < 7
    for name, devices in (("killed", 1), ("undisturbed", 2)):
        fill_in_a_process(tmp_path / name, devices, "iterations=150")
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert kept.items() <= contents(tmp_path / "killed").items()


def test_a_directory_never_gives_out_dreams_of_another_call(teacher, tmp_path):
    settings = {"image_shape": (1, 8, 8), "iterations": 2, "batch_size": 8, "accelerator": "cpu"}
    settings |= {"directory": tmp_path}
    first = dfkd.invert(teacher, 8, **settings)
    again = dfkd.invert(teacher, 8, **settings)
    assert torch.equal(first.images, again.images) and len(list(tmp_path.glob("dreams/*/artifact.json"))) == 1
    with torch.no_grad():
        teacher.linear.bias[0] += 1
    others = [dfkd.invert(teacher, 8, **settings)]
    for changes in ({"seed": 1}, {"iterations": 3}, {"start": "noise"}):
        others.append(dfkd.invert(teacher, 8, **settings | changes))
    for earlier in (first, others[-1]):
        dfkd.invert(teacher, 8, **settings, start="dreams", earlier=earlier)
    assert not any(torch.equal(first.images, other.images) for other in others[1:])
    assert len(list(tmp_path.glob("dreams/*/artifact.json"))) == 7
