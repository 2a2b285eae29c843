"""Fitting a module by a Lightning trainer that continues from its last checkpoint, exactly."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import Strategy

from dfkd.errors import ConfigError, WeightsError, require
from dfkd.models.depthwise import strided_depthwise_in_float32
from dfkd.models.freezing import channels_last_for_training
from dfkd.models.weight_files import require_no_zip_bomb
from dfkd.training.data import SeededDataModule
from dfkd.training.launched import LaunchedRanks, launcher, on_all_ranks
from dfkd.training.metrics import Metrics, step_of
from dfkd.training.module import SeededTraining
from dfkd.training.processes import IndependentRanks, JointRanks, other_processes, quiet_lightning
from dfkd.training.progress import Progress
from dfkd.training.ranks import require_equal_shares

log = logging.getLogger(__name__)

CHECKPOINT = "resume.ckpt"
UNREADABLE = (
    WeightsError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed")
COMPILE = ("auto", "always", "never")


@dataclass(frozen=True)
class TrainerOptions:
    """Where and how precisely to compute.

    Attributes:
        accelerator: `auto`, `cpu`, `gpu` (`cuda`) or `mps`.
        device: index of the accelerator's device.
        devices: devices of each machine that train a network together, from `device` on; on a CPU, processes. Every
            batch is divided among them, and what comes out is what one device gives, but for rounding.
        num_nodes: machines that do.
        dream_devices: devices that share the making of dreams, from `device` on; on a CPU, processes.
        precision: `32-true`, or `bf16-mixed` (weights, images and statistics stay in float32).
        compile: whether inversion goes through `torch.compile`: `auto` (where it saves more time than it costs),
            `always` or `never`.
        num_workers: processes that read real images; dreams need none.
        checkpoint_updates: optimiser steps between the checkpoints that an interrupted training continues from.
        checkpoint_seconds: seconds between those that an interrupted batch of dreams continues from; more where writing
            one takes long.
    """

    accelerator: str = "auto"
    device: int = 0
    devices: int = 1
    num_nodes: int = 1
    dream_devices: int = 1
    precision: str = "32-true"
    compile: str = "auto"
    num_workers: int = 0
    checkpoint_updates: int = 50
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        require(self.accelerator in ACCELERATORS, "trainer.accelerator", self.accelerator, f"one of {ACCELERATORS}")
        require(self.precision in PRECISIONS, "trainer.precision", self.precision, f"one of {PRECISIONS}")
        require(self.num_workers >= 0, "trainer.num_workers", self.num_workers, "0 or more")
        require(self.checkpoint_updates >= 1, "trainer.checkpoint_updates", self.checkpoint_updates, "1 or more")
        require(self.checkpoint_seconds >= 0, "trainer.checkpoint_seconds", self.checkpoint_seconds, "0 or more")
        require(self.device >= 0, "trainer.device", self.device, "0 or more")
        require(self.devices >= 1, "trainer.devices", self.devices, "1 or more")
        require(self.num_nodes >= 1, "trainer.num_nodes", self.num_nodes, "1 or more")
        require(self.dream_devices >= 1, "trainer.dream_devices", self.dream_devices, "1 or more")
        require(self.compile in COMPILE, "trainer.compile", self.compile, f"one of {COMPILE}")

    def torch_device(self) -> torch.device:
        """The device that the trainer will use (`ConfigError` where this machine has none such)."""
        try:
            return Fabric(accelerator=self.accelerator, devices=self._devices()).device
        except (RuntimeError, MisconfigurationException) as error:
            asked = f"trainer.accelerator={self.accelerator} and trainer.device={self.device}"
            raise ConfigError(f"{asked} must be what this machine has, but: {error}") from error

    @property
    def ranks(self) -> int:
        """How many processes train a network together."""
        return self.devices * self.num_nodes

    @property
    def spawned(self) -> bool:
        """Whether each training is done by processes of its own."""
        return self.ranks > 1 and launcher() is None

    def check_ranks(self) -> None:
        """Raise `ConfigError` unless the devices that shall train together are there."""
        environment = launcher()
        if environment is not None:
            started, asked = environment.world_size(), f"{self.devices} x {self.num_nodes}"
            require(
                self.ranks == started, "trainer.devices x trainer.num_nodes", asked, f"the {started} ranks launched"
            )
            require(self.dream_devices == 1, "trainer.dream_devices", self.dream_devices, "1 with launched ranks")
        elif self.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes must be 1 where one process is started, got {self.num_nodes}: torchrun or SLURM "
                "start the ranks of several machines (docs/runs.md)."
            )
        if self.ranks == 1:
            return
        require(self.accelerator != "mps", "trainer.accelerator", self.accelerator, "cpu or gpu with several devices")
        if not self._on_cpu:
            found = max(0, torch.cuda.device_count() - self.device)
            require(self.devices <= found, "trainer.devices", self.devices, f"at most {found} here")

    @property
    def _on_cpu(self) -> bool:
        return self.accelerator == "cpu" or (self.accelerator == "auto" and not torch.cuda.is_available())

    def _devices(self, ranks: int = 1) -> int | list[int]:
        return ranks if self._on_cpu else list(range(self.device, self.device + ranks))

    def make_trainer(
        self, callbacks: Sequence[Callback] = (), ranks: int = 1, strategy: Strategy | None = None, **arguments: Any
    ) -> lightning.Trainer:
        """A silent Lightning trainer without loggers (see `Metrics`), for so many of this machine's devices.

        Without a `strategy` they never wait for each other.
        """
        if ranks > 1 and strategy is None:
            strategy = IndependentRanks(start_method="spawn")
        if not isinstance(strategy, LaunchedRanks):  # a launcher's environment is for training alone
            arguments["plugins"] = LightningEnvironment()
        with quiet_lightning():  # it would say which accelerators there are, and advertise
            return lightning.Trainer(
                accelerator=self.accelerator,
                devices=self._devices(ranks),
                precision=self.precision,  # type: ignore[arg-type]
                logger=False,
                callbacks=list(callbacks),
                strategy=strategy or "auto",
                use_distributed_sampler=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **{"enable_checkpointing": False, **arguments},
            )


@dataclass(frozen=True)
class Workplace:
    """Where something is made: what may change how long that takes and what is shown of it, but not what comes out.

    Attributes:
        directory: where files go, and where an interrupted call left its own.
        options: where to compute.
        metrics: told the curves.
        name: of what is made, in logs.
    """

    directory: Path
    options: TrainerOptions = field(default_factory=TrainerOptions)
    metrics: Metrics = field(default_factory=Metrics)
    name: str = "train"


def fit(
    module: SeededTraining, data: SeededDataModule, workplace: Workplace, callbacks: Sequence[Callback] = ()
) -> list[dict[str, float]]:
    """Train `module` for its recipe's updates, continuing from the checkpoint in the workplace if there is one.

    A checkpoint is taken every `options.checkpoint_updates` steps; the last is removed when training is done. The
    caller's random state and the network's device are left as they were.

    Returns:
        The history of the training: rows of `update` and the losses.
    """
    recipe, options, directory = module.recipe, workplace.options, workplace.directory
    saver = ModelCheckpoint(
        directory,
        filename=Path(CHECKPOINT).stem,
        every_n_train_steps=options.checkpoint_updates,
        enable_version_counter=False,
    )
    if options.ranks > 1:
        require_equal_shares(f"{recipe.group}.batch_size", data.batch_size, options.ranks)
    checkpoint, done, history = _usable_checkpoint(directory)
    workplace.metrics.replay(workplace.name, history)
    home = next(module.parameters()).device
    with Progress(workplace.name, recipe.updates, "updates", done=done) as progress:

        def on_row(row: dict[str, float]) -> None:
            workplace.metrics.log(workplace.name, step_of(row), row)
            if "total" in row:
                progress.advance(step_of(row) - progress.done, f"loss {row['total']:.4g}")

        module.on_row, module.name = on_row, workplace.name
        with torch.random.fork_rng(), ExitStack() as held:
            for network in module.networks:
                held.enter_context(channels_last_for_training(network, data.example()))
                held.enter_context(strided_depthwise_in_float32(network))
            if options.spawned:
                callbacks = [*callbacks, held.enter_context(other_processes(module, data))]
            training = partial(_train, module, data, [*callbacks, saver], options, checkpoint)
            if options.ranks > 1 and not options.spawned:
                on_all_ranks(training)
            else:
                training()
    module.to(home)
    (directory / CHECKPOINT).unlink(missing_ok=True)
    return module.history


def _train(
    module: SeededTraining,
    data: SeededDataModule,
    callbacks: Sequence[Callback],
    options: TrainerOptions,
    checkpoint: str | None,
) -> None:
    """Fit `module`: what every rank does that a launcher started, and otherwise the caller alone."""
    strategy: Strategy | None = None
    if options.ranks > 1:
        strategy = JointRanks() if options.spawned else LaunchedRanks()
    with quiet_lightning():
        trainer = options.make_trainer(
            callbacks, options.devices, strategy, num_nodes=options.num_nodes, enable_checkpointing=True,
            max_steps=module.recipe.updates, max_epochs=1,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


def _usable_checkpoint(directory: Path) -> tuple[str | None, int, list[dict[str, float]]]:
    """The checkpoint to continue from, the updates it holds and their history; (None, 0, []) where none can be read."""
    path = directory / CHECKPOINT
    if not path.exists():
        return None, 0, []
    try:
        require_no_zip_bomb(path, CHECKPOINT)
        kept = torch.load(path, map_location="cpu", weights_only=True)
        done, history = kept["global_step"], kept["history"]
    except UNREADABLE as error:
        log.warning("The checkpoint %s is damaged (%s); this training starts again.", path, error)
        path.unlink()
        return None, 0, []
    return str(path), done, history
