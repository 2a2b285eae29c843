"""What the project is for. A task is a list of stages, made from an experiment, with checks of its own."""

from dfkd.tasks.class_incremental import CLASS_INCREMENTAL
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.recovery import RECOVERY
from dfkd.tasks.task import Plan, Task
from dfkd.tasks.transfer import TRANSFER

TASKS = {task.name: task for task in (RECOVERY, TRANSFER, CLASS_INCREMENTAL)}

__all__ = ["CLASS_INCREMENTAL", "RECOVERY", "TASKS", "TRANSFER", "Experiment", "Plan", "Task"]
