"""The main job, teacher -> dream -> prune -> recover -> evaluate: a pruned copy of the teacher comes back on dreams."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.reconstruction import require_teachers_shapes
from dfkd.errors import ConfigError, require
from dfkd.pruning.schedule import cubic_share
from dfkd.quantization import quantize
from dfkd.stages import Source, Stage
from dfkd.stages.choice import Choice, choose
from dfkd.stages.learning import Learning, learn_from_dreams
from dfkd.stages.pruning import Pruning, Quantization, prune, quantize_pruned
from dfkd.tasks.beginning import comparison, dream_stage, quality_stage, teacher_scores, teacher_stage
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.students import (
    CONTROLS,
    Lesson,
    check_learning,
    control_lessons,
    facts,
    learning_stage,
    on_dreams,
    scores_stage,
)
from dfkd.tasks.task import Plan, Task


def check(e: Experiment, teacher: nn.Module) -> None:
    """Raise what can be known to be wrong with the pruning and the recovery (`DfkdError`)."""
    check_learning(e)
    student = copy.deepcopy(teacher)
    e.pruning.apply(student, teacher, lambda: torch.randn(8, *e.spec.image_shape))
    if e.distillation.reconstruct:
        require_teachers_shapes(student, teacher)
    if e.rounds > 1 and e.pruning.amount is None:
        raise ConfigError(
            f"rounds must be 1 with pruning._target_={e.pruning.recipe.get('_target_')}, got {e.rounds}: it has no "
            "amount that could rise from round to round."
        )
    if e.quantization is not None:
        require(e.rounds == 1, "rounds", e.rounds, "1 with quantization: it is done once, with the last pruning")
        quantize(student, e.quantization, torch.randn(8, *e.spec.image_shape))


def plan(e: Experiment) -> Plan:
    """The stages of an experiment by part."""
    teacher = teacher_stage(e)
    scored = teacher_scores(e, teacher)
    dreams = dream_stage(e, teacher)
    pruned = _prune(e, "prune", teacher, teacher, dreams)
    recover = _recover(e, "recover", teacher, pruned, dreams, on_dreams(e, dreams))
    controls = {
        name: _recover(e, name, teacher, pruned, dreams, lesson) for name, lesson in control_lessons(e, dreams).items()
    }
    untouched = _quantize(e, pruned, dreams)
    batch_norm = _batch_norm_alone(e, teacher, untouched, dreams)
    students = {"pruned": untouched, "batchnorm": batch_norm, "distilled": recover[-1]}
    choice = _choose(e, teacher, students)
    students |= {name: stages[-1] for name, stages in controls.items()}
    return {
        "teacher": [teacher, *scored],
        "dream": [dreams, quality_stage(e, teacher, dreams)],
        "prune": [pruned] if untouched is pruned else [pruned, untouched],
        "recover": [*recover, batch_norm, choice],
        "controls": [stage for stages in controls.values() for stage in stages],
        "evaluate": [scores_stage(e, teacher, dreams, students, scored, choice), *comparison(e, teacher, dreams)],
    }


def _prune(
    e: Experiment, name: str, before: Stage, teacher: Stage, dreams: Stage, amount: float | None = None
) -> Stage:
    inputs: dict[str, Stage | Source] = {"network": e.network, "before": before, "teacher": teacher}
    if e.pruning.takes("dreams"):
        inputs["dreams"] = dreams
    return Stage(name, "pruned", Pruning(method=e.pruning, amount=amount), prune, inputs)


def _quantize(e: Experiment, pruned: Stage, dreams: Stage) -> Stage:
    """What was pruned, quantised where that is asked for; it has not learned yet."""
    if e.quantization is None:
        return pruned
    inputs: dict[str, Stage | Source] = {"network": e.network, "pruned": pruned, "dreams": dreams}
    return Stage("quantize", "quantized", Quantization(quantization=e.quantization), quantize_pruned, inputs)


def _recover(e: Experiment, name: str, teacher: Stage, pruned: Stage, dreams: Stage, lesson: Lesson) -> list[Stage]:
    """The recovery `name`, after those of the rounds before it: its last stage is the student."""
    recipe = e.distillation
    if e.rounds == 1 or e.pruning.amount is None:
        gradual = recipe.gradual > 0 and recipe.updates > 0 and not recipe.reconstruct
        if gradual and e.pruning.takes("dreams"):
            lesson = replace(lesson, inputs={**lesson.inputs, "dreams": dreams})
        return [
            learning_stage(e, name, (teacher, pruned), lesson, None, e.pruning if gradual else None, e.quantization)
        ]
    stages, before = [], teacher
    for done in range(1, e.rounds + 1):
        amount = e.pruning.amount * cubic_share(done, e.rounds)
        student = _prune(e, f"{name}_pruned_{done}", before, teacher, dreams, amount)
        before = learning_stage(e, name if done == e.rounds else f"{name}_{done}", (teacher, student), lesson)
        stages += [student, before]
    return stages


def _choose(e: Experiment, teacher: Stage, candidates: dict[str, Stage]) -> Stage:
    """The student that the run is about."""
    networks = {"teacher_network": e.network, "student_network": e.student}
    recipe = Choice(spec=e.spec, candidates=tuple(candidates), seed=e.seed)
    return Stage("choose", "chosen", recipe, choose, {**networks, "teacher": teacher, **candidates})


def _batch_norm_alone(e: Experiment, teacher: Stage, pruned: Stage, dreams: Stage) -> Stage:
    """The student that learns nothing: its batch-norm statistics alone are re-estimated, on dreams."""
    recipe = DistillationRecipe(
        updates=0, gradual=0, batch_size=e.distillation.batch_size, batch_norm=e.distillation.batch_norm
    )
    lesson = Lesson(learn_from_dreams, Learning, {"dreams": dreams})
    return learning_stage(e, "batchnorm", (teacher, pruned), lesson, recipe)


RECOVERY = Task(
    name="recovery",
    parts=("teacher", "dream", "prune", "recover", "controls", "evaluate"),
    controls=CONTROLS,
    ignored=("student", "model@student", "incremental", "new_data", "data@new_data"),
    check=check,
    plan=plan,
    facts=facts,
)
