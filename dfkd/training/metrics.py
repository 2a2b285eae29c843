"""The one place that hands metrics to loggers: as they arise, or replayed from a product that was made before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from torch import Tensor

NOT_A_METRIC = ("step", "update", "iteration", "batch")


class Metrics:
    """Sends numbers to every logger, and pictures and tables to those that take them (wandb).

    Args:
        loggers: Lightning loggers; without any, nothing is sent.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = tuple(loggers)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send `values` of a stage, under `stage/NAME`, at a step of its own count."""
        for logger in self.loggers:
            logger.log_metrics({f"{stage}/{name}": value for name, value in values.items()}, step)

    def replay(self, stage: str, history: Iterable[Mapping[str, float]]) -> None:
        """Send the rows of a history as if they arose now."""
        for row in history:
            self.log(stage, step_of(row), row)

    def image(self, name: str, image: Tensor | Path, step: int | None = None) -> None:
        """Send a picture: pixels (C, H, W) in [0, 1], or a file."""
        for logger in self._wandb():
            picture: Any = str(image) if isinstance(image, Path) else image
            logger.log_image(name, [picture], **({} if step is None else {"step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Send a table of text."""
        for logger in self._wandb():
            logger.log_table(name, columns=list(columns), data=[list(row) for row in rows])

    def summary(self, numbers: Mapping[str, float]) -> None:
        """Send what a run ends with."""
        for logger in self._wandb():
            logger.experiment.summary.update(dict(numbers))

    def finish(self) -> None:
        """End the loggers' runs: the jobs of a sweep share one process, and each is a run of its own."""
        for logger in self._wandb():
            logger.experiment.finish()

    def _wandb(self) -> list[WandbLogger]:
        return [logger for logger in self.loggers if isinstance(logger, WandbLogger)]


def step_of(row: Mapping[str, float]) -> int:
    """The step of a row of a history: an update of a training, or a count of inversion iterations."""
    return int(row["update"] if "update" in row else row["step"])
