"""The directory of a run: one run at a time, and a result that only a complete successor replaces.

A run writes what it finds out into `.next/`. When all of it is there, `result.json` among it, the folder becomes
`.complete/` in one step, and its files take their places; what a killed process left of that is finished by whoever
comes next, run or report. So files of two runs never stand beside each other, and a run that is refused, fails or stops
early leaves an earlier result as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dfkd.errors import ConfigError
from dfkd.files import write_json
from dfkd.locking import is_locked, locked
from dfkd.run_config import load_run_config
from dfkd.store import Product, Store

RESULT = "result.json"
CONFIG = "config.yaml"
COMMAND = "command.txt"
STATUS = "status.json"
LOCK = ".lock"
LOG = "dfkd.log"
ARTIFACTS = "artifacts.json"  # what the run needs of the store, named before it begins
NEXT = ".next"  # what a run finds out until it has a result
COMPLETE = ".complete"  # the same, once it has one, on its way into the folder
BUDGET = "within_seconds.json"
SO_FAR = "so_far.json"  # what is known before there is a result
EXPORTS = {"onnx": "student.onnx", "int8": "student.int8.onnx", "pytorch": "student.pt"}  # what it makes, by format
EXPORT = "export.json"  # what `dfkd export` found out
BENCHMARK = "benchmark.json"  # what `dfkd benchmark` found out
AUDIT = "audit.json"  # what `dfkd audit` found out
AUDIT_PICTURE = "audit.png"
PICTURE = "dreams.png"
STREAM_PICTURE = "stream.png"
SECONDS_TO_SETTLE = 10.0
# An old one must not stand beside a new result.
NOT_IN_EVERY_RESULT = (STREAM_PICTURE, SO_FAR, EXPORT, *EXPORTS.values(), BENCHMARK, AUDIT, AUDIT_PICTURE)


@contextmanager
def occupied(directory: Path) -> Iterator[None]:
    """Within the context the directory belongs to this run alone.

    Raises:
        ConfigError: another run has it.
    """

    def refuse(holder: str) -> None:
        raise ConfigError(
            f"run_dir must be a folder that no other run is using, got {directory} ({holder} is running in it). Wait "
            "for it, or choose another with run_dir=..."
        )

    with locked(directory / LOCK, refuse):
        settle(directory)
        shutil.rmtree(directory / NEXT, ignore_errors=True)
        for left in directory.glob(".*.*.*"):  # by a write that a kill cut short
            left.unlink(missing_ok=True)
        yield


def is_occupied(directory: Path) -> bool:
    """Whether a run is going on in the directory."""
    return is_locked(directory / LOCK)


def publish(directory: Path) -> None:
    """Let the files in `.next/` take the place of an earlier result."""
    (directory / NEXT).replace(directory / COMPLETE)
    settle(directory)


def settled(directory: Path) -> bool:
    """Whether the files in the directory are those of one run; what a killed process left half done is finished."""
    if not (directory / COMPLETE).is_dir():
        return True
    try:
        with FileLock(directory / LOCK, timeout=SECONDS_TO_SETTLE):
            settle(directory)
    except (Timeout, OSError):  # a run is busy with it, or the folder is read-only
        return False
    return True


def settle(directory: Path) -> None:
    """Finish what a killed `publish` began; for whoever has the directory."""
    complete = directory / COMPLETE
    if not complete.is_dir():
        return
    for name in NOT_IN_EVERY_RESULT:
        if not (complete / name).exists():
            (directory / name).unlink(missing_ok=True)
    for path in sorted(complete.iterdir()):
        path.replace(directory / path.name)
    complete.rmdir()


def write_status(directory: Path, status: str, **more: Any) -> None:
    """Say what became of the last attempt at a run; an earlier result does not depend on it."""
    write_json(directory / STATUS, {"status": status, **more})


def is_untouched(directory: Path) -> bool:
    """Whether nothing is in the directory but what shows that this run has it."""
    return {path.name for path in directory.iterdir()} <= {LOCK, ".holder"}


def abandon(directory: Path) -> None:
    """Remove the directory of a run that began nothing, unless there is more in it than an attempt leaves."""
    for name in (STATUS, LOG, LOCK, ".holder"):
        (directory / name).unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()


def runs_under(folder: Path) -> list[Path]:
    """The folders of runs within a folder, sorted, whether or not they have a result."""
    places = {path.parent for name in (STATUS, RESULT, ARTIFACTS) for path in folder.rglob(name)}
    return sorted({place.parent if place.name in (NEXT, COMPLETE) else place for place in places})


def product_of(directory: Path, stage: str, store: Path | None = None) -> Product:
    """What a stage of a run made, from the store that the run kept it in.

    Args:
        directory: of the run, finished or up to that stage.
        stage: its name, for instance `dream`.
        store: where the products are; None: the `store` of the run's `config.yaml`, as seen from the current folder.

    Raises:
        ConfigError: there is no such run, or the product is not in the store.
    """
    names = directory / (RESULT if (directory / RESULT).is_file() else ARTIFACTS)
    for needed in (names, directory / CONFIG):
        if not needed.is_file():
            raise ConfigError(f"run must be the directory of a run, got {directory}: it has no {needed.name}.")
    try:
        content = json.loads(names.read_text(encoding="utf-8"))
        identity = str((content["artifacts"] if names.name == RESULT else content)[stage])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{names} must name what the run made, but cannot be read ({error!r}).") from error
    place = store or Path(str(load_run_config(directory / CONFIG).store))
    found = Store(place).named(identity)
    if found is None:
        raise ConfigError(f"store must hold {identity}, of {directory}, got {place}. Give the store's folder.")
    return found
