"""A stage as a value: its key is that of its recipe and inputs, and its function reads nothing else."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
from experiments import CLASS_INCREMENTAL, LEARNING, TRANSFER, experiment, run

from dfkd.stages import Recipe, Runner, Stage
from dfkd.store import Store
from dfkd.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Counting(Recipe):
    """A recipe for these tests."""

    start: int = 0
    option: int | None = None


@dataclass(frozen=True)
class Text:
    """A source for these tests."""

    text: str

    def identity(self) -> str:
        return self.text


def count(recipe, inputs, workplace):
    before = inputs["before"].notes["count"] if "before" in inputs else recipe.start
    return {"count": before + 1, "read": inputs["text"].text if "text" in inputs else None}


def test_the_key_is_that_of_the_recipe_and_the_inputs_and_of_nothing_else():
    def identity(name="a", kind="counts", text="t", **options):
        return Stage(name, kind, Counting(**options), count, {"text": Text(text)}).identity()

    same = identity()
    assert identity(name="b") == same and identity(option=None) == same
    others = [identity(kind="other"), identity(text="u"), identity(start=1), identity(seed=1), identity(option=0)]
    others.append(identity(precision="bf16-mixed"))
    assert len({same, *others}) == 1 + len(others)
    first = Stage("a", "counts", Counting(), count)
    later = Stage("b", "counts", Counting(), count, {"before": first})
    moved = Stage("b", "counts", Counting(), count, {"before": replace(first, recipe=Counting(start=5))})
    assert len({first.identity(), later.identity(), moved.identity()}) == 3


def test_a_stage_is_made_after_those_it_is_made_from_and_once(tmp_path):
    first = Stage("first", "counts", Counting(start=3), count, {"text": Text("t")})
    second = Stage("second", "counts", Counting(), count, {"before": first})
    runner = Runner(Store(tmp_path))
    assert runner.run(second).notes == {"count": 5, "read": None}
    assert runner.products["first"].notes == {"count": 4, "read": "t"}
    again = Runner(Store(tmp_path))
    again.run(second)
    assert all(product.reused for product in again.products.values())


EXPERIMENTS = {
    "recovery": [*LEARNING, "distillation.patience=1", "streaming.every=3"],
    "recovery in rounds": [*LEARNING, "rounds=2", "pruning=filters_taylor", "pruning.amount=0.3"],
    "transfer": [*TRANSFER],
    "class_incremental": [*CLASS_INCREMENTAL],
}


def forget(value: object) -> None:
    """Take every attribute out of an object, whatever it holds: whoever reads one afterwards fails."""
    assert is_dataclass(value)
    for each in fields(value):
        object.__delattr__(value, each.name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_stage_reads_what_it_declares_and_nothing_else(name, tmp_path):
    made = experiment(*EXPERIMENTS[name])
    options, plan = made.options, TASKS[made.task].plan(made)
    for stage in (stage for stages in plan.values() for stage in stages):
        assert stage.make.__closure__ is None and stage.make.__qualname__ in vars(inspect.getmodule(stage.make))
        assert is_dataclass(stage.recipe) and isinstance(stage.recipe, Recipe)
    bare = experiment(*EXPERIMENTS[name])
    forget(made)  # the plan was made from it; from here on nobody can ask it for anything
    with pytest.raises(AttributeError):
        _ = made.seed
    object.__setattr__(made, "options", options)
    object.__setattr__(made, "task", bare.task)
    runner = run(made, tmp_path, plan=plan)
    assert set(runner.products) == {stage.name for stages in plan.values() for stage in stages}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_names_in_a_plan_are_its_stages_own(name):
    made = experiment(*EXPERIMENTS[name])
    task = TASKS[made.task]
    plan = task.plan(made)
    names = [stage.name for stages in plan.values() for stage in stages]
    assert len(set(names)) == len(names) and tuple(plan) == task.parts
