"""The stages that every task begins with, teacher -> dream, and how stages find their products in the store."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import Dataset

from dfkd.dreams import DreamBank, Dreams
from dfkd.dreams.mapped import MappedDreams
from dfkd.evaluation.judging import compare_with_real, judge_dreams
from dfkd.files import save_tensors
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.plan import plan_batches
from dfkd.models.student_file import load_student
from dfkd.models.weights import load_teacher_weights, start_from, weights_identity
from dfkd.real_data import Purpose
from dfkd.real_data.datamodule import RealDataModule
from dfkd.seeding import derive_seed
from dfkd.store import Artifact, Store
from dfkd.tasks.experiment import Experiment
from dfkd.training.fit import fit
from dfkd.training.progress import duration
from dfkd.training.teacher import TeacherTraining

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"


@dataclass
class Pipeline(ABC):
    """Runs the stages of an experiment that are missing from the store. Subclasses are the tasks.

    Attributes:
        experiment: what to do.
        store: where products are found and kept.
        loggers: told the course of every stage; of a stage that was found, the course it had.
        on_growth: told each batch of dreams that is made while the student learns, and its row of the course.
        artifacts: the products so far, by stage or control.
    """

    experiment: Experiment
    store: Store
    loggers: Sequence[Logger] = ()
    on_growth: Callable[[Dreams, dict[str, float]], None] | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    stages: ClassVar[tuple[str, ...]]
    controls: ClassVar[tuple[str, ...]]  # that may be trained beside the student

    def check(self) -> None:
        """Raise now what would otherwise be raised after the long work has begun (`DfkdError`)."""
        self._check_student(self.experiment.check())
        self.store.check_writable()

    @abstractmethod
    def _check_student(self, teacher: nn.Module) -> None:
        """Raise what can be known to be wrong with what is done to the student (`DfkdError`)."""

    def run(self, last: str = "evaluate") -> dict[str, Any] | None:
        """Run all stages up to `last`; after `evaluate`, the scores and counts that make up the result."""
        for stage in self.stages[: self.stages.index(last) + 1]:
            started = time.monotonic()
            log.info("%s ...", stage)
            getattr(self, f"_{stage}")()
            reused = self.artifacts[stage].reused
            log.info("%s: %s", stage, "found in the store" if reused else duration(time.monotonic() - started))
        return self.artifacts["evaluate"].notes if last == "evaluate" else None

    def _teacher(self) -> None:
        e = self.experiment
        recipe: dict[str, Any] = {"model": e.model_recipe}
        if e.weights is None:
            recipe |= {"training": e.training.identity(), "data": e.real_images.fingerprint, "input": asdict(e.spec)}
            recipe |= {"seed": e.seed, "precision": e.options.precision}
        else:
            recipe |= {"weights": weights_identity(e.weights)}

        def make(directory: Path) -> dict[str, Any]:
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(e.seed, "teacher"))
                teacher = e.build_model()
            history = []
            if e.weights is not None:
                load_teacher_weights(teacher, e.weights, e.model_recipe)
            else:
                if e.training.start is not None:
                    start_from(teacher, e.training.start, e.model_recipe, e.spec.num_classes)
                images = e.real_images.open(Purpose.TEACHER_TRAINING)
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
            "inversion": asdict(e.first_inversion),
            "seed": e.seed,
            "precision": e.options.precision,
        }

        def make(directory: Path) -> dict[str, Any]:
            teacher = self.network("teacher")
            dreams, history = fill_bank(
                teacher, e.first_inversion, e.spec, e.seed, directory, e.options, loggers=self.loggers
            )
            targeted = e.inversion.label_loss != "entropy"
            return {"teacher_accuracy": dreams.teacher_accuracy if targeted else None, "history": history}

        self._obtain("dream", "dreams", recipe, make)

    def _judge_dreams(self) -> None:
        e = self.experiment
        recipe: dict[str, Any] = {"dreams": self.artifacts["dream"].key, "marks": 2}  # raised when there are others
        if e.judge.weights is not None:
            recipe |= {"judge": e.judge.recipe, "weights": weights_identity(e.judge.weights)}
        if e.judge.extractor is not None:
            recipe |= {"extractor": e.judge.extractor, "data": e.real_images.fingerprint}

        def make(directory: Path) -> dict[str, Any]:
            dreams, teacher, other = self.dreams(), self.network("teacher"), e.judge.network()
            device = e.options.torch_device()
            notes: dict[str, Any] = {"without_real_images": judge_dreams(dreams, teacher, other, e.spec, device)}
            if e.judge.extractor is not None:
                test_images = e.real_images.open(Purpose.EVALUATION)
                network = {"teacher": teacher, "judge": other, "inception": None}[e.judge.extractor]
                marks = compare_with_real(dreams, test_images, network, e.spec, device, e.options.num_workers)
                notes["with_real_images"] = {"extractor": e.judge.extractor, **marks}
            return notes

        self._obtain("evaluate_dreams", "judgements", recipe, make)

    def network(self, artifact: str) -> nn.Module:
        """The network of the artifact made by a stage or control: a student's, but for `teacher`."""
        build = self.experiment.build_model if artifact == "teacher" else self.experiment.build_student
        with torch.random.fork_rng():
            model = build()
        return load_student(self.artifacts[artifact].directory / WEIGHTS, model)

    def dreams(self) -> Dreams:
        """The dreams that were made before the student learned, training and held-out."""
        e = self.experiment
        count = len(plan_batches(e.inversion, e.spec.num_classes, e.seed))
        return DreamBank(self.artifacts["dream"].directory).load(count, e.inversion.num_held_out)[0]

    def held_out(self) -> Dataset | None:
        """The dreams that only judge, on disk; None where there are none."""
        return MappedDreams(self._dream_files()[1]) if self.experiment.inversion.num_held_out else None

    def dream_files(self) -> list[Path]:
        """The files of the dreams that train the student."""
        return self._dream_files()[0]

    def _dream_files(self) -> tuple[list[Path], list[Path]]:
        """The files of the training dreams, and of the held-out ones."""
        bank, e = DreamBank(self.artifacts["dream"].directory), self.experiment
        files = [bank.path(batch.number) for batch in plan_batches(e.inversion, e.spec.num_classes, e.seed)]
        training = -(-e.inversion.num_images // e.inversion.batch_size)
        return files[:training], files[training:]

    def _obtain(self, name: str, kind: str, recipe: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> None:
        artifact = self.store.obtain(kind, recipe, make)
        self.artifacts[name] = artifact
        if artifact.reused:
            rows = [(name, index, row) for index, row in enumerate(artifact.notes.get("history", []))]
            rows += [("stream", int(row["update"]), row) for row in artifact.notes.get("stream", [])]
            for stage, step, row in rows:
                for logger in self.loggers:
                    logger.log_metrics({f"{stage}/{key}": value for key, value in row.items()}, step)
