"""Inverting a teacher into a bank of dreams, continuing one that was begun."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.errors import InversionError, require
from dfkd.inversion.engine import OnCheck
from dfkd.inversion.module import InversionModule, logged
from dfkd.inversion.plan import plan_batches
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec
from dfkd.training.fit import TrainerOptions, quiet_lightning
from dfkd.training.progress import Progress

ALONE = "1 with inversion.feature_history, which makes batches one after the other"


def fill_bank(
    teacher: nn.Module,
    recipe: InversionRecipe,
    spec: InputSpec,
    seed: int,
    directory: Path,
    options: TrainerOptions,
    student: nn.Module | None = None,
    loggers: Sequence[Logger] = (),
    earlier: Dreams | None = None,
) -> tuple[Dreams, list[dict[str, Any]]]:
    """Make the batches that the bank in `directory` lacks, and load all of it.

    Each batch depends on the teacher, the recipe and (seed, its index) alone, and where the recipe says so on the
    batches before it, or on `earlier` dreams of the same teacher: a bank that was interrupted, or shared by several
    devices, ends as one that was not.

    Returns:
        The dreams, and the course of their inversion: rows of batch, iteration and the terms' values.

    Raises:
        ModelError: the teacher has no batch norm.
        ConfigError: devices are to share batches of which each needs those before it.
        InversionError: a batch's loss was not finite, or a process died; finished batches stay in the bank.
    """
    require_batch_norm(teacher)
    if recipe.feature_history:
        require(options.dream_devices == 1, "trainer.dream_devices", options.dream_devices, ALONE)
    bank = DreamBank(directory)
    plan = plan_batches(recipe, spec.num_classes, seed)
    missing = bank.missing(len(plan))
    if missing:
        ranks = min(options.dream_devices, len(missing))
        module = InversionModule(
            teacher,
            recipe,
            bank,
            spec,
            [plan[number] for number in missing],
            len(plan),
            student,
            options.compile,
            earlier=earlier,
        )
        total = len(plan) * recipe.total_iterations
        with Progress("dream", total, "iterations", done=total - len(missing) * recipe.total_iterations) as progress:
            if ranks == 1:
                module.on_check = _counted(progress, recipe)
                _fit(module, options.make_trainer(loggers, max_epochs=1))
            else:
                with _watching(bank, missing, recipe, progress):
                    _fit(module, options.make_trainer(max_epochs=1, ranks=ranks))
    dreams, history = bank.load(len(plan), recipe.num_held_out)
    if missing and ranks > 1:  # the ranks are processes of their own, which the loggers do not reach
        for row in history:
            if row["batch"] in missing:
                values = {name: value for name, value in row.items() if name != "batch"}
                for logger in loggers:
                    logger.log_metrics(*logged(recipe, row["batch"], values))
    return dreams, history


def _fit(module: InversionModule, trainer: Trainer) -> None:
    home = next(module.teacher.parameters()).device
    try:
        with torch.random.fork_rng(), quiet_lightning():
            trainer.fit(module)
    except ProcessExitedException as error:
        raise InversionError(
            f"A process that was making dreams died ({error}). Finished batches are kept: run the same again to "
            "continue, with a lower trainer.dream_devices if memory ran out."
        ) from error
    except ProcessRaisedException as error:
        raise InversionError(f"A process that was making dreams failed: {str(error).strip()}") from error
    finally:
        module.release()
        module.teacher.to(home)


def _counted(progress: Progress, recipe: InversionRecipe) -> OnCheck:
    reached = 0

    def on_check(iteration: int, terms: dict[str, float]) -> None:
        nonlocal reached
        progress.advance(iteration - reached, f"loss {terms['total']:.4g}")
        reached = iteration % recipe.total_iterations

    return on_check


@contextmanager
def _watching(bank: DreamBank, missing: Sequence[int], recipe: InversionRecipe, progress: Progress) -> Iterator[None]:
    """Count the batches that other processes finish."""
    stop = threading.Event()

    def watch() -> None:
        waiting = list(missing)
        while not stop.wait(1.0):
            for number in [number for number in waiting if bank.path(number).exists()]:
                waiting.remove(number)
                progress.advance(recipe.total_iterations)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
