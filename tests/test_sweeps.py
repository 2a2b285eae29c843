"""A sweep gives the same results whatever starts its jobs, and each teacher and each bank of dreams is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import QUIET, command
from experiments import LEARNING, SMALLEST

SWEEP = ["-m", *SMALLEST, *LEARNING, "controls=[]", "pruning.amount=0.5,0.9", "run_dir=sweep"]
RAY = [
    "hydra.launcher.ray.init.address=null",
    "hydra.launcher.ray.remote.num_cpus=1",
    "hydra.launcher.ray.remote.num_gpus=0",
]
LAUNCHERS = {
    "hydra_joblib_launcher": ["hydra/launcher=workstation"],
    "hydra_submitit_launcher": ["hydra/launcher=submitit_local"],
    "hydra_ray_launcher": ["hydra/launcher=ray_cluster", *RAY, "+hydra.launcher.ray.init.num_cpus=2"],
}


SHARED = ("timing", "reused", "seconds_of_this_run", "data")  # `data` says what a run opened images for


def results(directory: Path) -> list[dict]:
    """What the runs of a sweep found, but for what may differ: seconds, and who made what they share."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("sweep/*/result.json"))]
    return [{key: value for key, value in result.items() if key not in SHARED} for result in found]


def sweep(directory: Path, *options: str) -> None:
    """The sweep in a process as a user starts it: launchers start processes of their own from it."""
    done = subprocess.run(
        [sys.executable, "-m", "dfkd", *SWEEP, *options], cwd=directory, env={**os.environ, **QUIET}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[dict]:
    """The results of the sweep with its jobs one after the other."""
    directory = tmp_path_factory.mktemp("plain")
    sweep(directory)
    return results(directory)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", LAUNCHERS)
def test_a_sweep_is_the_same_whatever_starts_its_jobs(plugin, plain, tmp_path):
    pytest.importorskip(f"hydra_plugins.{plugin}")
    sweep(tmp_path, *LAUNCHERS[plugin])
    assert len(plain) == 2 and results(tmp_path) == plain
    for kind in ("teacher", "dreams"):
        assert len(list(tmp_path.glob(f"artifacts/{kind}/*/artifact.json"))) == 1


@pytest.mark.slow
def test_a_search_takes_the_best_agreement_and_the_same_trials_again(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rates = "distillation.learning_rate=tag(log, interval(0.0001, 0.01))"
    options = [option for option in SWEEP if not option.startswith("pruning.amount")]
    search = [*options, "pruning.amount=0.9", "hydra/sweeper=search", "hydra.sweeper.n_trials=3", rates]
    command(search, tmp_path)
    found = {path: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/result.json")}
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert len(found) == 3
    assert best["best_value"] == max(result["recovered"]["agreement"] for result in found.values())
    command(search, tmp_path)
    assert set(tmp_path.glob("sweep/*/result.json")) == set(found)
    assert all("recover" in json.loads(path.read_text())["reused"] for path in found)


MISSING = {
    "hydra_ray_launcher": ("hydra/launcher=ray_cluster", "ray"),
    "hydra_optuna_sweeper": ("hydra/sweeper=search", "optuna"),
}


@pytest.mark.parametrize("plugin", MISSING)
def test_a_plugin_that_is_not_installed_is_an_extra(plugin, tmp_path):
    if find_spec(f"hydra_plugins.{plugin}") is not None:
        pytest.skip("needs to lack a plugin")
    option, extra = MISSING[plugin]
    failed = command([*SWEEP, option], tmp_path, check=False)
    assert failed.returncode and f"pip install 'dfkd[{extra}]'" in failed.stderr
