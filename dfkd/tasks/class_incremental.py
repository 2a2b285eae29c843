"""Class-incremental learning, teacher -> dream -> learn -> evaluate: a network that knows old classes learns new ones.

It may do so in several steps: each begins with the network that the step before made, and dreams of that. Images of old
classes are reachable in `teacher`, `controls` and `evaluate` only: to train it, for the joint-training control, and to
score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from dfkd.errors import ConfigError, require
from dfkd.incremental import IncrementalRecipe
from dfkd.models.classifier import classifier_of, extend_classifier, features_and_logits
from dfkd.models.freezing import frozen
from dfkd.models.input_spec import InputSpec, check_model
from dfkd.models.probe import Network
from dfkd.real_data import Purpose
from dfkd.stages import Source, Stage
from dfkd.stages.evaluation import Scoring, score_classes
from dfkd.stages.images import Images, ImagesInARow
from dfkd.stages.new_classes import Extended, NewClasses, learn_new_classes, tune_classifier
from dfkd.tasks.beginning import comparison, dream_stage, quality_stage, teacher_scores, teacher_stage
from dfkd.tasks.experiment import Experiment
from dfkd.tasks.task import Plan, Task

CONTROLS = ("fine_tuning", "learning_without_forgetting", "learning_without_forgetting_mc", "joint")


def check(e: Experiment, teacher: nn.Module) -> None:
    """Raise what can be known to be wrong with the new classes (`DfkdError`)."""
    recipe, spec = e.incremental, e.spec
    require(recipe.new_classes > 0, "incremental.new_classes", recipe.new_classes, "2 or more")
    for option, value in (("streaming.every", e.streaming.every), ("rounds", e.rounds - 1)):
        require(not value, option, value, "left alone with task=class_incremental")
    weight = e.inversion.competition_weight
    require(not weight, "inversion.competition_weight", weight, "0 with task=class_incremental")
    if not e.new_data:
        raise ConfigError("task=class_incremental learns from images of new classes: choose data@new_data=NAME.")
    if e.data is not None:
        for images in e.new_data:
            e.data.require_disjoint(images)
    classifier, _ = classifier_of(teacher, spec.num_classes, spec.image_shape)
    if recipe.rotation_weight and spec.image_shape[1] != spec.image_shape[2]:
        require(False, "incremental.rotation_weight", recipe.rotation_weight, "0 for images that are not square")
    if recipe.losses == "balanced":
        with torch.no_grad(), frozen(teacher):
            features_and_logits(teacher, classifier, torch.zeros(2, *spec.image_shape))
    extend_classifier(teacher, spec.num_classes, recipe.new_classes, spec.image_shape)
    check_model(teacher, replace(spec, num_classes=spec.num_classes + recipe.new_classes))


@dataclass(frozen=True)
class Step:
    """One of the steps in which classes are learned.

    Attributes:
        e: the experiment.
        number: of the step, from 1.
    """

    e: Experiment
    number: int

    @property
    def tasks(self) -> tuple[int, ...]:
        """Numbers of the classes that are known after this step and were learned together."""
        return (self.e.spec.num_classes, *[self.e.incremental.new_classes] * self.number)

    @property
    def known(self) -> InputSpec:
        """The network's input and classes before this step."""
        return replace(self.e.spec, num_classes=sum(self.tasks[:-1]))

    @property
    def network(self) -> Network:
        """The architecture before this step."""
        e = self.e
        if self.number == 1:
            return e.network
        extended = Extended(e.network, e.spec.num_classes, self.known.num_classes - e.spec.num_classes)
        return Network(extended, e.network.image_shape)

    @property
    def extended(self) -> Network:
        """The architecture after it."""
        return Step(self.e, self.number + 1).network

    def images(self, purpose: Purpose, first: int, last: int) -> ImagesInARow:
        """The real images of the tasks number `first` to `last`, of which 0 is the teacher's.

        Those of the teacher are left out where there are none.
        """
        sets = [self.e.data, *self.e.new_data]
        parts = [
            Images(data, purpose, replace(self.e.spec, num_classes=self.tasks[task]))
            for task, data in enumerate(sets)
            if first <= task <= last and data is not None
        ]
        skipped = max(first, 1 if self.e.data is None else 0)
        return ImagesInARow(tuple(parts), sum(self.tasks[:skipped]))

    def name(self, of: str) -> str:
        """The name of a stage of this step: that of the last step's has no number."""
        return of if self.number == self.e.incremental.steps else f"{of}_{self.number}"


# What the learning of a step is reminded of the old classes by, from the step and the network before it.
Memory = Callable[[Step, Stage], dict[str, Stage | Source]]


