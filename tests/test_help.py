"""What the command says of itself, and of what it refuses."""

from __future__ import annotations

import re

import pytest
from conftest import TINY, command

from dfkd.app import COMMANDS
from dfkd.help import OPTIONS, SETTINGS, choices


def test_the_command_alone_says_what_can_be_done(tmp_path):
    said = command([], tmp_path).stdout
    assert set(re.findall(r"^  dfkd (\w+) ", said, re.MULTILINE)) == set(COMMANDS)
    assert not list(tmp_path.iterdir())


def test_help_explains_the_options_and_names_every_choice(tmp_path):
    said = command(["--help"], tmp_path).stdout
    for option in (*OPTIONS, *SETTINGS):
        assert re.search(rf"^  {option}= +\S", said, re.MULTILINE), option
    for group in OPTIONS:
        assert set(choices(group)) <= set(re.findall(r"[\w-]+", said)), group
    assert max(map(len, said.splitlines())) <= 110


MISTYPED = {
    "inversion.iteration=3": "inversion.iteration is not an option. Did you mean inversion.iterations?",
    "sead=1": "sead is not an option. Did you mean seed?",
    "model.dpth=20": "Could not override 'model.dpth'",
    "+pruning.amonut=0.5": "pruning.amonut is not an option of",
    "+width=8": "width is not an option.",
    "+inversion.itertions=8": "inversion.itertions is not an option. Did you mean inversion.iterations?",
    "stage=dreams": "stage must be one of",
    "pruning.amount=1": "pruning.amount must be a number in [0, 1), got 1",
}


@pytest.mark.parametrize("option", MISTYPED)
def test_a_mistyped_option_is_told_once_and_leaves_nothing(option, tmp_path):
    done = command([*TINY, option], tmp_path, check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.count("dfkd: error:") == 1 == said.count(MISTYPED[option])
    assert "experiment=demo" not in said and "quote it twice" not in said  # all the options that were right
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.glob("runs/*/*"))


def test_a_folder_that_was_there_keeps_what_is_in_it(tmp_path):
    kept = tmp_path / "mine" / "photographs" / "one.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    done = command([*TINY, "stage=dreams", "run_dir=mine"], tmp_path, check=False)
    assert done.returncode == 1 and "stage must be one of" in done.stderr
    assert kept.read_text() == "mine"


def test_an_attempt_that_fails_before_the_work_is_kept_where_a_file_is_missing(tmp_path):
    done = command([*TINY, "verifier.weights=nowhere.pt", "run_dir=run"], tmp_path, check=False)
    message = "verifier.weights: there is no file nowhere.pt"
    assert (done.stdout + done.stderr).count(message) == 1
    assert message in (tmp_path / "run" / "dfkd.log").read_text()
    assert message in (tmp_path / "run" / "status.json").read_text()


def test_every_job_of_a_sweep_that_fails_is_told_and_the_others_run(tmp_path):
    options = ["-m", *TINY, "stage=teacher", "pruning.amount=1,0.5,2", "run_dir=sweep"]
    done = command(options, tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.count("pruning.amount must be") == 2
    assert len(list(tmp_path.glob("sweep/*/status.json"))) == 1


def test_a_command_that_is_not_there_is_told_with_one_that_is(tmp_path):
    done = command(["repotr", "runs"], tmp_path, check=False)
    assert done.returncode == 1 and "repotr is no command of dfkd" in done.stderr and "dfkd report?" in done.stderr
