"""What the project is for, as pipelines of stages: a teacher is dreamt of, and a student learns from the dreams."""

from dfkd.tasks.distillation import DistillationPipeline
from dfkd.tasks.experiment import CONTROLS, Experiment
from dfkd.tasks.recovery import Recovery
from dfkd.tasks.transfer import Transfer

TASKS: dict[str, type[DistillationPipeline]] = {"recovery": Recovery, "transfer": Transfer}

__all__ = ["CONTROLS", "TASKS", "DistillationPipeline", "Experiment", "Recovery", "Transfer"]
