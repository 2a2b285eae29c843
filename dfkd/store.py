"""The artifact store: every stage's product, kept under a key of exactly what determines it.

Layout: `ROOT/KIND/KEY/` holds the product's files and `artifact.json` (its recipe, notes, seconds and the checksums of
its files), written last. `KEY.partial/` is a product in the making, which a killed run leaves and the next one
continues. `KEY.lock` lets one process make a product while others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dfkd.errors import ArtifactError, ConfigError
from dfkd.files import file_checksum, write_json

log = logging.getLogger(__name__)

# Raised when a change of the code makes old products wrong for their recipe.
RECIPE_VERSION = 1
MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A finished product.

    Attributes:
        kind: what it is, for instance `dreams`.
        key: of its recipe.
        directory: where its files lie.
        notes: what its maker returned.
        seconds: how long it took to make, over all runs that worked on it (but for what a killed one did last).
        reused: whether it was there already.
    """

    kind: str
    key: str
    directory: Path
    notes: dict[str, Any]
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Store:
    """Products under `root`, shared by any number of runs and processes."""

    root: Path

    def check_writable(self) -> None:
        """Raise `ConfigError` unless files can be written under `root`."""
        check_writable(self.root, "store")

    def obtain(self, kind: str, recipe: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The product of `recipe`, made by `make` unless it is there and whole.

        Args:
            kind: what it is; names its folder.
            recipe: all that determines it, as plain JSON.
            make: given a folder that may hold what an interrupted call left, it makes the product's files there and
                returns notes as plain JSON.

        Raises:
            What `make` raises; the folder then stays for the next call.
        """
        key = recipe_key(kind, recipe)
        final = self.root / kind / key
        partial = final.with_name(f"{key}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.with_name(f"{key}.lock"), kind):
            found = self._find(kind, key, final)
            if found is not None:
                return found
            partial.mkdir(exist_ok=True)
            clock = _Clock(partial / "seconds")
            with clock:
                notes = make(partial)
            seconds = round(clock.total, 3)
            clock.path.unlink()
            for leftover in partial.rglob(".*"):
                leftover.unlink()  # the temporary file of a killed writer
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            manifest = {
                "kind": kind,
                "recipe": recipe,
                "notes": notes,
                "seconds": seconds,
                "files": {str(path.relative_to(partial)): file_checksum(path) for path in files},
            }
            write_json(partial / MANIFEST, manifest | {"checksum": _digest(manifest)})
            partial.replace(final)
        return Artifact(kind, key, final, notes, seconds, reused=False)

    def _find(self, kind: str, key: str, directory: Path) -> Artifact | None:
        if not directory.exists():
            return None
        try:
            manifest = _read_manifest(directory)
        except ArtifactError as error:
            log.warning("%s It is made again.", error)
            shutil.rmtree(directory)
            return None
        return Artifact(kind, key, directory, manifest["notes"], manifest["seconds"], reused=True)


def check_writable(directory: Path, option: str) -> None:
    """Raise `ConfigError` unless files can be written in `directory`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:  # of no name: several runs may ask at once
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise ConfigError(
            f"{option} must be a folder that can be written to, got {directory} ({error.strerror}). "
            f"Choose another with {option}=..., or make room."
        ) from error


def recipe_key(kind: str, recipe: dict[str, Any]) -> str:
    """The key of a recipe: equal for equal recipes whatever their order, different for different ones."""
    return _digest({"kind": kind, "recipe": recipe, "version": RECIPE_VERSION})[:20]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
        if checksum != _digest(manifest):
            raise ArtifactError(f"{path} does not match its checksum: it was changed or damaged.")
        for name, expected in manifest["files"].items():
            if file_checksum(directory / name) != expected:
                raise ArtifactError(f"{directory / name} does not match its checksum: it was changed or damaged.")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{directory} is incomplete or damaged ({error}).") from error
    return manifest


@contextmanager
def _locked(path: Path, kind: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is making the same artifact; waiting for it.", kind)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Clock:
    """Seconds spent on a product over all attempts; what an attempt took is written down even if it fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0.0

    def __enter__(self) -> None:
        self.before = float(self.path.read_text()) if self.path.exists() else 0.0
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.total = self.before + time.monotonic() - self.started
        self.path.write_text(f"{self.total:.3f}")
