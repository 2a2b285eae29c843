"""What a run is asked to do, and what can be known to be wrong with it before the work begins."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace

from torch import nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.errors import ConfigError, DfkdError, require
from dfkd.incremental import IncrementalRecipe
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec, check_model
from dfkd.models.probe import Network
from dfkd.pruning.method import PruningMethod
from dfkd.quantization.recipe import QuantizationRecipe
from dfkd.real_data import Purpose, RealImages
from dfkd.stages.images import Images
from dfkd.stages.networks import Weights
from dfkd.streaming import StreamingRecipe
from dfkd.training.fit import TrainerOptions
from dfkd.training.optimizer import OptimizerRecipe
from dfkd.training.processes import require_portable
from dfkd.training.ranks import require_equal_shares, require_whole_batch_norm
from dfkd.training.teacher import TeacherRecipe

EXTRACTORS = ("teacher", "verifier", "inception")


@dataclass(frozen=True)
class Teacher:
    """Where the teacher comes from: its `weights`, or where there are none its `training`, from `start` if given."""

    weights: Weights | None = None
    training: TeacherRecipe = field(default_factory=TeacherRecipe)
    start: Weights | None = None


@dataclass(frozen=True)
class Verifier:
    """Who looks at the dreams, beside the teacher.

    Attributes:
        network: another architecture of the same classes.
        weights: of it, trained separately; None: there is no verifier.
        extractor: whose features tell dreams from real test images (FID, KID, Inception score): one of `EXTRACTORS`;
            None: no real image is looked at.
    """

    network: Network | None = None
    weights: Weights | None = None
    extractor: str | None = None

    def __post_init__(self) -> None:
        allowed = f"one of {EXTRACTORS}, or null"
        require(self.extractor in (*EXTRACTORS, None), "verifier.extractor", self.extractor, allowed)
        if self.extractor == "verifier" and self.weights is None:
            raise ConfigError("verifier.extractor=verifier needs a verifier: give verifier.weights=FILE.")
        if self.extractor == "inception" and importlib.util.find_spec("torch_fidelity") is None:
            raise ConfigError("verifier.extractor=inception needs torch-fidelity: pip install torch-fidelity.")


@dataclass(frozen=True)
class Experiment:
    """What a run is asked to do. Tasks read it to make their stages; no stage does.

    Attributes:
        name: for people.
        task: one of `dfkd.tasks.TASKS`.
        seed: of everything random.
        spec: the teacher's input and classes.
        network: the teacher's architecture.
        student: the student's; in recovery, the teacher's.
        teacher: where the teacher comes from.
        pruning: in recovery, what makes the student out of a copy of the teacher.
        quantization: in recovery, in how many bits that copy computes; None: as the teacher.
        rounds: of pruning and recovery. With more than one, the pruning's amount rises over the rounds; each recovery
            continues from the last one's student.
        inversion: how to dream; its `competition_weight` is for the dreams that are streamed.
        distillation: how the student learns.
        streaming: when new dreams are made while it does.
        controls: which of the task's controls to train beside the student.
        incremental: in class-incremental learning, how the new classes are learned.
        data: the real images, or None.
        new_data: in class-incremental learning, the real images of the new classes, step by step.
        verifier: who looks at the dreams, beside the teacher.
        options: where and how precisely to compute.
        choices: names of the configuration's choices by group, for tables.
    """

    name: str
    task: str
    seed: int
    spec: InputSpec
    network: Network
    student: Network
    teacher: Teacher
    pruning: PruningMethod
    inversion: InversionRecipe
    distillation: DistillationRecipe
    quantization: QuantizationRecipe | None = None
    streaming: StreamingRecipe = field(default_factory=StreamingRecipe)
    rounds: int = 1
    controls: tuple[str, ...] = ()
    incremental: IncrementalRecipe = field(default_factory=IncrementalRecipe)
    data: RealImages | None = None
    new_data: tuple[RealImages, ...] = ()
    verifier: Verifier = field(default_factory=Verifier)
    options: TrainerOptions = field(default_factory=TrainerOptions)
    choices: dict[str, str] = field(default_factory=dict)

    def images(self, purpose: Purpose) -> Images:
        """The real images for a purpose (`ConfigError` where there are none)."""
        if self.data is None:
            raise ConfigError(f"data=none: {purpose} needs real images. Choose a data group.")
        return Images(self.data, purpose, self.spec)

    @property
    def has_training_images(self) -> bool:
        """Whether there are real images to learn from; some people have test images alone, or none."""
        return self.data is not None and self.data.has(Purpose.REAL_DATA_CONTROL)

    @property
    def num_images(self) -> int:
        """Dreams that train the student, those that are streamed among them."""
        streamed = self.streaming.new_batches(self.distillation.updates)
        return self.inversion.num_images + streamed * self.inversion.batch_size

    def check(self) -> nn.Module:
        """Raise now what would otherwise be raised after the long work has begun (`DfkdError`).

        Returns:
            The teacher's network, for what a task has to check itself.
        """
        model = self.network.build()
        check_inversion(model, self.inversion, self.spec)
        self.options.check_ranks()
        self.options.torch_device()
        if self.options.ranks > 1:
            self._check_ranks(model)
        if self.teacher.weights is not None:
            self.teacher.weights.load(model)
        elif self.data is None:
            raise ConfigError(
                "teacher.weights is null and data=none: there is neither a trained teacher nor data to train one on. "
                "Give teacher.weights=FILE, or a data group."
            )
        elif self.teacher.start is not None:
            self.teacher.start.start(model, self.spec.num_classes)
        if self.teacher.weights is None:
            self.teacher.training.require_takes(model, self.spec.image_shape)
        if self.verifier.weights is not None and self.verifier.network is not None:
            verifier = self.verifier.network.build()
            self.verifier.weights.load(verifier)
            check_model(verifier, self.spec)
        if self.verifier.extractor is not None and self.data is None:
            raise ConfigError(
                f"verifier.extractor={self.verifier.extractor} compares dreams with real test images, but data=none. "
                "Set it to null, or choose a data group."
            )
        return model

    def _check_ranks(self, model: nn.Module) -> None:
        """Raise unless every training can be divided among the ranks (`ConfigError`)."""
        recipes: list[OptimizerRecipe] = []
        if self.teacher.weights is None:
            recipes.append(self.teacher.training)
        recipes.append(self.incremental if self.task == "class_incremental" else self.distillation)
        for recipe in recipes:
            require_equal_shares(f"{recipe.group}.batch_size", recipe.batch_size, self.options.ranks)
        frozen = self.task != "class_incremental" and self.distillation.batch_norm == "frozen"
        for network in (model, self.student.build()):
            require_portable(network)
            if not frozen or (network is model and self.teacher.weights is None):
                require_whole_batch_norm(network)


def check_inversion(model: nn.Module, recipe: InversionRecipe, spec: InputSpec) -> None:
    """Raise unless `model` can be inverted by `recipe` (`DfkdError`)."""
    recipe.weights_of(list(require_batch_norm(model)))
    require(recipe.start != "dreams", "inversion.start", recipe.start, "noise or procedural in a run; see dfkd.invert")
    check_model(model, spec)
    if recipe.half_resolution_iterations:
        channels, height, width = spec.image_shape
        try:
            check_model(model, replace(spec, image_shape=(channels, height // 2, width // 2)))
        except DfkdError as error:
            raise ConfigError(
                f"inversion.half_resolution_iterations must be 0 for this network, got "
                f"{recipe.half_resolution_iterations}: it does not work at half its input size. {error}"
            ) from error
