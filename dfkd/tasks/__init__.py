"""What the project is for, as pipelines of stages: a teacher is dreamt of, and a student learns from the dreams."""

from dfkd.tasks.class_incremental import ClassIncremental
from dfkd.tasks.distillation import DistillationPipeline
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.pipeline import Pipeline
from dfkd.tasks.recovery import Recovery
from dfkd.tasks.transfer import Transfer

TASKS: dict[str, type[Pipeline]] = {
    "recovery": Recovery,
    "transfer": Transfer,
    "class_incremental": ClassIncremental,
}

__all__ = ["TASKS", "ClassIncremental", "DistillationPipeline", "Experiment", "Pipeline", "Recovery", "Transfer"]
