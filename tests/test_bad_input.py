"""What cannot work is refused by the real command before the long work starts."""

from __future__ import annotations

import pytest
from conftest import TINY, command

BAD_INPUT = {
    "an amount out of range": (["pruning.amount=1"], "pruning.amount must be a number in [0, 1), got 1"),
    "a mistyped key": (["inversion.iteration=3"], "iteration"),
    "a start that is not there": (
        ["teacher.training.start=nowhere.pt"],
        "teacher.training.start: there is no file nowhere.pt",
    ),
    "a judge that is not there": (["judge.weights=nowhere.pt"], "judge.weights: there is no file nowhere.pt"),
    "a patience without held-out dreams": (
        ["distillation.patience=3", "inversion.num_held_out=0"],
        "inversion.num_held_out must be 1 or more with",
    ),
    "a missing folder": (["data=image_folder", "data.root=nowhere"], "there is no folder nowhere/train"),
    "a run directory inside a file": (["run_dir=file/run"], "Check that run_dir and store"),
    "more dreams than the disk can hold": (["inversion.num_images=1000000000000"], "MiB free"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_at_once_without_a_traceback(case, tmp_path):
    options, message = BAD_INPUT[case]
    (tmp_path / "file").write_text("")
    done = command([*TINY, "run_dir=run", *options], tmp_path, check=False)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("artifacts/*/*"))


def test_rounds_need_an_amount_that_can_rise(tmp_path):
    options = [option for option in TINY if not option.startswith("pruning")]
    done = command([*options, "pruning=two_of_four", "rounds=2"], tmp_path, check=False)
    assert done.returncode and "rounds must be 1 with pruning._target_=dfkd.pruning.prune_n_of_m, got 2" in done.stderr
    assert not (tmp_path / "artifacts" / "teacher").exists()
