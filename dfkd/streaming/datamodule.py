"""The data module that dreams while the student learns. It knows no real image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.dreams.mapped import MappedDreams
from dfkd.errors import TrainingError
from dfkd.inversion.batch import dream_batch
from dfkd.inversion.gradient import ObjectiveGradient
from dfkd.inversion.memory import parts_for
from dfkd.inversion.objective import inversion_objective
from dfkd.inversion.plan import PlannedBatch, balanced_labels
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.freezing import frozen
from dfkd.models.input_spec import InputSpec
from dfkd.seeding import derive_seed
from dfkd.streaming.recipe import StreamingRecipe
from dfkd.training.data import SeededDataModule, Stream

MEASURED_AT_ONCE = 256


@dataclass(frozen=True)
class Dreamer:
    """What new dreams are made from, and how.

    Attributes:
        teacher: the network to invert.
        student: the network that is being trained; it is used in eval mode and left as it was.
        inversion: how to dream; with `competition_weight` above 0, against the student.
        spec: the teacher's input and classes.
    """

    teacher: nn.Module
    student: nn.Module
    inversion: InversionRecipe
    spec: InputSpec

    @property
    def device(self) -> torch.device:
        """The student's, where all of it happens."""
        return next(self.student.parameters()).device


class StreamingDreamDataModule(SeededDataModule):
    """Streams `(images, labels)` batches of dreams from a bank that new batches join as the student learns (ADI).

    After every `streaming.every` updates, before the next batch is drawn, a batch of dreams is inverted on the
    student's device against the student as it is then. It is written to `directory` and drawn from at once. The
    images stay on disk; memory holds the batch in hand.

    A checkpoint holds how far the stream is, so a training that continues from one draws and makes the same batches
    as an undisturbed one; `directory` must then hold what it held. With several ranks (`use_distributed_sampler=False`
    in the trainer) all see the batches that one would see: the first makes the new dreams, and the others wait for it.

    Args:
        files: the batches that are there from the start, as a `DreamBank` wrote them.
        directory: where new batches go.
        dreamer: what new batches are made from, and how.
        streaming: when to dream, and how to draw.
        stream: which batches the student sees.

    Attributes:
        on_new_batch: told each new batch and its row of `history`, on the first rank; of a training that is continued,
            first those it had made.
        history: a row for each new batch: `update`, `images` in the bank, the batch's `loss` and `competition`, and
            the shares of it on which teacher and student predict its label, and on which they agree.
        seconds: spent on making dreams.

    Raises:
        InversionError: a new batch could not be made.
        ArtifactError: a batch that a checkpoint counts on is missing or damaged.
    """

    def __init__(
        self, files: Sequence[Path], directory: Path, dreamer: Dreamer, streaming: StreamingRecipe, stream: Stream
    ) -> None:
        super().__init__(stream)
        self.dreams = MappedDreams(files)
        self.first_files = len(self.dreams.files)
        self.bank = DreamBank(directory)
        self.dreamer = dreamer
        self.streaming = streaming
        self.on_new_batch: Callable[[Dreams, dict[str, float]], None] | None = None
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self._divergences = torch.ones(0)

    def training_set(self) -> MappedDreams:
        # A training that is continued, or that ended in other processes, has made batches that are not here yet.
        made = self.streaming.new_batches(self.consumed)
        for number in range(len(self.dreams.files) - self.first_files, made):
            self.dreams.add(self.bank.path(number))
        return self.dreams

    def train_dataloader(self) -> DataLoader[Any]:
        _ = self._fitting  # raises without one
        # Sized, and without workers, so that Lightning asks for a batch only when the updates before it are done.
        return DataLoader(self.training_set(), batch_sampler=_StreamedBatches(self))

    def draw(self, batch: int) -> list[int]:
        """Which images make up batch number `batch`; where a new batch of dreams is due, it is made first."""
        every = self.streaming.every
        if every and batch and batch % every == 0:
            self._add_new_batch(batch)
        elif self.streaming.policy == "hardest" and not len(self._divergences):
            self._measure()
        seed = derive_seed(self.stream.seed, "draw", batch, 0)
        generator = torch.Generator().manual_seed(seed)
        count = min(self.stream.batch_size, len(self.dreams))
        return torch.multinomial(self._chances(), count, generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        state = {"history": list(self.history), "seconds": self.seconds, "divergences": self._divergences}
        return super().state_dict() | state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.history, self.seconds = list(state_dict["history"]), state_dict["seconds"]
        self._divergences = state_dict["divergences"]
        if self.on_new_batch is not None:
            for number, row in enumerate(self.history):
                self.on_new_batch(self.bank.read(number)[0], row)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"on_new_batch": None}  # what the caller is told by may not fit into another process

    @property
    def _fitting(self) -> Trainer:
        if self.trainer is None:
            raise TrainingError("Dreams are streamed while a student learns: give this data module to Trainer.fit.")
        return self.trainer

    def _chances(self) -> Tensor:
        if self.streaming.policy == "hardest":
            return self._divergences.clamp_min(1e-6)
        sizes = self.dreams.sizes
        if self.streaming.policy == "recent":
            newest = len(sizes) - self.first_files + 1  # the first files are of one age
            ages = [newest - max(0, number - self.first_files + 1) for number in range(len(sizes))]
        else:
            ages = [1] * len(sizes)
        return torch.cat([torch.full((size,), 1 / age) for size, age in zip(sizes, ages, strict=True)])

    def _add_new_batch(self, update: int) -> None:
        started = time.monotonic()
        number = self.streaming.new_batches(update + 1) - 1
        if self._fitting.is_global_zero:
            dreams, history = self._dream(number)
            self.bank.write(number, dreams, history)
        self._fitting.strategy.barrier("dreams")
        self.dreams.add(self.bank.path(number))
        if self.streaming.policy == "hardest":
            self._measure()
        if self._fitting.is_global_zero:
            self._report(update, dreams, history[-1])
        self.seconds += time.monotonic() - started

    def _dream(self, number: int) -> tuple[Dreams, list[dict[str, float]]]:
        inversion, spec, device = self.dreamer.inversion, self.dreamer.spec, self.dreamer.device
        labels = balanced_labels(
            inversion.batch_size, spec.num_classes, derive_seed(self.stream.seed, "streamed labels", number)
        )
        planned = PlannedBatch(number, labels, derive_seed(self.stream.seed, "streamed batch", number))
        with (
            torch.enable_grad(),
            self._fitting.strategy.precision_plugin.forward_context(),
            inversion_objective(
                self.dreamer.teacher.to(device), inversion, self.dreamer.student, spec.image_shape
            ) as objective,
        ):
            parts = parts_for(objective, spec.image_shape, inversion.batch_size)
            return dream_batch(ObjectiveGradient(objective, parts=parts), planned, spec)

    def _measure(self) -> None:
        """Measure what is hardest, once for all ranks: the batch that each draws must be the same to the last bit."""
        measured = self._measured() if self._fitting.is_global_zero else torch.empty(0)
        self._divergences = self._fitting.strategy.broadcast(measured)

    @torch.no_grad()
    def _measured(self) -> Tensor:
        """KL(teacher || student) on every image of the bank."""
        teacher, student, device = self.dreamer.teacher, self.dreamer.student, self.dreamer.device
        parts = []
        with frozen(teacher.to(device), student):
            for indices in torch.arange(len(self.dreams)).split(MEASURED_AT_ONCE):
                images = torch.stack([image for image, _ in self.dreams.__getitems__(indices.tolist())])
                given, expected = (
                    F.log_softmax(network(images.to(device).float()), 1) for network in (student, teacher)
                )
                parts.append(F.kl_div(given, expected, reduction="none", log_target=True).sum(1).cpu())
        return torch.cat(parts)

    def _report(self, update: int, dreams: Dreams, terms: dict[str, float]) -> None:
        student, device = self.dreamer.student, self.dreamer.device
        with torch.no_grad(), frozen(student):
            parts = [student(part.to(device).float()).argmax(1).cpu() for part in dreams.images.split(64)]
            predictions = torch.cat(parts)
        row: dict[str, float] = {"update": update, "images": len(self.dreams), "loss": terms["total"]}
        if "competition" in terms:
            row["competition"] = terms["competition"]
        row["teacher_accuracy"] = dreams.teacher_accuracy
        row["student_accuracy"] = (predictions == dreams.labels).double().mean().item()
        row["agreement"] = (predictions == dreams.predictions).double().mean().item()
        self.history.append(row)
        if self.on_new_batch is not None:
            self.on_new_batch(dreams, row)


class _StreamedBatches(Sampler[list[int]]):
    """Asks the stream for one batch after the other, from where it stands."""

    def __init__(self, data: StreamingDreamDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.stream.batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.data.consumed, self.data.stream.batches):
            yield self.data.draw(batch)
