"""Twenty kills at random moments: a run that is killed and continued ends, bit by bit, as one that nobody disturbed.

    make chaos

Each of `JOBS` runs once undisturbed. Then it runs again in a folder and a store of its own, and its whole process group
is sent SIGKILL at moments that a seed draws evenly over the time that the undisturbed run took, continued each time by
the same command. What it leaves must equal what the undisturbed run left: every product of the store, the student, the
pictures, `metrics.csv` and `result.json`, all but the seconds and what the last process found made (`reused`) or had to
open itself (`opened_for`). The same with SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dfkd.app", "torchmetrics.functional", "matplotlib.backends.backend_agg"])

DEMO = ["experiment=demo", "trainer.accelerator=cpu"]
JOBS = {
    "recovery": DEMO,
    "streaming transfer": [
        *DEMO, "task=transfer", "controls=[]", "distillation=transfer", "distillation.updates=300",
        "streaming.every=60", "inversion.competition_weight=1",
    ],
}  # fmt: skip
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
SAID = "said.txt"  # by all attempts
NOT_COMPARED = re.compile(
    r"said\.txt|dfkd\.log|command\.txt|.*\.(lock|holder)|\..*-told|(status|so_far)\.json"
)  # what is told of attempts
NOT_OF_THE_RESULT = re.compile(r"seconds.*|timing|checksum|reused|opened_for")


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run left, and the seconds that it took to begin its work, and in all."""

    content: dict[str, Any]
    begun: float
    seconds: float


def start(options: Sequence[str], directory: Path) -> BaseProcess:
    """`dfkd` with these options, standing in `directory`, in a process group of its own.

    Its process is forked from one that has imported everything: no time goes into kills in the middle of imports.
    """
    directory.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=_main, args=([*options, "run_dir=run", "store=artifacts"], str(directory)))
    process.start()
    return process


def _main(options: list[str], directory: str) -> None:
    os.setsid()
    os.chdir(directory)
    said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())
    sys.argv = ["dfkd", *options]

    from dfkd.app import main

    main()


def undisturbed(options: Sequence[str], directory: Path) -> Whole:
    """One run from the beginning to the end."""
    begin = time.monotonic()
    process = start(options, directory)
    while process.is_alive() and not stages_in_hand(directory):
        time.sleep(0.01)
    begun = time.monotonic() - begin
    finish(process, directory)
    return Whole(content(directory), begun, time.monotonic() - begin)


def finish(process: BaseProcess, directory: Path) -> None:
    """Wait for a run, which must end well."""
    process.join()
    if process.exitcode:
        raise SystemExit(f"The run ended with exit code {process.exitcode}:\n{(directory / SAID).read_text()}")


def disturbed(
    options: Sequence[str], directory: Path, whole: Whole, kills: int, number: signal.Signals, moments: random.Random
) -> tuple[dict[str, Any], Counter[str]]:
    """The same run, killed so many times and continued: what it left, and how often which stage was in hand.

    A run that came to its end before its kill is started again: then it is killed while it looks up what it has, or
    writes its result anew.
    """
    hit: Counter[str] = Counter()
    at = sorted(moments.uniform(0, whole.seconds) for _ in range(kills))
    lives = [now - before for before, now in zip([0.0, *at], at, strict=False)]
    last = whole.seconds
    while sum(hit.values()) < kills:
        wait = whole.begun + lives.pop(0) if lives else moments.uniform(0, last)
        begin, process = time.monotonic(), start(options, directory)
        process.join(wait)
        if process.exitcode is None:
            hit[stages_in_hand(directory) or "between stages"] += 1
            send(process, number)
            process.join()
            if process.exitcode in (-number, 128 + number):
                continue
        finish(process, directory)
        last = time.monotonic() - begin  # of a run that finds all that it needs
    finish(start(options, directory), directory)
    return content(directory), hit


def send(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a run's process group; right after its start it has none yet."""
    try:
        os.killpg(cast(int, process.pid), number)
    except ProcessLookupError:
        os.kill(cast(int, process.pid), number)


def stages_in_hand(directory: Path) -> str:
    """Kinds of the products that are begun and not finished."""
    return ", ".join(sorted(path.parent.name for path in directory.glob("artifacts/*/*.partial")))


def content(directory: Path) -> dict[str, Any]:
    """All that a run left in its folder and its store, by path."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not NOT_COMPARED.fullmatch(path.name):
            name = str(path.relative_to(directory))
            found[name] = lasting(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
    return found


def lasting(value: Any) -> Any:
    """JSON without what depends on who made it, and how fast."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if not NOT_OF_THE_RESULT.fullmatch(key)}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths whose content differs, or that only one has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    """Kill and compare; the exit code says whether all was equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    parsed = parser.parse_args()
    differ = False
    with tempfile.TemporaryDirectory() as temporary:
        for job in parsed.jobs:
            whole = undisturbed(JOBS[job], Path(temporary) / job / "whole")
            print(f"{job}: undisturbed, {whole.seconds:.0f} s, {len(whole.content)} files", flush=True)
            for name in parsed.signals:
                begin, place = time.monotonic(), Path(temporary) / job / name
                left, hit = disturbed(
                    JOBS[job], place, whole, parsed.kills, SIGNALS[name], random.Random(f"{parsed.seed} {job} {name}")
                )
                wrong = differences(whole.content, left)
                differ = differ or bool(wrong)
                where = ", ".join(f"{stage} {times}" for stage, times in hit.most_common())
                print(
                    f"{job}: {parsed.kills} x {name} in {time.monotonic() - begin:.0f} s, in hand: {where}", flush=True
                )
                print(f"  DIFFERENT: {', '.join(wrong)}" if wrong else "  all files bit-identical", flush=True)
    sys.exit(differ)


if __name__ == "__main__":
    main()
