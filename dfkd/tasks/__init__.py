"""What the project is for, as pipelines of stages: a teacher is dreamt of, and a student learns from the dreams."""

from dfkd.tasks.experiment import CONTROLS, Experiment
from dfkd.tasks.recovery import STAGES, Recovery

__all__ = ["CONTROLS", "STAGES", "Experiment", "Recovery"]
