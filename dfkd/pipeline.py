"""The main job: teacher -> dream -> prune -> recover -> evaluate, each stage's product an artifact in the store.

Real images are reachable in two stages only: `teacher` (to train one) and `evaluate` (scores and the real-data
control). `dream`, `prune` and `recover` are given networks and dreams.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.reconstruction import require_teachers_shapes
from dfkd.distillation.recover import recover_student, reestimate_on
from dfkd.dreams import DreamBank, DreamDataModule, Dreams
from dfkd.errors import ConfigError, DfkdError
from dfkd.evaluation.controls import noise_images
from dfkd.evaluation.scores import Scores, accuracy, agreement, predict
from dfkd.files import file_checksum, save_tensors
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.plan import plan_batches
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.input_spec import InputSpec, check_model
from dfkd.models.student_file import load_student, save_student
from dfkd.models.weights import load_teacher_weights
from dfkd.pruning.sparsity import nonzero_weights
from dfkd.real_data import Purpose, RealImages
from dfkd.real_data.datamodule import RealDataModule, random_subset
from dfkd.seeding import derive_seed
from dfkd.store import Artifact, Store
from dfkd.training.data import SeededDataModule
from dfkd.training.fit import TrainerOptions, fit
from dfkd.training.progress import Progress, duration
from dfkd.training.teacher import TeacherRecipe, TeacherTraining

log = logging.getLogger(__name__)

STAGES = ("teacher", "dream", "prune", "recover", "evaluate")
CONTROLS = ("noise", "real")
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's result, as plain objects.

    Attributes:
        name: for people.
        seed: of everything random.
        spec: the teacher's input and classes.
        build_model: makes the network with random weights.
        model_recipe: what `build_model` makes, as plain JSON.
        weights: the teacher's weights: a file, `torchvision:NAME`, or None to train it.
        training: how to train the teacher, where it has no weights.
        prune: prunes a network in place. Where it has an argument of this name it is given `teacher`, or `dreams` as
            images (N, C, H, W).
        pruning_recipe: what `prune` does, as plain JSON.
        rounds: of pruning and recovery. With more than one, `prune` has an argument `amount`, which rises to the
            recipe's over the rounds; each recovery continues from the last one's student.
        inversion: how to dream.
        distillation: how to recover.
        controls: which of `CONTROLS` to train beside the student: the same recovery on noise, on real images.
        data: the real images, or None.
        options: where and how precisely to compute.
        choices: names of the configuration's choices by group, for tables.
    """

    name: str
    seed: int
    spec: InputSpec
    build_model: Callable[[], nn.Module]
    model_recipe: dict[str, Any]
    weights: str | None
    training: TeacherRecipe
    prune: Callable[..., None]
    pruning_recipe: dict[str, Any]
    inversion: InversionRecipe
    distillation: DistillationRecipe
    rounds: int = 1
    controls: tuple[str, ...] = CONTROLS
    data: RealImages | None = None
    options: TrainerOptions = field(default_factory=TrainerOptions)
    choices: dict[str, str] = field(default_factory=dict)


