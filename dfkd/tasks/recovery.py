"""The main job: teacher -> dream -> prune -> recover -> evaluate, each stage's product an artifact in the store.

Real images are reachable in two stages only: `teacher` (to train one) and `evaluate` (scores and the real-data
control). `dream`, `prune` and `recover` are given networks and dreams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dfkd.distillation.recover import recover_student, reestimate_on
from dfkd.dreams import DreamBank, DreamDataModule, Dreams
from dfkd.evaluation.controls import noise_images
from dfkd.evaluation.scores import Scores, score
from dfkd.models.cost import multiply_adds, parameters
from dfkd.models.student_file import save_student
from dfkd.pruning.schedule import cubic_share
from dfkd.pruning.sparsity import nonzero_weights
from dfkd.real_data import Purpose
from dfkd.real_data.datamodule import RealDataModule, random_subset
from dfkd.streaming import StreamingDreamDataModule
from dfkd.tasks.pipeline import WEIGHTS, Pipeline
from dfkd.training.data import SeededDataModule

STREAMED = "streamed"
MakeData = Callable[[nn.Module, nn.Module, Path], SeededDataModule]  # from student, teacher, and a folder to use

STAGES = ("teacher", "dream", "prune", "recover", "evaluate")


class Recovery(Pipeline):
    """Prunes a copy of the teacher and brings it back on dreams."""

    stages: ClassVar[tuple[str, ...]] = STAGES

    def _prune(self) -> None:
        self._prune_from("prune", "teacher")

    def _recover(self) -> None:
        e = self.experiment
        images: dict[str, Any] = {"dreams": self.artifacts["dream"].key}
        if e.streaming.every:
            images |= {"streaming": asdict(e.streaming), "inversion": asdict(e.inversion)}
        self._recover_on("recover", images, self._dream_stream if e.streaming.every else self._fixed_stream)

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
            self._recover_on("noise", {"noise": [count, *e.spec.image_shape]}, noise)
        if "real" in e.controls and e.data is not None:
            self._recover_on("real", {"real": [count, e.data.fingerprint], "input": asdict(e.spec)}, real)

        recipe: dict[str, Any] = {name: artifact.key for name, artifact in self.artifacts.items()}
        recipe["data"] = None if e.data is None else e.data.fingerprint

        def make(directory: Path) -> dict[str, Any]:
            return {"scores": {name: scores.as_dict() for name, scores in self._score().items()}}

        self._obtain("evaluate", "scores", recipe, make)

    def costs(self, *artifacts: str) -> list[dict[str, Any]]:
        """What the networks of artifacts cost; `sparsity` is the share of the teacher's prunable weights gone."""
        whole = nonzero_weights(self.network("teacher"))
        return [
            {
                "sparsity": 1 - nonzero_weights(network) / whole,
                "parameters": parameters(network),
                "multiply_adds": multiply_adds(network, self.experiment.spec.image_shape),
            }
            for network in map(self.network, artifacts)
        ]

    def _prune_from(self, name: str, before: str, **amount: float) -> None:
        method = self.experiment.pruning
        recipe = {"network": self.artifacts[before].key, "pruning": method.recipe | amount}
        if method.takes("teacher"):
            recipe["teacher"] = self.artifacts["teacher"].key
        if method.takes("dreams"):
            recipe["dreams"] = self.artifacts["dream"].key

        def make(directory: Path) -> dict[str, Any]:
            student = self.network(before)
            method.apply(student, self.network("teacher"), lambda: self.dreams().training.images, **amount)
            save_student(directory / WEIGHTS, student)
            return {}

        self._obtain(name, "pruned", recipe, make)

    def _stream(self, dreams: Dreams) -> DreamDataModule:
        recipe = self.experiment.distillation
        return DreamDataModule(dreams, recipe.batch_size, recipe.updates, self.experiment.seed)

    def _fixed_stream(self, *_: object) -> DreamDataModule:
        return self._stream(self.dreams())

    def _dream_stream(self, student: nn.Module, teacher: nn.Module, directory: Path) -> StreamingDreamDataModule:
        e, recipe = self.experiment, self.experiment.distillation
        return StreamingDreamDataModule(
            self.dream_files(), directory / STREAMED, teacher, student, e.inversion, e.streaming, e.spec,
            recipe.batch_size, recipe.updates, e.seed, self.on_growth,
        )  # fmt: skip

    def streamed(self) -> Dreams | None:
        """The dreams that were made while the student learned, in the order they were made; None if none were."""
        artifact = self.artifacts["recover"]
        count = len(artifact.notes.get("stream", []))
        return DreamBank(artifact.directory / STREAMED).load(count, 0)[0] if count else None

    def _recover_on(self, name: str, images: dict[str, Any], make_data: MakeData) -> None:
        rounds, amount = self.experiment.rounds, self.experiment.pruning.amount
        student = "prune"
        if rounds > 1 and amount is not None:
            before = "teacher"
            for done in range(1, rounds + 1):
                student = f"{name}_pruned_{done}"
                self._prune_from(student, before, amount=amount * cubic_share(done, rounds))
                if done < rounds:
                    before = f"{name}_{done}"
                    self._distil(before, student, images, make_data)
        self._distil(name, student, images, make_data)

    def _distil(self, name: str, student: str, images: dict[str, Any], make_data: MakeData) -> None:
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
            prune = self._gradual_pruning(network, teacher)
            if prune is not None:
                network = self.network("teacher")
            data = make_data(network, teacher, directory)
            history = recover_student(
                network, teacher, data, e.distillation, e.seed, directory, e.options, self.loggers, name, prune
            )
            save_student(directory / WEIGHTS, network)
            notes: dict[str, Any] = {"history": history}
            if isinstance(data, StreamingDreamDataModule):
                notes |= {"stream": data.rows, "seconds_dreaming": round(data.seconds, 3)}
            return notes

        self._obtain(name, "recovered", recipe, make)

    def _gradual_pruning(self, student: nn.Module, teacher: nn.Module) -> Callable[[nn.Module, float], None] | None:
        """Prunes a network to a share of the final amount; None where `student` must be pruned before it learns."""
        method, recipe = self.experiment.pruning, self.experiment.distillation
        amount = method.amount
        asked = recipe.gradual > 0 and recipe.updates > 0 and not recipe.reconstruct and self.experiment.rounds == 1
        if not asked or amount is None or _shapes(student) != _shapes(teacher):
            return None
        images = self.dreams().training.images if method.takes("dreams") else Tensor()
        return lambda network, share: method.apply(network, teacher, lambda: images, amount=share * amount)

    def _score(self) -> dict[str, Scores]:
        e = self.experiment
        networks = {"teacher": "teacher", "pruned": "prune", "noise": "noise", "real": "real", "recovered": "recover"}
        models = {name: self.network(stage) for name, stage in networks.items() if stage in self.artifacts}
        dreams = self._stream(self.dreams())
        models["batchnorm"] = self.network("prune")
        reestimate_on(models["batchnorm"], dreams.one_pass(), e.options)
        held_out = dreams.held_out_set() if e.inversion.num_held_out else None
        test_images = None if e.data is None else e.data.open(Purpose.EVALUATION)
        return score(models, held_out, test_images, e.spec.num_classes, e.options)


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in network.state_dict().values()]
