"""Runs that are ended from outside, by whatever signal: they say so, and continue to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from conftest import QUIET, TINY, command, result_of, without_training
from safetensors.torch import load_file


def end_when(arguments: list[str], directory: Path, reached, number: int) -> tuple[int, str, float]:
    """Start `dfkd` and send it a signal as soon as `reached()`: its exit code, what it said, and how long it took.

    A run that ends by itself came too late.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "dfkd", *arguments],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **QUIET},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    sent = time.monotonic()
    os.kill(process.pid, number)
    said, _ = process.communicate()
    return process.returncode, said, time.monotonic() - sent


def test_a_run_ended_in_dreaming_in_streaming_and_in_a_control_ends_bit_for_bit_as_an_undisturbed_one(
    finished, tmp_path
):
    weights = next((finished / "artifacts" / "teacher").glob("*/weights.safetensors"))
    options = [
        *without_training(TINY), "teacher=pretrained", f"teacher.weights={weights}", "data=none",
        "inversion.iterations=60",
        "distillation.updates=240", "streaming.every=60", "inversion.competition_weight=1", "run_dir=run",
    ]  # fmt: skip
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    command(options, tmp_path / "whole")
    store = tmp_path / "killed" / "artifacts"
    place = tmp_path / "killed"
    code, _, _ = end_when(options, place, lambda: list(store.glob("dreams/*.partial/batch_00001*")), signal.SIGKILL)
    assert code == -signal.SIGKILL and not list(store.glob("dreams/*/artifact.json"))
    streamed = lambda: list(store.glob("recovered/*.partial/streamed/batch_00001*"))  # noqa: E731
    code, said, _ = end_when(options, place, streamed, signal.SIGTERM)
    assert code == 143 and said.rstrip().endswith("run the same command again to continue."), said
    assert "Traceback" not in said and said.count("SIGTERM") == 1
    assert json.loads((place / "run" / "status.json").read_text())["status"] == "stopped"
    assert list(store.glob("dreams/*/artifact.json")) and not list(store.glob("recovered/*/artifact.json"))
    done = lambda: list(store.glob("recovered/*/artifact.json")) and list(store.glob("recovered/*.partial/*.ckpt"))  # noqa: E731
    code, said, _ = end_when(options, place, done, signal.SIGINT)
    assert code == 130 and "stopped by SIGINT" in said and "Traceback" not in said
    command(options, tmp_path / "killed")

    def products(name: str) -> dict[str, torch.Tensor]:
        root = tmp_path / name / "artifacts"
        files = sorted([*root.glob("dreams/*/*.safetensors"), *root.glob("recovered/**/*.safetensors")])
        return {f"{file.relative_to(root)} {key}": value for file in files for key, value in load_file(file).items()}

    whole, killed = products("whole"), products("killed")
    assert whole.keys() == killed.keys() and len(whole) > 100
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
    assert sum("streamed/" in key and "images" in key for key in whole) == 3
    numbers = ("pruned", "recovered", "controls_agreement", "dreams")
    assert (tmp_path / "killed" / "run" / "stream.png").stat().st_size > 1000
    assert [result_of(tmp_path / "whole")[key] for key in numbers] == [
        result_of(tmp_path / "killed")[key] for key in numbers
    ]
    metrics = [(tmp_path / name / "run" / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]
