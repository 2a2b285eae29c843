"""Inverting a teacher into a bank of dreams, continuing one that was begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import ClusterEnvironment
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.errors import ConfigError, InversionError, require
from dfkd.inversion.module import InversionModule, OnBatchCheck
from dfkd.inversion.plan import plan_batches
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec
from dfkd.training.fit import TrainerOptions, Workplace
from dfkd.training.launched import launcher, on_all_ranks, wait_for_all_ranks
from dfkd.training.metrics import SHOWN
from dfkd.training.processes import quiet_lightning
from dfkd.training.progress import Progress

MOST_PICTURES = 20  # that loggers are sent of a bank on its way
ALONE = "1 with inversion.feature_history, which makes batches one after the other"


def fill_bank(
    teacher: nn.Module,
    recipe: InversionRecipe,
    spec: InputSpec,
    seed: int,
    workplace: Workplace,
    earlier: Dreams | None = None,
) -> tuple[Dreams, list[dict[str, Any]]]:
    """Make the batches that the bank in the workplace lacks, and load all of it.

    Each batch depends on the teacher, the recipe and (seed, its index) alone, and where the recipe says so on the
    batches before it, or on `earlier` dreams of the same teacher: a bank that was interrupted, or shared by several
    devices, ends as one that was not.

    Returns:
        The dreams, and the history of their inversion: rows of step, batch, iteration and the terms' values.

    Raises:
        ModelError: the teacher has no batch norm.
        ConfigError: devices are to share batches of which each needs those before it.
        InversionError: a batch's loss was not finite, or a process died; finished batches stay in the bank.
    """
    require_batch_norm(teacher)
    recipe = recipe.fitted(spec.image_shape)
    bank, options = DreamBank(workplace.directory), workplace.options
    if recipe.feature_history:
        require(options.dream_devices == 1, "trainer.dream_devices", options.dream_devices, ALONE)
    plan = plan_batches(recipe, spec.num_classes, seed)
    missing = bank.missing(len(plan))
    show = partial(_show, workplace, recipe, spec, -(-len(plan) // MOST_PICTURES))
    launched = launcher() is not None and len(missing) >= options.ranks and not recipe.feature_history
    ranks = options.ranks if launched else min(options.dream_devices, len(missing))
    if missing:
        _tell(bank, sorted({*range(len(plan))} - {*missing}), workplace, recipe, show)
        batches = [plan[number] for number in missing]
        module = InversionModule(
            teacher, recipe, spec, bank, batches, len(plan), options.compile, options.checkpoint_seconds, earlier
        )
        total = len(plan) * recipe.total_iterations
        done = total - len(missing) * recipe.total_iterations
        with Progress(workplace.name, total, "iterations", done=done) as progress:
            if ranks == 1:
                module.on_check, module.on_made = _told(progress, recipe, workplace), show
                _fit(module, options.make_trainer(max_epochs=1))
            else:
                with _watching(bank, missing, recipe, progress):
                    if launched:
                        on_all_ranks(partial(_fit_launched, module, options))
                    else:
                        _fit(module, options.make_trainer(max_epochs=1, ranks=ranks))
    if ranks > 1:  # the ranks are processes of their own, which no logger reaches
        _tell(bank, missing, workplace, recipe, show)
    dreams, history = bank.load(len(plan), recipe.num_held_out)
    return dreams, [{"step": _step(recipe, row["batch"], row["iteration"]), **row} for row in history]


def _tell(
    bank: DreamBank,
    numbers: Sequence[int],
    workplace: Workplace,
    recipe: InversionRecipe,
    show: Callable[[int, Dreams], None],
) -> None:
    """Send the loggers what they have not seen: batches of an interrupted call, or of other processes."""
    for number in numbers:
        dreams, rows = bank.read(number)
        for row in rows:
            workplace.metrics.log(workplace.name, _step(recipe, number, int(row["iteration"])), row)
        show(number, dreams)


def _show(
    workplace: Workplace, recipe: InversionRecipe, spec: InputSpec, every: int, number: int, dreams: Dreams
) -> None:
    if number % every == 0:
        step = _step(recipe, number, recipe.most_iterations - 1)
        workplace.metrics.images(f"{workplace.name}/dreams", spec.to_pixels(dreams.images[:SHOWN]), step)


def _step(recipe: InversionRecipe, batch: int, iteration: int) -> int:
    return batch * recipe.most_iterations + iteration


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


def _fit_launched(module: InversionModule, options: TrainerOptions) -> None:
    """What every launched rank does: it makes its share of the batches, and waits until all are there."""
    if not module.bank.directory.is_dir():
        raise ConfigError(
            f"The store must be on a file system that all ranks see: there is no {module.bank.directory} on this "
            "machine. Set store=FOLDER to one that is, or start one process."
        )
    environment = cast(ClusterEnvironment, launcher())
    module.batches = module.batches[environment.global_rank() :: environment.world_size()]
    # A trainer of one device each: those that are joined wait for each other before every batch.
    own = replace(options, device=options.device + environment.local_rank(), devices=1, num_nodes=1)
    _fit(module, own.make_trainer(max_epochs=1))
    try:
        wait_for_all_ranks()
    except RuntimeError as error:
        raise InversionError(
            f"A rank that was making dreams has ended ({error}). Finished batches are kept: run the same again."
        ) from error


def _told(progress: Progress, recipe: InversionRecipe, workplace: Workplace) -> OnBatchCheck:
    at, reached = -1, 0  # the batch in hand, and its iterations so far

    def on_check(batch: int, iteration: int, terms: dict[str, float]) -> None:
        nonlocal at, reached
        if batch != at:
            at, reached = batch, 0
        if iteration + 1 > recipe.total_iterations:  # it was restarted
            progress.total += iteration + 1 - max(reached, recipe.total_iterations)
        progress.advance(iteration + 1 - reached, f"loss {terms['total']:.4g}")
        reached = iteration + 1
        row = {"batch": batch, "iteration": iteration, **terms}
        workplace.metrics.log(workplace.name, _step(recipe, batch, iteration), row)

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
