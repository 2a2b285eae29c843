"""Runs the command `dfkd` in a process of its own, forked from one that has imported everything already.

Importing PyTorch, Lightning and the rest takes seconds, which a suite with a hundred runs would spend a hundred times.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before the server imports PyTorch, which then is too late for its children
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dfkd.app", "torchmetrics.functional", "matplotlib.backends.backend_agg"])


def run(
    arguments: list[str], directory: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """`dfkd ARGUMENTS`, standing in `directory`, with further environment variables."""
    with tempfile.TemporaryDirectory() as temporary:
        outputs = [Path(temporary) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_main, args=(arguments, str(directory), environment, list(map(str, outputs))))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        stdout, stderr = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _main(arguments: list[str], directory: str, environment: dict[str, str], outputs: list[str]) -> None:
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(directory)
    os.environ.update(environment)
    sys.argv = ["dfkd", *arguments]

    from dfkd.app import main

    main()
