"""`dfkd store ls|du|gc [STORE]`: what a store holds, how large it is, and what no run refers to.

A run refers to the products that its `result.json` names, and from its beginning on to all that it will need
(`artifacts.json`). What it has in the making is named as well, so that a run that was killed can be continued.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dfkd.errors import ConfigError
from dfkd.files import size_text
from dfkd.locking import locked
from dfkd.reporting.run_directory import ARTIFACTS, COMPLETE, NEXT, RESULT, runs_under
from dfkd.store import VERSION, Store, folder_size


@dataclass(frozen=True)
class Entry:
    """The folder of a product.

    Attributes:
        directory: where it is.
        state: `finished`, `unfinished`, or `of an older version`.
        size: of its files, in bytes.
        age: seconds since it was touched last.
        runs: those that refer to it.
    """

    directory: Path
    state: str
    size: int
    age: float
    runs: Sequence[Path]

    @property
    def kind(self) -> str:
        """Of the product."""
        return self.directory.parent.name

    @property
    def key(self) -> str:
        """Of the product, whether it is finished or not."""
        return self.directory.name.removesuffix(".partial")


def entries(store: Store, runs: Sequence[Path]) -> list[Entry]:
    """All products of a store, finished or not; references are those of the runs under some folders.

    Raises:
        ConfigError: a run does not say what it refers to.
    """
    referring = _references(runs)
    found = []
    for directory, version in store.products():
        state = "unfinished" if not version else "finished" if version == VERSION else "of an older version"
        age = max(0.0, time.time() - directory.stat().st_mtime)  # not below 0 where a clock went back
        identity = f"{directory.parent.name}/{directory.name.removesuffix('.partial')}"
        found.append(Entry(directory, state, folder_size(directory), age, referring.get(identity, [])))
    return found


def _references(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs under some folders by the products that they refer to."""
    found: dict[str, list[Path]] = {}
    for run in (run for folder in folders for run in runs_under(folder)):
        files = [place / name for place in (run, run / NEXT, run / COMPLETE) for name in (RESULT, ARTIFACTS)]
        for identity in dict.fromkeys(identity for file in files for identity in _named(file)):
            found.setdefault(identity, []).append(run)
    return found


def _named(path: Path) -> list[str]:
    """The products that a run's file names."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return [str(identity) for identity in (content["artifacts"] if path.name == RESULT else content).values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} must say what its run needs of the store, but it cannot be read ({error!r}). Repair it, or remove "
            "the run's folder if the run is not wanted any more."
        ) from error


def remove(entry: Entry) -> bool:
    """Remove a product, unless a process is making it; what is left of it at any moment is never taken for one."""
    lock = entry.directory.with_name(f"{entry.key}.lock")
    try:
        with locked(lock, _refuse):
            partial = entry.directory.with_name(f"{entry.key}.partial")
            if entry.directory != partial:
                shutil.rmtree(partial, ignore_errors=True)
                entry.directory.replace(partial)  # in one step from a whole product to none
            shutil.rmtree(partial)
            lock.unlink(missing_ok=True)
    except _InTheMaking:
        return False
    return True


class _InTheMaking(Exception):
    """A process has the product's lock."""


def _refuse(holder: str) -> None:
    raise _InTheMaking(holder)


def _ls(found: Sequence[Entry]) -> None:
    table = Table()
    for column in ("kind", "key", "state", "age", "size", "run"):
        table.add_column(column, justify="right" if column in ("age", "size") else "left", overflow="fold")
    for entry in found:
        more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
        run = f"{entry.runs[0]}{more}" if entry.runs else ""
        table.add_row(entry.kind, entry.key, entry.state, _age(entry.age), size_text(entry.size), run)
    Console(width=None if Console().is_terminal else 150).print(table)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _du(found: Sequence[Entry]) -> None:
    sizes: dict[str, list[int]] = {}
    for entry in found:
        label = entry.kind if entry.state == "finished" else f"{entry.kind}, {entry.state}"
        sizes.setdefault(label, []).append(entry.size)
    for label, each in sorted(sizes.items()):
        print(f"{label}: {len(each)}, {size_text(sum(each))}")
    print(f"In all: {len(found)}, {size_text(sum(entry.size for entry in found))}")


def _gc(found: Sequence[Entry], store: Path, yes: bool) -> None:
    if not yes:
        _ls(found)
        print(
            f"{len(found)} products, {size_text(sum(entry.size for entry in found))}. Nothing was removed: add --yes."
        )
        return
    freed = [entry.size for entry in found if remove(entry)]
    print(f"Removed {len(freed)} products, {size_text(sum(freed))}, from {store}.")
    if len(freed) < len(found):
        print(f"{len(found) - len(freed)} are in the making and were left.")


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd store`."""
    default = os.environ.get("DFKD_STORE", "artifacts")
    parser = argparse.ArgumentParser(prog="dfkd store", description="What a store holds, and what no run refers to.")
    parser.add_argument("verb", choices=("ls", "du", "gc"), help="list; sizes; what no run refers to")
    parser.add_argument(
        "store", type=Path, nargs="?", default=Path(default), metavar="STORE", help=f"default: {default}"
    )
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help="folders of runs (default: runs)"
    )
    parser.add_argument("--older", action="store_true", help="gc: what older versions left and no run ever takes")
    parser.add_argument("--yes", action="store_true", help="gc: remove what it lists")
    parsed = parser.parse_args(arguments)
    if not parsed.store.is_dir():
        raise ConfigError(f"dfkd store: STORE must be a folder, got {parsed.store}, which is not there.")
    by_reference = parsed.verb == "gc" and not parsed.older
    for folder in parsed.runs if by_reference else ():
        if not runs_under(folder):  # what the runs that are meant refer to would seem to be unused
            raise ConfigError(f"--runs must be folders with runs, got {folder}, where there is none.")
    found = entries(Store(parsed.store), parsed.runs)
    if parsed.verb == "ls":
        _ls(found)
    elif parsed.verb == "du":
        _du(found)
    elif parsed.older:
        _gc([entry for entry in found if entry.state == "of an older version"], parsed.store, parsed.yes)
    else:
        _gc([entry for entry in found if not entry.runs], parsed.store, parsed.yes)
