"""Class-incremental learning, teacher -> dream -> learn -> evaluate: a network that knows old classes learns new ones.

Images of old classes are reachable in `teacher`, `controls` and `evaluate` only: to train it, for the joint-training
control, and to score.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dfkd.errors import ConfigError, require
from dfkd.incremental import IncrementalRecipe
from dfkd.models.classifier import extend_classifier
from dfkd.models.input_spec import check_model
from dfkd.models.probe import Network
from dfkd.real_data import Purpose
from dfkd.stages import Source, Stage
from dfkd.stages.evaluation import Scoring, score_classes
from dfkd.stages.new_classes import Extended, NewClasses, learn_new_classes
from dfkd.tasks.beginning import comparison, dream_stage, quality_stage, teacher_scores, teacher_stage
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.task import Plan, Task

CONTROLS = ("fine_tuning", "learning_without_forgetting", "learning_without_forgetting_mc", "joint")


def check(e: Experiment, teacher: nn.Module) -> None:
    """Raise what can be known to be wrong with the new classes (`DfkdError`)."""
    require(e.incremental.new_classes > 0, "incremental.new_classes", e.incremental.new_classes, "2 or more")
    for option, value in (("streaming.every", e.streaming.every), ("rounds", e.rounds - 1)):
        require(not value, option, value, "left alone with task=class_incremental")
    weight = e.inversion.competition_weight
    require(not weight, "inversion.competition_weight", weight, "0 with task=class_incremental")
    if e.new_data is None:
        raise ConfigError("task=class_incremental learns from images of new classes: choose data@new_data=NAME.")
    if e.data is not None:
        e.data.require_disjoint(e.new_data)
    extend_classifier(teacher, e.spec.num_classes, e.incremental.new_classes, e.spec.image_shape)
    check_model(teacher, replace(e.spec, num_classes=e.spec.num_classes + e.incremental.new_classes))


def plan(e: Experiment) -> Plan:
    """The stages of an experiment by part."""
    teacher = teacher_stage(e)
    scored = teacher_scores(e, teacher)
    dreams = dream_stage(e, teacher)
    learned = _learn(e, "learn", teacher, e.incremental, {"dreams": dreams})
    controls = _controls(e, teacher)
    students = {"learn": learned, **controls}
    recipe = Scoring(spec=e.spec, students=tuple(students), new_classes=e.incremental.new_classes)
    extended = Extended(e.network, e.spec.num_classes, e.incremental.new_classes)
    inputs: dict[str, Stage | Source] = {
        "teacher_network": e.network, "student_network": Network(extended, e.network.image_shape), "dreams": dreams,
        "teacher": teacher, **students, "new": e.images(Purpose.EVALUATION, new=True),
    }  # fmt: skip
    if e.data is not None:
        inputs["old"] = e.images(Purpose.EVALUATION)
    scores = Stage("evaluate", "scores", recipe, score_classes, inputs)
    return {
        "teacher": [teacher, *scored],
        "dream": [dreams, quality_stage(e, teacher, dreams)],
        "learn": [learned],
        "controls": list(controls.values()),
        "evaluate": [scores, *comparison(e, teacher, dreams)],
    }


def _controls(e: Experiment, teacher: Stage) -> dict[str, Stage]:
    one_softmax = replace(e.incremental, separate_heads=False)  # of all controls but one, whatever `learn` has
    alone = replace(one_softmax, dream_weight=0.0)
    recipes = {
        "fine_tuning": replace(alone, old_weight=0.0),
        "learning_without_forgetting": replace(alone, separate_heads=True),
        "learning_without_forgetting_mc": alone,
    }
    chosen = {name: _learn(e, name, teacher, recipe, {}) for name, recipe in recipes.items() if name in e.controls}
    if "joint" in e.controls and e.data is not None:
        chosen["joint"] = _learn(e, "joint", teacher, one_softmax, {"old": e.images(Purpose.REAL_DATA_CONTROL)})
    return chosen


def _learn(
    e: Experiment, name: str, teacher: Stage, incremental: IncrementalRecipe, memory: dict[str, Stage | Source]
) -> Stage:
    recipe = NewClasses(incremental=incremental, spec=e.spec, seed=e.seed, precision=e.options.precision)
    network = replace(e.network, aspects=("inference", "training", "initialisation"))
    new = e.images(Purpose.NEW_CLASSES, new=True)
    return Stage(
        name, "incremental", recipe, learn_new_classes, {"network": network, "teacher": teacher, "new": new, **memory}
    )


def facts(e: Experiment) -> dict[str, object]:
    """How many classes there are."""
    return {"classes": {"old": e.spec.num_classes, "new": e.incremental.new_classes}}


CLASS_INCREMENTAL = Task(
    name="class_incremental",
    parts=("teacher", "dream", "learn", "controls", "evaluate"),
    controls=CONTROLS,
    ignored=(
        "student", "model@student", "pruning", "quantization", "rounds", "distillation", "streaming",
        "inversion.competition_weight", "inversion.competition_temperature",
    ),
    check=check,
    plan=plan,
    facts=facts,
)  # fmt: skip
