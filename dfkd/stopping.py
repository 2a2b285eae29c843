"""SIGINT and SIGTERM: the process ends at once, with the exit code that schedulers expect, and says how to go on.

Nothing has to be saved then: all that a run keeps is written to a temporary name and renamed, so that it may end
anywhere (`kill -9` included) and continue. No exception is raised either: one that arises in the middle of a library's
call may come out of it as another, and a file that was being read would be taken for a damaged one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable(last_words: Callable[[str], None]) -> Iterator[None]:
    """Within the context, the first of `SIGNALS` ends the process, with 128 + its number (130 and 143).

    A thread of its own waits for it, so that it is noticed in the middle of a long operation of PyTorch, too.

    Args:
        last_words: told the signal's name before the end.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=_watch, args=(read, last_words), daemon=True)
    # Python's own handlers do nothing; that there are some makes it write the signal's number into the pipe.
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    earlier = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        watcher.join()
        os.close(read)


def _watch(pipe: int, last_words: Callable[[str], None]) -> None:
    while found := os.read(pipe, 1):
        number = found[0]
        if number in SIGNALS:
            name = signal.Signals(number).name
            try:
                last_words(name)
                for child in multiprocessing.active_children():
                    child.kill()
                told = f"dfkd: stopped by {name}. What was finished is kept: run the same command again to continue.\n"
                os.write(sys.stderr.fileno(), told.encode())
            finally:
                os._exit(128 + number)
