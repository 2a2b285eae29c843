"""`dfkd plan OPTIONS`: what the run with these options would do, how long that takes here and how much memory."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.table import Table

from dfkd import config
from dfkd.budget import options_within
from dfkd.costs import Costs, known_teacher, measured_in_full
from dfkd.experiment_config import checked_experiment, with_options
from dfkd.files import size_text
from dfkd.stages import Stage
from dfkd.stages.dreams import Dreaming
from dfkd.stages.evaluation import Comparison, Quality, Scoring, TeacherScoring
from dfkd.stages.learning import Learning, LearningFromStream
from dfkd.stages.new_classes import NewClasses
from dfkd.stages.teacher import Trained
from dfkd.store import Store
from dfkd.tasks import Experiment, Plan
from dfkd.training.progress import duration

READ = 256  # real images whose reading is timed
LOOKS = 4  # of dream_quality at each dream, and of a re-estimation of batch norm: forwards of teacher and student


@dataclass(frozen=True)
class Estimate:
    """What a stage will do, and for how many seconds; 0 with `found` where the store has its product."""

    part: str
    stage: str
    does: str
    seconds: float
    found: bool = False


def estimates(plan: Plan, store: Store, costs: Costs, last: str) -> list[Estimate]:
    """An estimate for each stage of a plan up to the part `last`."""
    found = []
    for part, stages in plan.items():
        for stage in stages:
            if store.find(stage.kind, stage.determined_by) is not None:
                found.append(Estimate(part, stage.name, "found in the store", 0.0, found=True))
            else:
                does, seconds = _work(stage, costs)
                found.append(Estimate(part, stage.name, does, seconds))
        if part == last:
            break
    return found


def _work(stage: Stage, costs: Costs) -> tuple[str, float]:
    recipe: Any = stage.recipe
    match recipe:
        case Trained():
            return f"{recipe.training.updates} updates", recipe.training.updates * costs.teacher_update
        case Dreaming():
            inversion = recipe.inversion
            batches = sum(-(-count // inversion.batch_size) for count in (inversion.num_images, inversion.num_held_out))
            does = f"{batches} batches of {inversion.batch_size} images, {costs.iterations} iterations each"
            return does, batches * costs.batch
        case Learning():
            updates = recipe.distillation.updates
            does, seconds = f"{updates} updates", updates * costs.update
            if recipe.distillation.reestimate_batch_norm:
                seconds += LOOKS * costs.image * _images(stage)
            if isinstance(recipe, LearningFromStream):
                batches = recipe.streaming.new_batches(updates)
                does += f", {batches} batches of dreams meanwhile"
                seconds += batches * costs.batch
            return does, seconds
        case NewClasses():
            updates = recipe.incremental.updates
            share = 1.0 if {"dreams", "old"} & stage.inputs.keys() else 0.5  # of an update's images
            return f"{updates} updates", share * updates * costs.update
        case TeacherScoring() | Comparison():
            tests, reading = _tests(stage)
            return f"{tests} test images", tests * (costs.image + reading)
        case Scoring():
            networks = len(recipe.students)
            tests, reading = _tests(stage)
            return f"{networks} networks on {tests} images", networks * tests * (costs.image + reading)
        case Quality():
            return "looks at the dreams", LOOKS * costs.image * _images(stage)
    return "", 0.0


def _images(stage: Stage) -> int:
    """How many images a stage is given."""
    if hasattr(stage.recipe, "num_images"):
        return int(stage.recipe.num_images)
    dreams = stage.inputs.get("dreams")
    return dreams.recipe.inversion.num_images if isinstance(dreams, Stage) else 0  # type: ignore[attr-defined]


def _tests(stage: Stage) -> tuple[int, float]:
    """How many images networks are scored on, and the seconds that reading one takes."""
    dreams = stage.inputs.get("dreams")
    held_out = dreams.recipe.inversion.num_held_out if isinstance(dreams, Stage) else 0  # type: ignore[attr-defined]
    if "images" not in stage.inputs:
        return held_out, 0.0
    tests: Any = stage.inputs["images"].open()  # type: ignore[union-attr]
    count = min(READ, len(tests))
    start = time.monotonic()
    for index in range(count):
        tests[index]
    return held_out + len(tests), (time.monotonic() - start) / count


def show(e: Experiment, found: Sequence[Estimate], costs: Costs, teacher_known: bool) -> None:
    """Print the plan as a table, and what it rests on."""
    table = Table(title=f"{e.name}, seed {e.seed}, on {e.options.torch_device()}")
    for column in ("part", "stage", "does"):
        table.add_column(column)
    table.add_column("about", justify="right")
    for row in found:
        table.add_row(row.part, row.stage, row.does, "" if row.found or not row.does else duration(row.seconds))
    table.add_row("all", "", "", duration(sum(row.seconds for row in found)), style="bold")
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    print(
        f"Measured here: a batch of {e.inversion.batch_size} dreams {costs.batch:.3g} s, an update {costs.update:.3g} "
        f"s. Memory: about {size_text(costs.memory)}."
    )
    if not teacher_known:
        print("The teacher is still to be trained: how often dreams are restarted can be told once it is there.")


def planned(cfg: DictConfig) -> tuple[Experiment, list[Estimate], Costs, bool]:
    """The experiment of a configuration, its stages' estimates, what they rest on, and whether the teacher is known."""
    store = Store(Path(cfg.store))
    e, plan = checked_experiment(cfg, None)
    if cfg.seconds is not None:
        within = options_within(e, cfg.seconds, known_teacher(e, plan, store))
        e, plan = checked_experiment(with_options(cfg, within), None)
    teacher = known_teacher(e, plan, store)
    costs = measured_in_full(e, teacher)
    return e, estimates(plan, store, costs, cfg.stage), costs, teacher is not None


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd plan`."""
    parser = argparse.ArgumentParser(
        prog="dfkd plan", description="What the run with these options would do here, how long and in how much memory."
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="as for the run (dfkd --help)")
    options = parser.parse_args(arguments).options
    config.refuse_renamed(options)
    with initialize_config_module("dfkd.conf", version_base="1.3"):
        cfg = compose("config", overrides=options, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    show(*planned(cfg))
