"""Locks between processes, which say who holds them.

They are the operating system's (`flock`): the kernel gives one back when its process ends, however it ends, so that
nobody has to find out whether a holder is still alive. The holder's name beside a lock is for people alone. What holds
on a shared file system is told in `docs/faults.md`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dfkd.files import write_text


@contextmanager
def locked(path: Path, held: Callable[[str], None]) -> Iterator[str | None]:
    """Within the context the lock at `path` is this process's.

    Args:
        path: of the lock's file, `NAME.lock`; the holder's name stands in `NAME.holder`.
        held: told who has it, where another process does; it may raise, or return to wait.

    Yields:
        Who had it and ended without giving it back; None: nobody.
    """
    lock, holder = FileLock(path), path.with_name(f"{path.name.removesuffix('lock')}holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        held(_name(holder) or "another process")
        lock.acquire()
    try:
        died = _name(holder)
        with contextlib.suppress(OSError):  # of a full disk: whoever needs the space says so
            write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield died
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path`, or it cannot be asked."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _name(holder: Path) -> str | None:
    try:
        return holder.read_text(encoding="utf-8", errors="replace")[:200] or None
    except OSError:
        return None
