"""What all tasks share in which a student learns from its teacher: the stream of dreams, the controls, the scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamBank, DreamDataModule, Dreams
from dfkd.evaluation.controls import noise_images
from dfkd.evaluation.scores import score
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.student_file import save_student
from dfkd.pruning.sparsity import sparsity
from dfkd.real_data import Purpose
from dfkd.real_data.datamodule import RealDataModule, random_subset
from dfkd.streaming import StreamingDreamDataModule
from dfkd.tasks.pipeline import WEIGHTS, Pipeline
from dfkd.training.data import SeededDataModule

STREAMED = "streamed"
MakeData = Callable[[nn.Module, nn.Module, Path], SeededDataModule]  # from student, teacher, and a folder to use
Pruner = Callable[[nn.Module, float], None]


class DistillationPipeline(Pipeline):
    """A task in which a student learns from its teacher's dreams. The stage before `evaluate` makes the student."""

    networks: ClassVar[dict[str, str]]  # the artifacts that are scored, by their name in the result
    student: ClassVar[str]  # the student's name in the result
    controls: ClassVar[tuple[str, ...]] = ("noise", "real")  # the same, taught on noise and on real images

    @abstractmethod
    def _learn(self, name: str, images: dict[str, Any], make_data: MakeData) -> None:
        """Make the artifact `name`: the student, taught on `make_data`'s images, which `images` identifies."""

    def _learn_from_dreams(self, name: str) -> None:
        e = self.experiment
        images: dict[str, Any] = {"dreams": self.artifacts["dream"].key}
        if e.streaming.every:
            images |= {"streaming": asdict(e.streaming), "inversion": asdict(e.inversion)}
        self._learn(name, images, self._growing_stream if e.streaming.every else lambda *_: self._stream(self.dreams()))

    def _evaluate(self) -> None:
        e = self.experiment
        count = e.num_images

        def noise(*_: object) -> SeededDataModule:
            return self._stream(noise_images(count, e.spec.image_shape, e.seed))

        def real(*_: object) -> SeededDataModule:
            images = random_subset(e.real_images.open(Purpose.REAL_DATA_CONTROL), count, e.seed)
            stream = e.distillation.batch_size, e.distillation.updates, e.seed
            return RealDataModule(images, *stream, e.options.num_workers)

        if "noise" in e.controls:
            self._learn("noise", {"noise": [count, *e.spec.image_shape]}, noise)
        if "real" in e.controls and e.data is not None:
            self._learn("real", {"real": [count, e.data.fingerprint], "input": asdict(e.spec)}, real)

        recipe: dict[str, Any] = {name: artifact.key for name, artifact in self.artifacts.items()}
        recipe["data"] = None if e.data is None else e.data.fingerprint

        def make(directory: Path) -> dict[str, Any]:
            test_images = None if e.data is None else e.data.open(Purpose.EVALUATION)
            tests = {"accuracy": test_images}
            return {"scores": score(self._models(), self.held_out(), tests, e.spec.num_classes, e.options)}

        self._obtain("evaluate", "scores", recipe, make)
        self._judge_dreams()

    def _models(self) -> dict[str, nn.Module]:
        """The networks to score, by their name in the result."""
        return {name: self.network(stage) for name, stage in self.networks.items() if stage in self.artifacts}

    def costs(self, *artifacts: str) -> list[dict[str, Any]]:
        """What the networks of artifacts cost."""
        teacher = self.network("teacher")
        return [
            {
                "sparsity": self._sparsity(network, teacher),
                "parameters": parameters(network),
                "multiply_adds": multiply_adds(network, self.experiment.spec.image_shape),
            }
            for network in map(self.network, artifacts)
        ]

    def _sparsity(self, network: nn.Module, teacher: nn.Module) -> float:
        """Share of its prunable weights that a network lacks."""
        return sparsity(network)

    def streamed(self) -> list[Dreams]:
        """The batches of dreams that were made while the student learned, in that order."""
        artifact = self.artifacts[self.stages[-2]]
        bank = DreamBank(artifact.directory / STREAMED)
        return [bank.read(number)[0] for number in range(len(artifact.notes.get("stream", [])))]

    def _stream(self, dreams: Dreams) -> DreamDataModule:
        recipe = self.experiment.distillation
        return DreamDataModule(dreams, recipe.batch_size, recipe.updates, self.experiment.seed)

    def _growing_stream(self, student: nn.Module, teacher: nn.Module, directory: Path) -> StreamingDreamDataModule:
        e, recipe = self.experiment, self.experiment.distillation
        return StreamingDreamDataModule(
            self.dream_files(), directory / STREAMED, teacher, student, e.inversion, e.streaming, e.spec,
            recipe.batch_size, recipe.updates, e.seed, self.on_growth,
        )  # fmt: skip

    def _distil(self, name: str, student: str, images: dict[str, Any], make_data: MakeData) -> None:
        e = self.experiment
        recipe = {
            "teacher": self.artifacts["teacher"].key,
            "student": self.artifacts[student].key,
            "images": images,
            "distillation": e.distillation.identity(),
            "seed": e.seed,
            "precision": e.options.precision,
        }
        if e.distillation.patience is not None:
            recipe["held_out"] = self.artifacts["dream"].key  # they choose the student, whatever it is taught on

        def make(directory: Path) -> dict[str, Any]:
            teacher = self.network("teacher")
            network, prune = self._start(student, teacher)
            data = make_data(network, teacher, directory)
            history = recover_student(
                network, teacher, data, e.distillation, e.seed, directory, e.options, self.loggers, name, prune,
                self.held_out(),
            )  # fmt: skip
            save_student(directory / WEIGHTS, network)
            notes: dict[str, Any] = {"history": history}
            if isinstance(data, StreamingDreamDataModule):
                notes |= {"stream": data.rows, "seconds_dreaming": round(data.seconds, 3)}
            return notes

        self._obtain(name, "recovered", recipe, make)

    def _start(self, student: str, teacher: nn.Module) -> tuple[nn.Module, Pruner | None]:
        """The network to teach, and what prunes it to a share of the final amount as it learns."""
        return self.network(student), None
