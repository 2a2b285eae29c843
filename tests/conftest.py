"""Fixtures shared by all tests: small networks, the command, and what lies beside the repository."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import lightning
import pytest
import running
import torch
from payload import RAN
from torch import nn

from dfkd.models import CifarResNet, InputSpec

SHARED = Path(__file__).resolve().parents[2] / "shared"


torch.set_num_threads(1)  # the networks here are too small for more
os.environ.pop("DFKD_STORE", None)  # a store of the user's own is not for tests
os.environ["DFKD_CACHE"] = os.devnull + "/none"  # nor is a cache: this one cannot be written


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def spec() -> InputSpec:
    return InputSpec((1, 8, 8), 10, (0.305,), (0.376,))


@pytest.fixture
def teacher() -> nn.Module:
    """A small network whose batch-norm statistics are not those of its initialisation."""
    model = CifarResNet(8, num_classes=10, in_channels=1, width=4)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(64, 1, 8, 8))
    return model.eval()


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder {SHARED.name} beside the repository")
    return SHARED


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Gives a folder on a file system of its own with so much room, for instance `8m`."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / "small_disk"
        place.mkdir()
        _mount(["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)])
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def read_only() -> Callable[[Path], AbstractContextManager[None]]:
    """Makes a folder read-only within a context, for root as well."""

    @contextmanager
    def mounted(directory: Path) -> Iterator[None]:
        _mount(["--bind", str(directory), str(directory)])
        try:
            _mount(["-o", "remount,ro,bind", str(directory)])
            yield
        finally:
            subprocess.run(["umount", str(directory)], check=True)

    return mounted


def _mount(arguments: list[str]) -> None:
    done = subprocess.run(["mount", *arguments], text=True, capture_output=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


LARGE = ("resnet34", "resnet50", "wide_resnet50_2", "vgg19_bn", "efficientnet_b0")


def large_ones_are_slow(names):
    """The names of networks, those that take long behind the marker: others have the same layers."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in names]


class Interrupted(Exception):
    """A training was stopped on purpose."""


class Interrupt(lightning.Callback):
    """Stops a training before update `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at:
            raise Interrupted


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    """The test stands in a folder of its own, in which a payload would leave its trace."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(RAN).exists()


QUIET = {"WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}

# The demo at a size that takes seconds: up to the dreams, for all tasks; for those with a student; and recovery.
DREAMS = [
    "experiment=demo",
    "model.depth=8",
    "+model.width=8",
    "teacher.training.updates=60",
    "inversion.num_images=48",
    "inversion.num_held_out=16",
    "inversion.batch_size=16",
    "inversion.iterations=8",
    "inversion.restarts=1",
    "trainer.checkpoint_updates=3",
    "trainer.accelerator=cpu",
]
LEARNING = [*DREAMS, "distillation.updates=12", "distillation.batch_size=16"]
TINY = [*LEARNING, "pruning.amount=0.9"]


def without_training(options: list[str]) -> list[str]:
    """The options for a teacher whose weights are given."""
    return [option for option in options if not option.startswith("teacher.training")]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which the tiny demo ran to its end, in `run`."""
    directory = tmp_path_factory.mktemp("finished")
    done = command([*TINY, "run_dir=run"], directory)
    (directory / "printed.txt").write_text(done.stdout)
    (directory / "errors.txt").write_text(done.stderr)
    return directory


def result_of(directory: Path, run: str = "run") -> dict:
    return json.loads((directory / run / "result.json").read_text())


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """A folder in which a multirun over three amounts and two seeds ran, in `sweep`."""
    directory = tmp_path_factory.mktemp("sweep")
    command(["-m", *TINY, "pruning.amount=0.5,0.8,0.9", "seed=0,1", "run_dir=sweep"], directory)
    return directory


def command(
    arguments: list[str],
    directory: Path,
    check: bool = True,
    timeout: float = 300,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `dfkd ARGUMENTS` in a process of its own, standing in `directory`, with further environment variables."""
    done = running.run(arguments, directory, {**QUIET, **(environment or {})}, timeout)
    if check and done.returncode:
        pytest.fail(f"dfkd {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    return done
