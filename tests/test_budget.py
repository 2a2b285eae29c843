"""A budget of seconds: dreams and updates that fit it, kept for the run that continues."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import TINY, command
from experiments import CLASS_INCREMENTAL, LEARNING, TRANSFER, experiment

from dfkd.budget import options_within, split
from dfkd.costs import Costs, measured
from dfkd.errors import ConfigError

HELD_OUT = 1  # batch


@pytest.mark.parametrize("costs", [Costs(batch=1.0, update=0.1), Costs(batch=0.02, update=2.0)])
@pytest.mark.parametrize("seconds", [100.0, 1000.0])
@pytest.mark.parametrize("rounds", [1, 3])
def test_what_is_chosen_takes_the_seconds_and_no_more(costs, seconds, rounds):
    made = experiment(*LEARNING, f"rounds={rounds}", "inversion.num_held_out=8")
    if seconds < costs.update * 20 * rounds:
        with pytest.raises(ConfigError, match=r"seconds must be 1\d\d or more for this network on this machine"):
            split(made, seconds, costs)
        return
    options = split(made, seconds, costs)
    batches, updates = options["inversion.num_images"] / 8, options["distillation.updates"]
    spent = (batches + HELD_OUT) * costs.batch + updates * rounds * costs.update
    assert seconds - 2 * costs.batch - 10 * rounds * costs.update < spent <= seconds
    assert (batches + HELD_OUT) * costs.batch <= seconds / 5


def test_a_batch_of_learning_has_its_images():
    made = experiment("distillation.batch_size=30", "distillation.updates=6", "inversion.num_images=32")
    assert split(made, 20.0, Costs(batch=1.0, update=0.1))["inversion.num_images"] == 32


def test_iterations_at_half_resolution_are_counted_too():
    few, many = (
        measured(experiment(*LEARNING, "inversion.iterations=100", f"inversion.half_resolution_iterations={half}"))
        for half in (0, 1000)
    )
    assert many.batch > 2 * few.batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CLASS_INCREMENTAL, "seconds must be null with task=class_incremental"),
        ([*LEARNING, "streaming.every=3"], "seconds must be null where dreams are streamed"),
        (TRANSFER, r"seconds must be \d+ or more for this network on this machine"),
    ],
)
def test_where_seconds_mean_nothing_they_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        options_within(experiment(*options), 0.01)


def test_a_run_within_seconds_says_what_it_chose_and_continues_with_it(tmp_path):
    options = [*TINY, "controls=[]", "seconds=4", "run_dir=run"]
    done = command(options, tmp_path)
    chosen = json.loads((tmp_path / "run" / "within_seconds.json").read_text())["options"]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["inversion"]["num_images"] == chosen["inversion.num_images"] >= 16
    assert config["distillation"]["updates"] == chosen["distillation.updates"] >= 20
    assert "seconds=4: a batch of 16 dreams takes" in done.stdout + done.stderr
    command(options, tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"dream", "recover"} <= set(result["reused"])
    command([*options, "seed=1"], tmp_path)  # another run in the same folder chooses anew


def test_no_time_is_given_to_a_training_that_is_not_to_be():
    with pytest.raises(ConfigError, match=r"seconds must be null with distillation\.updates=0"):
        options_within(experiment(*LEARNING, "distillation.updates=0"), 60)
