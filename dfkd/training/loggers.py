"""What each kind of logger is sent: curves by any of Lightning's, pictures, tables and a summary by two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor


class Sink:
    """Any of Lightning's loggers: it is sent the curves.

    Args:
        logger: of one run.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values of one stage, named `STAGE/NAME`, at a step of that stage."""
        self.logger.log_metrics(dict(values), step)

    def picture(self, name: str, picture: Tensor | Path, step: int | None) -> None:
        """Send a picture, pixels (C, H, W) in [0, 1] or a file; of the whole run where there is no step."""

    def table(self, name: str, columns: list[str], rows: Sequence[list[str]]) -> None:
        """Send a table of text."""

    def summary(self, numbers: Mapping[str, float]) -> None:
        """Send what the run is compared with others by."""

    def finish(self, failed: bool) -> None:
        """End the logger's run."""
        self.logger.finalize("failed" if failed else "success")


class WandbSink(Sink):
    """A run of Weights & Biases. Each curve is drawn over its stage's own steps, which are counted apart.

    Its summary has what it is sent as such and no curve's last value: a sweep's table would have a column for each.
    """

    def __init__(self, logger: WandbLogger) -> None:
        super().__init__(logger)
        self.experiment: Any = logger.experiment
        self._defined: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._send(values, step)

    def picture(self, name: str, picture: Tensor | Path, step: int | None) -> None:
        from wandb import Image as WandbImage  # which takes a second to import

        self._send({name: WandbImage(str(picture) if isinstance(picture, Path) else picture)}, step)

    def table(self, name: str, columns: list[str], rows: Sequence[list[str]]) -> None:
        from wandb import Table

        self._send({name: Table(columns=[*columns], data=list(rows))}, None)

    def summary(self, numbers: Mapping[str, float]) -> None:
        self.experiment.summary.update(dict(numbers))

    def finish(self, failed: bool) -> None:
        self.experiment.finish(exit_code=int(failed))

    def _send(self, values: Mapping[str, Any], step: int | None) -> None:
        if step is None:
            self.experiment.log(dict(values))
            return
        counted = f"{next(iter(values)).split('/')[0]}/step"
        # By name: a pattern would compete with the one for every metric that Lightning's logger defines.
        for name in ({counted, *values}) - self._defined:
            of_curve = {"hidden": True} if name == counted else {"step_metric": counted}
            self.experiment.define_metric(name, summary="none", **of_curve)
            self._defined.add(name)
        self.experiment.log({**values, counted: step})


class TensorBoardSink(Sink):
    """Files for TensorBoard, in the place of those of an earlier attempt: whatever that made is sent again."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        super().__init__(logger)
        for earlier in Path(logger.log_dir).glob("events.out.tfevents.*"):
            earlier.unlink()
        self.writer: Any = logger.experiment
        self.options = logger.hparams
        self.numbers: dict[str, float] = {}

    def picture(self, name: str, picture: Tensor | Path, step: int | None) -> None:
        if isinstance(picture, Path):
            with Image.open(picture) as image:
                self.writer.add_image(name, numpy.asarray(image.convert("RGB")), step, dataformats="HWC")
        else:
            self.writer.add_image(name, picture, step)

    def table(self, name: str, columns: list[str], rows: Sequence[list[str]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def summary(self, numbers: Mapping[str, float]) -> None:
        self.numbers |= numbers

    def finish(self, failed: bool) -> None:
        if self.numbers:  # TensorBoard's table of runs takes options and numbers at once
            self.logger.log_hyperparams(self.options, self.numbers)
        self.writer.close()


def sink_of(logger: Logger) -> Sink:
    """The way to send to a logger."""
    if isinstance(logger, WandbLogger):
        return WandbSink(logger)
    return TensorBoardSink(logger) if isinstance(logger, TensorBoardLogger) else Sink(logger)