@dataclass
class Pipeline:
    """Runs the stages of an experiment that are missing from the store.

    Attributes:
        experiment: what to do.
        store: where products are found and kept.
        loggers: told the course of every stage; of a stage that was found, the course it had.
        artifacts: the products so far, by stage or control.
    """

    experiment: Experiment
    store: Store
    loggers: Sequence[Logger] = ()
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def check(self) -> None:
        """Raise now what would otherwise be raised after the long work has begun (`DfkdError`)."""
        e = self.experiment
        model = e.build_model()
        e.inversion.weights_of(list(require_batch_norm(model)))
        check_model(model, e.spec)
        if e.inversion.half_resolution_iterations:
            channels, height, width = e.spec.image_shape
            try:
                check_model(model, replace(e.spec, image_shape=(channels, height // 2, width // 2)))
            except DfkdError as error:
                raise ConfigError(
                    f"inversion.half_resolution_iterations must be 0 for this network, got "
                    f"{e.inversion.half_resolution_iterations}: it does not work at half its input size. {error}"
                ) from error
        if e.weights is not None:
            load_teacher_weights(model, e.weights, e.model_recipe)
        elif e.data is None:
            raise ConfigError(
                "teacher.weights is null and data=none: there is neither a trained teacher nor data to train one on. "
                "Give teacher.weights=FILE, or a data group."
            )
        student = copy.deepcopy(model)
        self._prune_network(student, model, torch.randn(8, *e.spec.image_shape))
        if e.distillation.reconstruct:
            require_teachers_shapes(student, model)
        if e.rounds > 1 and "amount" not in e.pruning_recipe:
            raise ConfigError(
                f"rounds must be 1 with pruning._target_={e.pruning_recipe.get('_target_')}, got {e.rounds}: it has no "
                "amount that could rise from round to round."
            )
        if e.inversion.competition_weight:
            raise ConfigError(
                f"inversion.competition_weight is {e.inversion.competition_weight}, but the dreams of this pipeline "
                "are made before there is a student to compete with. Set it to 0."
            )
        if e.distillation.batch_size > e.inversion.num_images:
            raise ConfigError(
                f"distillation.batch_size must be at most inversion.num_images ({e.inversion.num_images}), got "
                f"{e.distillation.batch_size}."
            )
        if e.data is None and not e.inversion.num_held_out:
            raise ConfigError(
                "inversion.num_held_out must be 1 or more with data=none, got 0: held-out dreams are all that can "
                "judge the student then."
            )
        self.store.check_writable()

    def run(self, last: str = "evaluate") -> dict[str, Any] | None:
        """Run all stages up to `last`; after `evaluate`, the scores and counts that make up the result."""
        for stage in STAGES[: STAGES.index(last) + 1]:
            started = time.monotonic()
            log.info("%s ...", stage)
            getattr(self, f"_{stage}")()
            reused = self.artifacts[stage].reused
            log.info("%s: %s", stage, "found in the store" if reused else duration(time.monotonic() - started))
        return self.artifacts["evaluate"].notes if last == "evaluate" else None

    # ---------------------------------------------------------------------------------------------------- stages

    def _teacher(self) -> None:
        e = self.experiment
        recipe: dict[str, Any] = {"model": e.model_recipe}
        if e.weights is None:
            recipe |= {"training": asdict(e.training), "data": _data(e).fingerprint, "input": asdict(e.spec)}
            recipe |= {"seed": e.seed, "precision": e.options.precision}
        elif e.weights.startswith("torchvision:"):
            recipe |= {"weights": e.weights}
        else:
            recipe |= {"weights": file_checksum(Path(e.weights))}

        def make(directory: Path) -> dict[str, Any]:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(e.seed, "teacher"))
                teacher = e.build_model()
            history = []
            if e.weights is not None:
                load_teacher_weights(teacher, e.weights, e.model_recipe)
            else:
                images = _data(e).open(Purpose.TEACHER_TRAINING)
                stream = e.training.batch_size, e.training.updates, e.seed
                data = RealDataModule(images, *stream, e.options.num_workers)
                module = TeacherTraining(teacher, e.training, e.seed, "teacher")
                history = fit(module, data, directory, e.options, self.loggers)
            save_tensors(directory / WEIGHTS, teacher.state_dict())
            return {"history": history}

        self._obtain("teacher", "teacher", recipe, make)

    def _dream(self) -> None:
        e = self.experiment
        recipe = {
            "teacher": self.artifacts["teacher"].key,
            "input": asdict(e.spec),
            "inversion": asdict(e.inversion),
            "seed": e.seed,
            "precision": e.options.precision,
        }

        def make(directory: Path) -> dict[str, Any]:
            teacher = self.network("teacher")
            dreams, history = fill_bank(
                teacher, e.inversion, e.spec, e.seed, directory, e.options, loggers=self.loggers
            )
            targeted = e.inversion.label_loss != "entropy"
            return {"teacher_accuracy": dreams.teacher_accuracy if targeted else None, "history": history}

        self._obtain("dream", "dreams", recipe, make)

    def _prune(self) -> None:
        self._prune_from("prune", "teacher")

    def _recover(self) -> None:
        self._recover_on("recover", {"dreams": self.artifacts["dream"].key}, lambda: self._stream(self.dreams()))

    def _evaluate(self) -> None:
        e = self.experiment
        count = e.inversion.num_images

        def noise() -> SeededDataModule:
            return self._stream(noise_images(count, e.spec.image_shape, e.seed))

        def real() -> SeededDataModule:
            images = random_subset(_data(e).open(Purpose.REAL_DATA_CONTROL), count, e.seed)
            stream = e.distillation.batch_size, e.distillation.updates, e.seed
            return RealDataModule(images, *stream, e.options.num_workers)

        if "noise" in e.controls:
            self._recover_on("noise", {"noise": [count, *e.spec.image_shape]}, noise)
        if "real" in e.controls and e.data is not None:
            self._recover_on("real", {"real": [count, e.data.fingerprint], "input": asdict(e.spec)}, real)

        recipe: dict[str, Any] = {name: artifact.key for name, artifact in self.artifacts.items()}
        recipe["data"] = None if e.data is None else e.data.fingerprint

        def make(directory: Path) -> dict[str, Any]:
            return {"scores": {name: scores.as_dict() for name, scores in self._score().items()}}

        self._obtain("evaluate", "scores", recipe, make)

    # --------------------------------------------------------------------------------------------------- helpers

    def network(self, artifact: str) -> nn.Module:
        """The network of the artifact made by a stage or control."""
        with torch.random.fork_rng():
            model = self.experiment.build_model()
        return load_student(self.artifacts[artifact].directory / WEIGHTS, model)

    def cost(self, artifact: str) -> dict[str, Any]:
        """What the network of an artifact costs; `sparsity` is the share of the teacher's prunable weights gone."""
        network = self.network(artifact)
        return {
            "sparsity": 1 - nonzero_weights(network) / nonzero_weights(self.network("teacher")),
            "parameters": parameters(network),
            "multiply_adds": multiply_adds(network, self.experiment.spec.image_shape),
        }

    def dreams(self) -> Dreams:
        """The dreams, training and held-out."""
        e = self.experiment
        count = len(plan_batches(e.inversion, e.spec.num_classes, e.seed))
        return DreamBank(self.artifacts["dream"].directory).load(count, e.inversion.num_held_out)[0]

    def _prune_from(self, name: str, before: str, **changes: float) -> None:
        e = self.experiment
        recipe = {"network": self.artifacts[before].key, "pruning": e.pruning_recipe | changes}
        if _takes(e.prune, "teacher"):
            recipe["teacher"] = self.artifacts["teacher"].key
        if _takes(e.prune, "dreams"):
            recipe["dreams"] = self.artifacts["dream"].key

        def make(directory: Path) -> dict[str, Any]:
            student = self.network(before)
            images = self.dreams().training.images if _takes(e.prune, "dreams") else None
            self._prune_network(student, self.network("teacher"), images, **changes)
            save_student(directory / WEIGHTS, student)
            return {}

        self._obtain(name, "pruned", recipe, make)

    def _prune_network(self, model: nn.Module, teacher: nn.Module, dreams: Tensor | None, **changes: float) -> None:
        prune = self.experiment.prune
        given = {name: value for name, value in (("teacher", teacher), ("dreams", dreams)) if _takes(prune, name)}
        prune(model, **given, **changes)

    def _stream(self, dreams: Dreams) -> DreamDataModule:
        recipe = self.experiment.distillation
        return DreamDataModule(dreams, recipe.batch_size, recipe.updates, self.experiment.seed)

    def _recover_on(self, name: str, images: dict[str, Any], make_data: Callable[[], SeededDataModule]) -> None:
        e = self.experiment
        student = "prune"
        if e.rounds > 1:
            before = "teacher"
            for done, amount in enumerate(rising_amounts(e.pruning_recipe["amount"], e.rounds), start=1):
                student = f"{name}_pruned_{done}"
                self._prune_from(student, before, amount=amount)
                if done < e.rounds:
                    before = f"{name}_{done}"
                    self._distil(before, student, images, make_data)
        self._distil(name, student, images, make_data)

    def _distil(
        self, name: str, student: str, images: dict[str, Any], make_data: Callable[[], SeededDataModule]
    ) -> None:
        e = self.experiment
        recipe = {
            "teacher": self.artifacts["teacher"].key,
            "student": self.artifacts[student].key,
            "images": images,
            "distillation": asdict(e.distillation),
            "seed": e.seed,
            "precision": e.options.precision,
        }

        def make(directory: Path) -> dict[str, Any]:
            network, teacher = self.network(student), self.network("teacher")
            prune = None
            if self._prunes_gradually(network, teacher):
                network, prune = self.network("teacher"), self._prune_share
            history = recover_student(
                network, teacher, make_data(), e.distillation, e.seed, directory, e.options, self.loggers, name, prune
            )
            save_student(directory / WEIGHTS, network)
            return {"history": history}

        self._obtain(name, "recovered", recipe, make)

    def _prunes_gradually(self, student: nn.Module, teacher: nn.Module) -> bool:
        e, recipe = self.experiment, self.experiment.distillation
        shapes = [[value.shape for value in network.state_dict().values()] for network in (student, teacher)]
        asked = recipe.gradual > 0 and recipe.updates > 0 and not recipe.reconstruct and e.rounds == 1
        return asked and "amount" in e.pruning_recipe and shapes[0] == shapes[1]

    def _prune_share(self, network: nn.Module, share: float) -> None:
        prune = self.experiment.prune
        dreams = self.dreams().training.images if _takes(prune, "dreams") else None
        teacher = self.network("teacher") if _takes(prune, "teacher") else network
        self._prune_network(network, teacher, dreams, amount=share * self.experiment.pruning_recipe["amount"])

    def _score(self) -> dict[str, Scores]:
        e = self.experiment
        device = e.options.torch_device()
        networks = {"teacher": "teacher", "pruned": "prune", "noise": "noise", "real": "real", "recovered": "recover"}
        models = {name: self.network(stage) for name, stage in networks.items() if stage in self.artifacts}
        dreams = self._stream(self.dreams())
        models["batchnorm"] = self.network("prune")
        reestimate_on(models["batchnorm"], dreams.one_pass(), e.options)
        test_images = None if e.data is None else e.data.open(Purpose.EVALUATION)
        answers: dict[str, Tensor] = {}
        accuracies: dict[str, float] = {}
        with Progress("evaluate", len(models), "networks") as progress:
            for name, model in models.items():
                if e.inversion.num_held_out:
                    answers[name], _ = predict(model, dreams.held_out_set(), device)
                if test_images is not None:
                    predictions, labels = predict(model, test_images, device, e.options.num_workers)
                    accuracies[name] = accuracy(predictions, labels, e.spec.num_classes)
                progress.advance(1)
        return {
            name: Scores(
                accuracy=accuracies.get(name),
                agreement=agreement(answers[name], answers["teacher"]) if answers else None,
            )
            for name in models
        }

    def _obtain(self, name: str, kind: str, recipe: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> None:
        artifact = self.store.obtain(kind, recipe, make)
        self.artifacts[name] = artifact
        if artifact.reused:
            for index, row in enumerate(artifact.notes.get("history", [])):
                for logger in self.loggers:
                    logger.log_metrics({f"{name}/{key}": value for key, value in row.items()}, index)


def _data(experiment: Experiment) -> RealImages:
    if experiment.data is None:
        raise ConfigError("data=none: this step needs real images.")
    return experiment.data


def _takes(prune: Callable[..., None], argument: str) -> bool:
    return argument in inspect.signature(prune).parameters


def rising_amounts(amount: float, rounds: int) -> list[float]:
    """The amount pruned by the end of each round: amount (1 - (1 - r / rounds)^3) (Zhu and Gupta 2017)."""
    return [amount * (1 - (1 - done / rounds) ** 3) for done in range(1, rounds)] + [amount]
