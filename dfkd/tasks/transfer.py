"""Knowledge transfer, teacher -> dream -> student -> transfer -> evaluate: a network with random weights is taught."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from dfkd.distillation.batch_norm import aligned_batch_norm
from dfkd.distillation.losses import matched_features
from dfkd.errors import ConfigError, require
from dfkd.models.input_spec import check_model
from dfkd.stages import Stage
from dfkd.stages.pruning import Fresh, initialise
from dfkd.tasks.beginning import comparison, dream_stage, quality_stage, teacher_scores, teacher_stage
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.students import (
    CONTROLS,
    check_learning,
    control_lessons,
    facts,
    learning_stage,
    on_dreams,
    scores_stage,
)
from dfkd.tasks.task import Plan, Task


def check(e: Experiment, teacher: nn.Module) -> None:
    """Raise what can be known to be wrong with the student and how it learns (`DfkdError`)."""
    check_learning(e)
    student = e.student.build()
    check_model(student, e.spec)
    recipe = e.distillation
    require(not recipe.reconstruct, "distillation.reconstruct", recipe.reconstruct, "false with task=transfer")
    if recipe.batch_norm == "aligned":
        with aligned_batch_norm(teacher, student):
            pass  # refuses layers that do not pair
    if recipe.feature_weight:
        try:
            with torch.no_grad(), matched_features(teacher, student):
                for network in (teacher, student):
                    network(torch.randn(2, *e.spec.image_shape))
        except RuntimeError as error:
            raise ConfigError(
                "distillation.feature_weight must be 0 for a student whose layers differ from its teacher's, got "
                f"{recipe.feature_weight}: {error}"
            ) from error


def plan(e: Experiment) -> Plan:
    """The stages of an experiment by part."""
    teacher = teacher_stage(e)
    scored = teacher_scores(e, teacher)
    dreams = dream_stage(e, teacher)
    network = replace(e.student, aspects=("inference", "initialisation"))
    fresh = Stage("student", "student", Fresh(seed=e.seed), initialise, {"network": network})
    taught = learning_stage(e, "transfer", (teacher, fresh), on_dreams(e, dreams))
    lessons = control_lessons(e, dreams)
    controls = {name: learning_stage(e, name, (teacher, fresh), lesson) for name, lesson in lessons.items()}
    scores = scores_stage(e, teacher, dreams, {"student": taught, **controls}, scored)
    return {
        "teacher": [teacher, *scored],
        "dream": [dreams, quality_stage(e, teacher, dreams)],
        "student": [fresh],
        "transfer": [taught],
        "controls": list(controls.values()),
        "evaluate": [scores, *comparison(e, teacher, dreams)],
    }


TRANSFER = Task(
    name="transfer",
    parts=("teacher", "dream", "student", "transfer", "controls", "evaluate"),
    controls=CONTROLS,
    ignored=("pruning", "quantization", "rounds", "distillation.gradual", "incremental", "new_data", "data@new_data"),
    check=check,
    plan=plan,
    facts=facts,
)
