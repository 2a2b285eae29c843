"""SIGINT and SIGTERM: the process ends at once, with the exit code that schedulers expect, and says how to go on.

Nothing has to be saved then: all that a run keeps is written to a temporary name and renamed, so that it may end
anywhere (`kill -9` included) and continue.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 1.0  # seconds in which the main thread should have noticed


class Stopped(SystemExit):
    """A signal asked the process to end; its code is 128 + the signal's number (130 for SIGINT, 143 for SIGTERM)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self.name}. What was finished is kept: run the same command again to continue."


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the context, the first of `SIGNALS` raises `Stopped` in the main thread.

    The signal is noticed between two operations of PyTorch. Where one takes longer than `GRACE`, as a backward through
    a large network may, or somebody sends a second signal, the process ends without further ado.
    """
    timers: list[threading.Timer] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped = Stopped(number)
        if timers:
            _end(stopped)
        timer = threading.Timer(GRACE, _end, [stopped])
        timer.daemon = True
        timers.append(timer)
        timer.start()
        for child in multiprocessing.active_children():
            child.kill()
        raise stopped

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(stopped: Stopped) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    os.write(sys.stderr.fileno(), f"dfkd: {stopped}\n".encode())
    os._exit(int(str(stopped.code)))
