"""A run's directory: one run at a time, and a result that only a complete successor replaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import QUIET, TINY, command

from dfkd.errors import ConfigError
from dfkd.reporting.reading import read_runs
from dfkd.reporting.run_directory import EXPORTS, RESULT, occupied, publish, runs_under, settled


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the tiny demo ran to its end, in `run`."""
    directory = tmp_path_factory.mktemp("finished")
    command([*TINY, "controls=[]", "run_dir=run"], directory)
    return directory


def state(run: Path) -> dict[str, bytes]:
    """What a run left that belongs to its result."""
    left_out = ("status.json", "dfkd.log", ".lock")
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name not in left_out}


@pytest.mark.parametrize(
    ("options", "status", "returncode"),
    [(["stage=dream"], "finished", 0), (["pruning.amount=1"], "failed", 1), (["stage=dream", "seed=7"], "finished", 0)],
)  # fmt: skip
def test_a_later_attempt_without_a_result_leaves_the_earlier_one(finished, options, status, returncode):
    before = state(finished / "run")
    done = command([*TINY, "controls=[]", "run_dir=run", *options], finished, check=False)
    assert done.returncode == returncode
    assert json.loads((finished / "run" / "status.json").read_text())["status"] == status
    assert state(finished / "run") == before
    assert len(read_runs([finished / "run"]).students) == 1


def test_a_second_run_in_the_same_folder_is_refused_by_name_and_touches_nothing(finished, tmp_path):
    options = [*TINY, "controls=[]", "distillation.updates=3000", f"store={finished}/artifacts", "run_dir=run"]
    first = subprocess.Popen([sys.executable, "-m", "dfkd", *options], cwd=tmp_path, env={**os.environ, **QUIET},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        while not list((finished / "artifacts").glob("recovered/*.partial")):
            assert first.poll() is None
            time.sleep(0.02)
        before = state(tmp_path / "run")
        second = command([*TINY, "seed=1", "run_dir=run"], tmp_path, check=False)
        assert second.returncode == 1
        assert "run_dir must be a folder that no other run is using" in second.stderr
        assert f"process {first.pid} " in second.stderr and "run_dir=..." in second.stderr
        assert state(tmp_path / "run") == before
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 0
        assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "running"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert read_runs([tmp_path]).others["status"].tolist() == ["killed"]
    with occupied(tmp_path / "run"):
        pass  # whoever was killed holds nothing


def test_every_job_of_a_sweep_has_a_folder_of_its_own_whatever_it_sweeps_over(finished, tmp_path):
    options = ["-m", *TINY, "controls=[]", f"store={finished}/artifacts", "run_dir=sweep"]
    for swept in ("trainer.compile=never,auto", "trainer.checkpoint_updates=2,4", "stage=teacher,dream"):
        command([*options, swept], tmp_path)
    assert len(list(tmp_path.glob("sweep/*/status.json"))) == 6
    command([*options, "trainer.compile=never,auto"], tmp_path)
    assert len(list(tmp_path.glob("sweep/*/status.json"))) == 6  # the same command goes on in the same folders


def test_files_of_two_results_never_stand_beside_each_other(tmp_path):
    """A process is killed while it lets a new result take its place: whoever looks next finishes that."""
    run = tmp_path / "run"
    with occupied_for(run) as new:
        for name in ("config.yaml", RESULT, "stream.png"):
            (new / name).write_text("old")
        publish(run)
    for exported in EXPORTS.values():  # students of the old result
        (run / exported).write_text("old")
    with occupied_for(run) as new:
        for name in ("config.yaml", RESULT):
            (new / name).write_text("new")
        new.replace(run / ".complete")  # and here it is killed
    assert (run / RESULT).read_text() == "old"
    assert runs_under(tmp_path) == [run]
    assert settled(run)
    assert {path.name: path.read_text() for path in run.iterdir() if path.name != ".lock"} == {
        "config.yaml": "new", RESULT: "new",
    }  # fmt: skip


class occupied_for:
    """The folder of the next result, in a run's directory that this process has."""

    def __init__(self, run: Path) -> None:
        run.mkdir(exist_ok=True)
        self.run, self.held = run, occupied(run)

    def __enter__(self) -> Path:
        self.held.__enter__()
        (self.run / ".next").mkdir()
        return self.run / ".next"

    def __exit__(self, *_: object) -> None:
        self.held.__exit__(None, None, None)


def test_a_directory_that_is_in_use_names_its_user(tmp_path):
    with occupied(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on "), occupied(tmp_path):
        pass