def plan(e: Experiment) -> Plan:
    """The stages of an experiment by part."""
    teacher = teacher_stage(e)
    scored = teacher_scores(e, teacher)
    dreams = dream_stage(e, teacher)
    steps = [Step(e, number + 1) for number in range(e.incremental.steps)]

    def dreamt(step: Step, before: Stage) -> dict[str, Stage | Source]:
        if step.number == 1:
            return {"dreams": dreams}
        so_far = replace(e, network=step.network, spec=step.known)
        return {"dreams": replace(dream_stage(so_far, before), name=f"dream_{step.number}")}

    learned = _in_steps(steps, "learn", teacher, e.incremental, dreamt)
    controls = _controls(e, steps, teacher)
    scores = []
    for step in reversed(steps):
        students = {name: each[step.number - 1][-1] for name, each in {"learn": learned, **controls}.items()}
        inputs: dict[str, Stage | Source] = {
            "teacher_network": e.network, "student_network": step.extended, "dreams": dreams, "teacher": teacher,
            **students, "images": step.images(Purpose.EVALUATION, 0, step.number),
        }  # fmt: skip
        recipe = Scoring(spec=e.spec, students=tuple(students), tasks=step.tasks)
        scores.append(Stage(step.name("evaluate"), "scores", recipe, score_classes, inputs))
    return {
        "teacher": [teacher, *scored],
        "dream": [dreams, quality_stage(e, teacher, dreams)],
        "learn": [stage for each in learned for stage in each],
        "controls": [stage for control in controls.values() for each in control for stage in each],
        "evaluate": [*scores, *comparison(e, teacher, dreams)],
    }


def _controls(e: Experiment, steps: list[Step], teacher: Stage) -> dict[str, list[list[Stage]]]:
    one_softmax = replace(  # whatever `learn` has
        e.incremental, losses="deepinversion", classifier_share=0.0, logit_weight=0.0, rotation_weight=0.0
    )
    alone = replace(one_softmax, dream_weight=0.0)
    recipes = {
        "fine_tuning": replace(alone, old_weight=0.0),
        "learning_without_forgetting": replace(alone, losses="separate_heads"),
        "learning_without_forgetting_mc": alone,
    }

    def nothing(step: Step, before: Stage) -> dict[str, Stage | Source]:
        return {}

    def real(step: Step, before: Stage) -> dict[str, Stage | Source]:
        return {"old": step.images(Purpose.REAL_DATA_CONTROL, 0, step.number - 1)}

    chosen = {
        name: _in_steps(steps, name, teacher, recipe, nothing) for name, recipe in recipes.items() if name in e.controls
    }
    if "joint" in e.controls and e.has_training_images:
        chosen["joint"] = _in_steps(steps, "joint", teacher, one_softmax, real)
    return chosen


def _in_steps(
    steps: list[Step], name: str, teacher: Stage, incremental: IncrementalRecipe, memory: Memory
) -> list[list[Stage]]:
    """The stages of each step, its network the last of them; what a step is reminded by is made before it."""
    found: list[list[Stage]] = []
    before = teacher
    for step in steps:
        reminded = memory(step, before)
        dreams = [stage for stage in reminded.values() if isinstance(stage, Stage) and step.number > 1]
        learned = _learn(step, name, before, incremental, reminded)
        found.append([*dreams, *learned])
        before = learned[-1]
    return found


def _learn(
    step: Step, name: str, before: Stage, incremental: IncrementalRecipe, memory: dict[str, Stage | Source]
) -> list[Stage]:
    """One step's learning from the network `before` it; where the classifier is trained alone at its end, in two."""
    e, last = step.e, incremental.classifier_updates
    whole = replace(incremental, steps=1, updates=incremental.updates - last, classifier_share=0.0)
    recipe = NewClasses(incremental=whole, spec=step.known, seed=e.seed, precision=e.options.precision)
    images = {"new": step.images(Purpose.NEW_CLASSES, step.number, step.number), **memory}
    aspects = ("inference", "training", "initialisation")
    inputs = {"network": replace(step.network, aspects=aspects), "teacher": before, **images}
    own = step.name(name)
    if not last:
        return [Stage(own, "incremental", recipe, learn_new_classes, inputs)]
    backbone = Stage(f"{own}_backbone", "incremental", recipe, learn_new_classes, inputs)
    recipe = replace(recipe, incremental=replace(whole, updates=last))
    tuned = Stage(
        own, "incremental", recipe, tune_classifier, {"extended": step.extended, "backbone": backbone, **images}
    )
    return [backbone, tuned]


def facts(e: Experiment) -> dict[str, object]:
    """How many classes there are, and in how many steps the new ones are learned."""
    recipe = e.incremental
    return {"classes": {"old": e.spec.num_classes, "new": recipe.steps * recipe.new_classes}, "steps": recipe.steps}


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
