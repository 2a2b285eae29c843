"""Progress of a long stage with an estimate of the time left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger("dfkd")
SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts `total` steps of the stage `name`; `done` of them were made by an earlier run.

    >>> with Progress("dream", total=600, unit="iterations") as progress:
    ...     progress.advance(10, "loss 12.3")
    """

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.first = self.done = done
        self.started = self.last_line = time.monotonic()
        self.bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self.bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.name, total=self.total, completed=self.done, note="")
            self.bar.start()
        return self

    def advance(self, steps: int, note: str = "") -> None:
        """Count `steps` more, and show `note`."""
        self.done += steps
        if self.bar is not None:
            self.bar.update(self.task, advance=steps, total=self.total, note=note)
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            made = self.done - self.first
            left = (now - self.started) / made * (self.total - self.done) if made else float("nan")
            log.info("%s: %d of %d %s, %s left. %s", self.name, self.done, self.total, self.unit, duration(left), note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()


def duration(seconds: float) -> str:
    """Seconds for a reader: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds != seconds:
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
