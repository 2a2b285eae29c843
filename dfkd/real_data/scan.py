"""One reading of a folder's images before the work: what they are, byte by byte, and which cannot be used.

Digests are cached by what the file system says of a file, so that a large folder is read once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dfkd.errors import DataError, listing, printable
from dfkd.files import cache_folder, write_text
from dfkd.real_data.pixels import DECODING, decode, strict_about_size
from dfkd.training.progress import Progress

RACY_SECONDS = 2.0  # a file as young as this may change once more without a new time stamp
AT_ONCE = 256  # files that are handed to the threads together
MANY = 2000  # files that are worth a display of progress


@dataclass(frozen=True)
class _Scanned:
    """A file as it was read: the file system's word on it (None where that is not to be trusted), and its content."""

    stamp: list[int] | None
    digest: str = ""
    problem: str | None = None


def scan(folder: Path, files: Sequence[str], channels: int) -> dict[str, str]:
    """The SHA-256 of each of `files`, by its path within `folder`; every image is read in full, or known from before.

    Args:
        folder: where they are.
        files: paths within it.
        channels: of the network's input, 1, 3 or 4.

    Raises:
        DataError: some cannot be used; it names them and says why.
    """
    cache = _Cache(folder, channels)
    digests = {name: cache.digest(name) for name in files}
    unknown = sorted(name for name, digest in digests.items() if digest is None)
    problems = []
    try:
        for name, found in zip(unknown, _read_all(folder, unknown, channels), strict=True):
            if found.problem is None:
                digests[name] = found.digest
                cache.keep(name, found)
            else:
                problems.append(f"{printable(name)} ({found.problem})")
    finally:  # an interrupted scan is continued
        cache.write()
    if problems:
        raise DataError(
            f"data.root: {len(problems)} of {len(files)} images in {printable(folder)} cannot be used: "
            f"{listing(problems)}. Repair or remove them."
        )
    return {name: digest for name, digest in digests.items() if digest is not None}


def _read_all(folder: Path, names: Sequence[str], channels: int) -> Iterator[_Scanned]:
    progress = Progress("scan", len(names), "images") if len(names) >= MANY else contextlib.nullcontext()
    with strict_about_size(), progress as shown, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            yield from threads.map(partial(_read, folder, channels=channels), some)
            if shown is not None:
                shown.advance(len(some))


def _read(folder: Path, name: str, channels: int) -> _Scanned:
    path = folder / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            return _Scanned(None, problem="it is no file")
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            young = time.time() - max(stamp[1:3]) / 1e9 < RACY_SECONDS
            content = file.read()
        decode(content, channels)
    except FileNotFoundError:
        return _Scanned(None, problem="it is a link to nothing" if path.is_symlink() else "it is gone")
    except (OSError, DataError) as error:
        return _Scanned(None, problem=printable(error))
    return _Scanned(None if young else stamp, hashlib.sha256(content).hexdigest())


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class _Cache:
    """Digests of a folder's files from earlier scans. One that cannot be read or written only costs time."""

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder = folder
        self.path: Path | None = None
        self.entries: dict[str, list[Any]] = {}
        self.changed = False
        known_by = f"{folder.resolve()}\0{channels}\0{DECODING}"
        try:
            self.path = cache_folder() / "scans" / f"{hashlib.sha256(os.fsencode(known_by)).hexdigest()[:32]}.json"
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = entries if isinstance(entries, dict) else {}
        except (OSError, ValueError, RuntimeError):
            pass

    def digest(self, name: str) -> str | None:
        """A file's digest, where the file system says that it is as it was."""
        try:
            stamp, digest = self.entries[name]
            return digest if stamp == _stamp((self.folder / name).stat()) else None
        except (KeyError, TypeError, ValueError, OSError):
            return None

    def keep(self, name: str, found: _Scanned) -> None:
        """Remember a file's digest."""
        if found.stamp is not None:
            self.entries[name] = [found.stamp, found.digest]
            self.changed = True

    def write(self) -> None:
        """Write what is known, and forget files that are gone."""
        if self.path is None or not self.changed:
            return
        present = {name: entry for name, entry in self.entries.items() if (self.folder / name).exists()}
        with contextlib.suppress(OSError):
            write_text(self.path, json.dumps(present))
