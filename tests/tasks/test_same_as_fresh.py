"""The property that the store stands for: whatever ran in it before, a run's result is that of a fresh store."""

from __future__ import annotations

import random

import pytest
from experiments import CLASS_INCREMENTAL, LEARNING, TRANSFER, content, experiment, run

from dfkd.tasks import TASKS

BOTH = {
    "seed": ("0", "1"),
    "trainer.precision": ("32-true", "bf16-mixed"),
    "inversion.iterations": ("2", "3"),
    "input.std": ("[0.376]", "[0.5]"),
    "model.width": ("4", "6"),
}
LEARNED = {
    "controls": ("[]", "[noise]", "[real]", "[noise,real]"),
    "distillation.patience": ("null", "1"),
    "streaming.every": ("0", "3"),
    "inversion.competition_weight": ("0", "10"),
    "distillation.feature_weight": ("0", "1"),
    "distillation.batch_norm": ("live", "aligned"),
}
VARIED = {
    "recovery": BOTH | LEARNED | {
        "rounds": ("1", "2"),
        "pruning.amount": ("0.84", "0.96"),
        "distillation.gradual": ("0", "0.5"),
        "pruning": ("magnitude", "layer_magnitude", "random", "filters_taylor"),
    },
    "transfer": BOTH | LEARNED,
    "class_incremental": BOTH | {
        "controls": ("[]", "[fine_tuning]", "[joint]"),
        "incremental.losses": ("balanced", "separate_heads", "deepinversion"),
        "incremental.dream_weight": ("0", "1"),
    },
}  # fmt: skip
FIXED = {"recovery": LEARNING, "transfer": TRANSFER, "class_incremental": CLASS_INCREMENTAL}


def pair(number: int) -> tuple[tuple[str, dict[str, str]], tuple[str, dict[str, str]], str]:
    """Two random experiments that differ in one to three options, or in their task, and where the first one stops."""
    dice = random.Random(number)
    both = [("recovery", "recovery")] * 5 + [("transfer", "transfer"), ("class_incremental", "class_incremental")]
    tasks = dice.choice([*both, ("transfer", "recovery")])
    first = {option: dice.choice(values) for option, values in VARIED[tasks[0]].items()}
    second = {option: first.get(option, values[0]) for option, values in VARIED[tasks[1]].items()}
    for option in dice.sample(sorted(second), dice.randint(1, 3)):
        second[option] = dice.choice(VARIED[tasks[1]][option])
    return (tasks[0], first), (tasks[1], second), dice.choice([*TASKS[tasks[0]].parts, "evaluate", "evaluate"])


def made(task: str, options: dict[str, str]):
    chosen = dict(options)
    if chosen.get("streaming.every") == "0":
        chosen["inversion.competition_weight"] = "0"  # refused: there would be no student to compete with
    if chosen.get("pruning") == "filters_taylor":
        chosen |= {"pruning.amount": "0.3"}
    group = [f"pruning={chosen.pop('pruning')}"] if "pruning" in chosen else []
    width = chosen.pop("model.width")
    overrides = (f"{option}={value}" for option, value in chosen.items())
    return experiment(*FIXED[task], *group, f"model.width={width}", *overrides)


def check(number: int, tmp_path) -> None:
    first, second, last = pair(number)
    run(made(*first), tmp_path / "shared", last)
    after = run(made(*second), tmp_path / "shared")
    fresh = run(made(*second), tmp_path / "fresh")
    assert not fresh.products["teacher"].reused
    assert content(after) == content(fresh), f"{second} after {first}"


@pytest.mark.parametrize("number", range(12))
def test_a_result_does_not_depend_on_what_ran_before_in_the_store(number, tmp_path):
    check(number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12, 112))
def test_a_hundred_results_do_not_depend_on_what_ran_before_in_the_store(number, tmp_path):
    check(number, tmp_path)


def test_pruned_at_once_is_not_taken_for_pruned_in_rounds(tmp_path):
    """Two rounds to 96 % prune to 84 % on their way: another student than one that is pruned to 84 % at once."""
    run(experiment(*LEARNING, "rounds=2", "pruning.amount=0.96", "controls=[]"), tmp_path / "shared")
    at_once = experiment(*LEARNING, "pruning.amount=0.84", "controls=[]")
    after, fresh = (run(at_once, tmp_path / root) for root in ("shared", "fresh"))
    assert not after.products["recover"].reused
    assert content(after) == content(fresh)
