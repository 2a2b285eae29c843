"""The one place that hands metrics to loggers: as they arise, or replayed from a product that was made before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger
from torch import Tensor
from torchvision.utils import make_grid

from dfkd.training.loggers import sink_of

NOT_A_METRIC = ("step", "update", "iteration", "batch")
SHOWN = 20  # images of a batch of dreams
PER_ROW = 10


class Metrics:
    """Sends numbers to every logger, and pictures and tables to those that take them (TensorBoard, wandb).

    Args:
        loggers: Lightning loggers; without any, nothing is sent.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.sinks = [sink_of(logger) for logger in loggers]

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send `values` of a stage, under `stage/NAME`, at a step of its own count."""
        named = {f"{stage}/{name}": value for name, value in values.items() if name not in NOT_A_METRIC}
        for sink in self.sinks:
            sink.log(named, step)

    def replay(self, stage: str, history: Iterable[Mapping[str, float]]) -> None:
        """Send the rows of a history as if they arose now."""
        for row in history:
            self.log(stage, step_of(row), row)

    def images(self, name: str, pixels: Tensor, step: int) -> None:
        """Send the first of a batch of images (B, C, H, W) in [0, 1] as one picture, at a step of the name's stage."""
        if self.sinks:
            self.picture(name, make_grid(pixels[:SHOWN], nrow=PER_ROW), step)

    def picture(self, name: str, picture: Tensor | Path, step: int | None = None) -> None:
        """Send a picture: pixels (C, H, W) in [0, 1], or a file."""
        for sink in self.sinks:
            sink.picture(name, picture, step)

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Send a table of text."""
        told = [list(row) for row in rows]
        for sink in self.sinks:
            sink.table(name, list(columns), told)

    def summary(self, numbers: Mapping[str, float]) -> None:
        """Send what a run ends with, by which it is compared with others."""
        for sink in self.sinks:
            sink.summary(numbers)

    def finish(self, failed: bool = False) -> None:
        """End the loggers' runs: the jobs of a sweep share one process, and each is a run of its own."""
        for sink in self.sinks:
            sink.finish(failed)


def step_of(row: Mapping[str, float]) -> int:
    """The step of a row of a history: an update of a training, or a count of inversion iterations."""
    return int(row["update"] if "update" in row else row["step"])
