"""What recovery and transfer share: a student that learns from its teacher, its controls and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError, require
from dfkd.pruning.method import PruningMethod
from dfkd.quantization.recipe import QuantizationRecipe
from dfkd.real_data import Purpose
from dfkd.stages import Source, Stage
from dfkd.stages.evaluation import Scoring, score_students
from dfkd.stages.learning import (
    Learning,
    LearningFromControl,
    LearningFromPictures,
    LearningFromStream,
    learn_from_dreams,
    learn_from_noise,
    learn_from_pictures,
    learn_from_stream,
)
from dfkd.stages.real_control import learn_from_real_images
from dfkd.tasks.experiment import Experiment

CONTROLS = ("noise", "procedural", "real")


@dataclass(frozen=True)
class Lesson:
    """What a student is taught on: the function that does it, its recipe's class and own options, and its inputs."""

    make: Callable[..., dict[str, Any]]
    recipe: type[Learning]
    inputs: Mapping[str, Stage | Source]
    options: Mapping[str, Any] = field(default_factory=dict)


def on_dreams(e: Experiment, dreams: Stage) -> Lesson:
    """Dreams, and where they are streamed those that are made meanwhile."""
    if e.streaming.every:
        options = {"streaming": e.streaming, "inversion": e.inversion}
        return Lesson(learn_from_stream, LearningFromStream, {"dreams": dreams}, options)
    return Lesson(learn_from_dreams, Learning, {"dreams": dreams})


def control_lessons(e: Experiment, dreams: Stage) -> dict[str, Lesson]:
    """As many images that are no dreams, by control. Held-out dreams are looked at only where they have a say."""
    inputs = {"dreams": dreams} if e.distillation.patience is not None else {}
    count = {"num_images": e.num_images}
    lessons = {}
    if "noise" in e.controls:
        lessons["noise"] = Lesson(learn_from_noise, LearningFromControl, inputs, count)
    if "procedural" in e.controls:
        pictures = {**count, "families": tuple(e.inversion.start_families)}
        lessons["procedural"] = Lesson(learn_from_pictures, LearningFromPictures, inputs, pictures)
    if "real" in e.controls and e.has_training_images:
        real = inputs | {"images": e.images(Purpose.REAL_DATA_CONTROL)}
        lessons["real"] = Lesson(learn_from_real_images, LearningFromControl, real, count)
    return lessons


def learning_stage(
    e: Experiment,
    name: str,
    pair: tuple[Stage, Stage],
    lesson: Lesson,
    distillation: DistillationRecipe | None = None,
    pruning: PruningMethod | None = None,
    quantization: QuantizationRecipe | None = None,
) -> Stage:
    """The student of `pair`, (teacher, student), taught a lesson; with `pruning` and `quantization`, compressed so."""
    teacher, student = pair
    distillation = distillation or e.distillation
    recipe = lesson.recipe(
        distillation=distillation, spec=e.spec, pruning=pruning, quantization=quantization,
        reestimates_average=distillation.reestimates_average or None,
        seed=e.seed, precision=e.options.precision, **lesson.options,
    )  # fmt: skip
    networks = {
        "teacher_network": replace(e.network, aspects=("inference", "training")),
        "student_network": replace(e.student, aspects=("inference", "training")),
    }
    return Stage(
        name, "recovered", recipe, lesson.make, {**networks, "teacher": teacher, "student": student, **lesson.inputs}
    )


def scores_stage(
    e: Experiment,
    teacher: Stage,
    dreams: Stage,
    students: Mapping[str, Stage],
    scored: Sequence[Stage],
    choice: Stage | None = None,
) -> Stage:
    """The scores of students, by their name in the result, beside `teacher_scores`; one of pruned ones was chosen."""
    recipe = Scoring(spec=e.spec, students=tuple(students), pruned=choice is not None)
    inputs: dict[str, Stage | Source] = {
        "teacher_network": e.network, "student_network": e.student, "teacher": teacher, "dreams": dreams, **students,
        **{stage.name: stage for stage in scored},
    }  # fmt: skip
    if choice is not None:
        inputs["choice"] = choice
    if e.data is not None:
        inputs["images"] = e.images(Purpose.EVALUATION)
    return Stage("evaluate", "scores", recipe, score_students, inputs)


def facts(e: Experiment) -> dict[str, object]:
    """Where the teacher comes from, in words."""
    return {"weights": "trained here" if e.teacher.weights is None else e.teacher.weights.name}


def check_learning(e: Experiment) -> None:
    """Raise what can be known to be wrong with how a student learns (`ConfigError`)."""
    recipe, inversion = e.distillation, e.inversion
    if recipe.batch_size > inversion.num_images:
        raise ConfigError(
            f"distillation.batch_size must be at most inversion.num_images ({inversion.num_images}), got "
            f"{recipe.batch_size}."
        )
    if recipe.patience is not None and not inversion.num_held_out:
        raise ConfigError(
            f"inversion.num_held_out must be 1 or more with distillation.patience={recipe.patience}, got 0: held-out "
            "dreams tell when to stop."
        )
    if e.data is None and not inversion.num_held_out:
        raise ConfigError(
            "inversion.num_held_out must be 1 or more with data=none, got 0: agreement on held-out dreams is all that "
            "can be known of the student then."
        )
    if inversion.competition_weight and not e.streaming.every:
        raise ConfigError(
            f"inversion.competition_weight is {inversion.competition_weight}, but all dreams are made before there is "
            "a student to compete with. Set it to 0, or stream dreams with streaming.every=K."
        )
    if e.streaming.every:
        allowed = "0 with streaming.every above 0: a streamed batch stands alone"
        require(not inversion.feature_history, "inversion.feature_history", inversion.feature_history, allowed)
