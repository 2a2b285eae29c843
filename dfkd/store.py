"""The store: every stage's product, kept under a key of exactly what determines it (`dfkd.stages.stage`).

Layout: `ROOT/KIND/KEY/` holds the product's files and `artifact.json` (what determines it, notes, seconds and the
checksums of its files), written last. `KEY.partial/` is a product in the making, which a killed run leaves and the next
one continues. `KEY.lock` lets one process make a product while others wait for it (`dfkd.locking`). The command is in
`dfkd.store_command`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.errors import ArtifactError, ConfigError
from dfkd.files import file_checksum, size_text, write_json, write_text
from dfkd.locking import locked

log = logging.getLogger(__name__)

# Raised when a change of the code makes old products wrong for their key. It is part of every key.
VERSION = 4
MANIFEST = "artifact.json"
TOLD = ".older-products-told"


@dataclass(frozen=True)
class Product:
    """What a stage made.

    Attributes:
        kind: what it is, for instance `dreams`.
        key: of what determines it.
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

    def obtain(self, kind: str, determined_by: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Product:
        """The product of `determined_by`, made by `make` unless it is there and whole.

        Args:
            kind: what it is; names its folder.
            determined_by: all that determines it, as plain JSON.
            make: given a folder that may hold what an interrupted call left, it makes the product's files there and
                returns notes as plain JSON.

        Raises:
            ConfigError: it is not there, and the store cannot be written to.
            What `make` raises; the folder then stays for the next call.
        """
        key = product_key(kind, determined_by)
        final = self.root / kind / key
        found = self.named(f"{kind}/{key}")  # without a lock: what is finished never changes
        if found is not None:
            return found
        try:
            self.check_writable()
        except ConfigError as error:
            raise ConfigError(f"{error} It has no whole {kind} of this run.") from error
        final.parent.mkdir(exist_ok=True)

        def wait(holder: str) -> None:
            log.info("%s: %s is making the same one; waiting for it.", kind, holder)

        with locked(final.with_name(f"{key}.lock"), wait) as died:
            found = self._find(kind, key, final)
            if found is not None:
                return found
            if died is not None:
                log.info("%s: %s ended before it had made it; going on from what it left.", kind, died)
            try:
                return self._make(kind, key, determined_by, make)
            except OSError:
                # A file system whose locks do not reach other machines let two of them make it: the first counts.
                found = self.named(f"{kind}/{key}")
                if found is None:
                    raise
                shutil.rmtree(final.with_name(f"{key}.partial"), ignore_errors=True)
                return found

    def _make(
        self, kind: str, key: str, determined_by: dict[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> Product:
        final = self.root / kind / key
        partial = final.with_name(f"{key}.partial")
        partial.mkdir(exist_ok=True)
        clock = _Clock(partial / "seconds")
        with clock:
            notes = make(partial)
        seconds = round(clock.total, 3)
        clock.path.unlink(missing_ok=True)
        for leftover in partial.rglob(".*"):
            leftover.unlink()  # the temporary file of a killed writer
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "version": VERSION,
            "kind": kind,
            "determined_by": determined_by,
            "notes": notes,
            "seconds": seconds,
            "files": {str(path.relative_to(partial)): file_checksum(path) for path in files},
        }
        write_json(partial / MANIFEST, manifest | {"checksum": _digest(manifest)})
        partial.replace(final)
        return Product(kind, key, final, notes, seconds, reused=False)

    def find(self, kind: str, determined_by: dict[str, Any]) -> Product | None:
        """The product of `determined_by`, if it is there and whole; looking removes nothing."""
        return self.named(f"{kind}/{product_key(kind, determined_by)}")

    def named(self, identity: str) -> Product | None:
        """The product `kind/key`, as results name them, if it is there and whole."""
        if re.fullmatch(r"\w+/[0-9a-f]+", identity) is None:  # a name from a file never becomes a path elsewhere
            return None
        kind, _, key = identity.partition("/")
        try:
            return _read(kind, key, self.root / identity)
        except ArtifactError:
            return None

    def _find(self, kind: str, key: str, directory: Path) -> Product | None:
        if not directory.exists():
            return None
        try:
            return _read(kind, key, directory)
        except ArtifactError as error:
            log.warning("%s It is made again.", error)
            shutil.rmtree(directory)
            return None

    def products(self) -> Iterator[tuple[Path, int]]:
        """Every folder of a product, finished or not, and the version of the store that it was made under; 0: unknown.

        No key of one version is a key of another, so products of an older version are never used.
        """
        for directory in sorted(self.root.glob("*/*/")):
            if directory.is_symlink():
                continue  # no product of this store
            if (directory / MANIFEST).is_file():
                yield directory, _version(directory)
            elif directory.suffix == ".partial":
                yield directory, 0

    def older(self) -> list[Path]:
        """Folders of finished products that an older version of the store left."""
        return [directory for directory, version in self.products() if 0 < version < VERSION]

    def tell_of_older(self) -> None:
        """Say once, in the life of this store, that it holds products which are not used any more."""
        marker = self.root / TOLD
        if marker.exists():
            return
        found = self.older()
        if found:
            log.warning(
                "The store %s holds %s of products that an older version made. They are not used: their keys left out "
                "some of what determines them. `dfkd store gc %s --older` lists them, and removes them with --yes.",
                self.root, size_text(sum(map(folder_size, found))), self.root,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # a store that is only read
            marker.touch()


def folder_size(directory: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


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


def product_key(kind: str, determined_by: dict[str, Any], version: int = VERSION) -> str:
    """The key of a product: equal for equal content whatever its order, different for different content."""
    return _digest({"kind": kind, "determined_by": determined_by, "version": version})[:20]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _version(directory: Path) -> int:
    try:
        return int(json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("version", 1))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return 0


def _read(kind: str, key: str, directory: Path) -> Product:
    """The product in a folder (`ArtifactError` where it is not there or not whole)."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
        if checksum != _digest(manifest):
            raise ArtifactError(f"{path} does not match its checksum: it was changed or damaged.")
        if key != product_key(manifest["kind"], manifest["determined_by"], manifest["version"]):
            raise ArtifactError(f"{path} is that of another product: it was moved here.")
        for name, expected in manifest["files"].items():
            file = directory / name
            if not file.resolve().is_relative_to(directory.resolve()) or not file.is_file():
                raise ArtifactError(f"{path} names {name!r}, which is no file of this product.")
            if file_checksum(file) != expected:
                raise ArtifactError(f"{file} does not match its checksum: it was changed or damaged.")
        return Product(kind, key, directory, dict(manifest["notes"]), float(manifest["seconds"]), reused=True)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{directory} is incomplete or damaged ({error}).") from error


class _Clock:
    """Seconds spent on a product over all attempts; what an attempt took is written down even if it fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0.0

    def __enter__(self) -> None:
        self.before, self.started = self._earlier(), time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.total = self.before + time.monotonic() - self.started
        with contextlib.suppress(OSError):  # a full disk costs the count of seconds, and must not hide what it broke
            write_text(self.path, f"{self.total:.3f}")

    def _earlier(self) -> float:
        try:
            return float(self.path.read_text())
        except (OSError, ValueError):  # there is none, or a full disk left it empty: seconds are not worth a run
            return 0.0
