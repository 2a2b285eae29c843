"""All that determines a run's result, and what can be known to be wrong with it before the work begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError, DfkdError
from dfkd.evaluation.judging import Judge
from dfkd.incremental import IncrementalRecipe
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec, check_model
from dfkd.models.weights import load_teacher_weights, start_from
from dfkd.pruning.method import PruningMethod
from dfkd.real_data import RealImages
from dfkd.streaming import StreamingRecipe
from dfkd.training.fit import TrainerOptions
from dfkd.training.teacher import TeacherRecipe


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's result, as plain objects.

    Attributes:
        name: for people.
        task: one of `dfkd.tasks.TASKS`.
        seed: of everything random.
        spec: the teacher's input and classes.
        build_model: makes the network with random weights.
        model_recipe: what `build_model` makes, as plain JSON.
        build_student: makes the student's network with random weights; in recovery, the teacher's.
        student_recipe: what `build_student` makes, as plain JSON.
        weights: the teacher's weights: a file, `torchvision:NAME`, or None to train it.
        training: how to train the teacher, where it has no weights.
        pruning: in recovery, what makes the student out of a copy of the teacher.
        rounds: of pruning and recovery. With more than one, the pruning's amount rises over the rounds; each recovery
            continues from the last one's student.
        inversion: how to dream; its `competition_weight` is for the dreams that are streamed.
        distillation: how the student learns.
        streaming: how the bank of dreams grows while it does.
        controls: which of the task's controls to train beside the student.
        incremental: in class-incremental learning, how the new classes are learned.
        data: the real images, or None.
        new_data: in class-incremental learning, the real images of the new classes.
        judge: who judges the dreams, beside the teacher.
        options: where and how precisely to compute.
        choices: names of the configuration's choices by group, for tables.
    """

    name: str
    task: str
    seed: int
    spec: InputSpec
    build_model: Callable[[], nn.Module]
    model_recipe: dict[str, Any]
    build_student: Callable[[], nn.Module]
    student_recipe: dict[str, Any]
    weights: str | None
    training: TeacherRecipe
    pruning: PruningMethod
    inversion: InversionRecipe
    distillation: DistillationRecipe
    streaming: StreamingRecipe = field(default_factory=StreamingRecipe)
    rounds: int = 1
    controls: tuple[str, ...] = ()
    incremental: IncrementalRecipe = field(default_factory=IncrementalRecipe)
    data: RealImages | None = None
    new_data: RealImages | None = None
    judge: Judge = field(default_factory=Judge)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def real_images(self) -> RealImages:
        """The real images (`ConfigError` where there are none)."""
        if self.data is None:
            raise ConfigError("data=none: this step needs real images.")
        return self.data

    @property
    def first_inversion(self) -> InversionRecipe:
        """How to make the dreams that are made before there is a student to compete with."""
        return replace(self.inversion, competition_weight=0.0)

    @property
    def num_images(self) -> int:
        """Dreams that train the student, those that are streamed among them."""
        streamed = self.streaming.new_batches(self.distillation.updates)
        return self.inversion.num_images + streamed * self.inversion.batch_size

    def check(self) -> nn.Module:
        """Raise now what would otherwise be raised after the long work has begun (`DfkdError`).

        Returns:
            A network of the teacher's architecture, for what a task has to check itself.
        """
        model = self.build_model()
        self._check_inversion(model)
        if self.weights is not None:
            load_teacher_weights(model, self.weights, self.model_recipe)
        elif self.data is None:
            raise ConfigError(
                "teacher.weights is null and data=none: there is neither a trained teacher nor data to train one on. "
                "Give teacher.weights=FILE, or a data group."
            )
        elif self.training.start is not None:
            start_from(model, self.training.start, self.model_recipe, self.spec.num_classes)
        if self.distillation.batch_size > self.inversion.num_images:
            raise ConfigError(
                f"distillation.batch_size must be at most inversion.num_images ({self.inversion.num_images}), got "
                f"{self.distillation.batch_size}."
            )
        other = self.judge.network()
        if other is not None:
            check_model(other, self.spec)
        if self.judge.extractor is not None and self.data is None:
            raise ConfigError(
                f"judge.extractor={self.judge.extractor} compares dreams with real test images, but data=none. "
                "Set it to null, or choose a data group."
            )
        if self.distillation.patience is not None and not self.inversion.num_held_out:
            raise ConfigError(
                f"inversion.num_held_out must be 1 or more with distillation.patience={self.distillation.patience}, "
                "got 0: held-out dreams tell when to stop."
            )
        if self.data is None and not self.inversion.num_held_out:
            raise ConfigError(
                "inversion.num_held_out must be 1 or more with data=none, got 0: held-out dreams are all that can "
                "judge the student then."
            )
        return model

    def _check_inversion(self, model: nn.Module) -> None:
        recipe = self.inversion
        recipe.weights_of(list(require_batch_norm(model)))
        check_model(model, self.spec)
        if recipe.half_resolution_iterations:
            channels, height, width = self.spec.image_shape
            try:
                check_model(model, replace(self.spec, image_shape=(channels, height // 2, width // 2)))
            except DfkdError as error:
                raise ConfigError(
                    f"inversion.half_resolution_iterations must be 0 for this network, got "
                    f"{recipe.half_resolution_iterations}: it does not work at half its input size. {error}"
                ) from error
        if recipe.competition_weight and not self.streaming.every:
            raise ConfigError(
                f"inversion.competition_weight is {recipe.competition_weight}, but all dreams are made before there is "
                "a student to compete with. Set it to 0, or stream dreams with streaming.every=K."
            )
