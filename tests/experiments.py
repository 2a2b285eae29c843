"""Experiments at the smallest size that still goes through every stage, composed from the real configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from dfkd import config
from dfkd.experiment_config import make_experiment
from dfkd.stages import Runner
from dfkd.store import Store
from dfkd.tasks import TASKS, Experiment, Plan
from dfkd.tasks.task import run_stages

SMALLEST = [
    "name=test", "experiment=demo", "model.depth=8", "+model.width=4", "teacher.training.updates=4",
    "teacher.training.batch_size=32", "inversion.num_images=16", "inversion.num_held_out=8", "inversion.batch_size=8",
    "inversion.iterations=2", "inversion.restarts=1", "trainer.accelerator=cpu", "trainer.checkpoint_updates=2",
]  # fmt: skip
LEARNING = ["distillation.updates=6", "distillation.batch_size=8"]
TRANSFER = [*LEARNING, "task=transfer", "distillation=transfer"]
CLASS_INCREMENTAL = [
    "task=class_incremental", "data@new_data=digits", "data.only=[0,1,2,3,4]", "new_data.only=[5,6,7,8,9]",
    "input.num_classes=5", "incremental.new_classes=5", "incremental.updates=3", "incremental.batch_size=8",
]  # fmt: skip


def experiment(*options: str) -> Experiment:
    """The smallest experiment with further options."""
    config.register()
    with initialize_config_module("dfkd.conf", version_base="1.3"):
        return make_experiment(compose("config", overrides=[*SMALLEST, *options]))


def run(made: Experiment, root: Path, last: str = "evaluate", plan: Plan | None = None) -> Runner:
    """Run an experiment's stages, or those of a plan, in the store `root`."""
    task = TASKS[made.task]
    runner = Runner(Store(root), made.options)
    run_stages(task.plan(made) if plan is None else plan, runner, last)
    return runner


def content(runner: Runner) -> dict[str, Any]:
    """All that a run made, bit by bit, but for how long it took."""
    found: dict[str, Any] = {}
    for name, product in runner.products.items():
        found[name] = {key: value for key, value in product.notes.items() if not key.startswith("seconds")}
        for path in sorted(product.directory.rglob("*.safetensors")):
            found[f"{name}/{path.relative_to(product.directory)}"] = path.read_bytes()
    return found
