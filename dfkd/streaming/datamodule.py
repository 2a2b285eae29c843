"""The data module that dreams while the student learns. It knows no real image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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
from dfkd.inversion.objective import inversion_objective
from dfkd.inversion.plan import PlannedBatch, balanced_labels
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.freezing import frozen
from dfkd.models.input_spec import InputSpec
from dfkd.seeding import derive_seed
from dfkd.streaming.recipe import StreamingRecipe
from dfkd.training.data import SeededDataModule

MEASURED_AT_ONCE = 256


class StreamingDreamDataModule(SeededDataModule):
    """Streams `(images, labels)` batches of dreams from a bank that grows as the student learns (ADI).

    After every `streaming.every` updates, before the next batch is drawn, a batch of dreams is inverted on the
    student's device against the student as it is then. It is written to `directory` and drawn from at once. The
    images stay on disk; memory holds the batch in hand.

    A checkpoint holds how far the stream is, so a training that continues from one draws and makes the same batches
    as an undisturbed one; `directory` must then hold what it held. With several ranks (`use_distributed_sampler=False`
    in the trainer) each makes a batch of its own at a time, and all draw from all.

    Args:
        files: the batches that are there from the start, as a `DreamBank` wrote them.
        directory: where new batches go.
        teacher: the network to invert.
        student: the network that is being trained; it is used in eval mode and left as it was.
        inversion: how to dream; with `competition_weight` above 0, against the student.
        streaming: when to dream, and how to draw.
        spec: the teacher's input and classes.
        batch_size, batches, seed: as in `SeededDataModule`.
        on_growth: told each new batch and its row of `rows`, on the first rank.

    Attributes:
        rows: for each time the bank grew, `update`, `images` in the bank, the new batch's `loss` and `competition`,
            and the shares of it on which teacher and student give its label and each other's answer.
        seconds: spent on making dreams.

    Raises:
        InversionError: a new batch could not be made.
        ArtifactError: a batch that a checkpoint counts on is missing or damaged.
    """

    def __init__(
        self,
        files: Sequence[Path],
        directory: Path,
        teacher: nn.Module,
        student: nn.Module,
        inversion: InversionRecipe,
        streaming: StreamingRecipe,
        spec: InputSpec,
        batch_size: int,
        batches: int,
        seed: int = 0,
        on_growth: Callable[[Dreams, dict[str, float]], None] | None = None,
    ) -> None:
        super().__init__(batch_size, batches, seed)
        self.dreams = MappedDreams(files)
        self.first_files = len(self.dreams.files)
        self.bank = DreamBank(directory)
        self.teacher = teacher
        self.student = student
        self.inversion = inversion
        self.streaming = streaming
        self.spec = spec
        self.on_growth = on_growth
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._divergences = torch.ones(0)

    def training_set(self) -> MappedDreams:
        return self.dreams

    def train_dataloader(self) -> DataLoader:
        grown = self._fitting.world_size * self.streaming.new_batches(self.consumed)
        for number in range(len(self.dreams.files) - self.first_files, grown):
            self.dreams.add(self.bank.path(number))
        # Sized, and without workers, so that Lightning asks for a batch only when the updates before it are done.
        return DataLoader(self.dreams, batch_sampler=_StreamedBatches(self))

    def draw(self, batch: int) -> list[int]:
        """Which images make up batch number `batch`; the bank has grown before, where that was due."""
        every = self.streaming.every
        if every and batch and batch % every == 0:
            self._grow(batch)
        elif self.streaming.policy == "hardest" and not len(self._divergences):
            self._measure()
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "draw", batch, self._fitting.global_rank))
        count = min(self.batch_size, len(self.dreams))
        return torch.multinomial(self._chances(), count, generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        state = {"rows": list(self.rows), "seconds": self.seconds, "divergences": self._divergences}
        return super().state_dict() | state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]
        self._divergences = state_dict["divergences"]

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

    def _grow(self, update: int) -> None:
        started = time.monotonic()
        ranks, strategy = self._fitting.world_size, self._fitting.strategy
        first = ranks * (self.streaming.new_batches(update + 1) - 1)
        number = first + self._fitting.global_rank
        labels = balanced_labels(
            self.inversion.batch_size, self.spec.num_classes, derive_seed(self.seed, "streamed labels", number)
        )
        planned = PlannedBatch(number, labels, derive_seed(self.seed, "streamed batch", number))
        device = next(self.student.parameters()).device
        with (
            torch.enable_grad(),
            strategy.precision_plugin.forward_context(),
            inversion_objective(self.teacher.to(device), self.inversion, self.student) as objective,
        ):
            dreams, history = dream_batch(ObjectiveGradient(objective), planned, self.spec)
        self.bank.write(number, dreams, history)
        strategy.barrier("dreams")
        for other in range(first, first + ranks):
            self.dreams.add(self.bank.path(other))
        if self.streaming.policy == "hardest":
            self._measure()
        self._report(update, dreams, history[-1])
        self.seconds += time.monotonic() - started

    @torch.no_grad()
    def _measure(self) -> None:
        """KL(teacher || student) on every image of the bank."""
        device = next(self.student.parameters()).device
        parts = []
        with frozen(self.teacher.to(device), self.student):
            for indices in torch.arange(len(self.dreams)).split(MEASURED_AT_ONCE):
                images = torch.stack([image for image, _ in self.dreams.__getitems__(indices.tolist())])
                given, expected = (
                    F.log_softmax(network(images.to(device).float()), 1) for network in (self.student, self.teacher)
                )
                parts.append(F.kl_div(given, expected, reduction="none", log_target=True).sum(1).cpu())
        self._divergences = torch.cat(parts)

    def _report(self, update: int, dreams: Dreams, terms: dict[str, float]) -> None:
        device = next(self.student.parameters()).device
        with torch.no_grad(), frozen(self.student):
            answers = torch.cat(
                [self.student(part.to(device).float()).argmax(1).cpu() for part in dreams.images.split(64)]
            )
        row: dict[str, float] = {"update": update, "images": len(self.dreams), "loss": terms["total"]}
        if "competition" in terms:
            row["competition"] = terms["competition"]
        row["teacher_accuracy"] = dreams.teacher_accuracy
        row["student_accuracy"] = (answers == dreams.labels).double().mean().item()
        row["agreement"] = (answers == dreams.predictions).double().mean().item()
        self.rows.append(row)
        for logger in self._fitting.loggers:
            logger.log_metrics({f"stream/{name}": value for name, value in row.items()}, update)
        if self.on_growth is not None and self._fitting.is_global_zero:
            self.on_growth(dreams, row)


class _StreamedBatches(Sampler[list[int]]):
    """Asks the stream for one batch after the other, from where it stands."""

    def __init__(self, stream: StreamingDreamDataModule) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.stream.consumed, self.stream.batches):
            yield self.stream.draw(batch)
