"""Inverting a teacher into a bank of dreams, continuing one that was begun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.inversion.module import InversionModule
from dfkd.inversion.plan import plan_batches
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.batch_norm import require_batch_norm
from dfkd.models.input_spec import InputSpec
from dfkd.training.fit import TrainerOptions, quiet_lightning
from dfkd.training.progress import Progress


def fill_bank(
    teacher: nn.Module,
    recipe: InversionRecipe,
    spec: InputSpec,
    seed: int,
    directory: Path,
    options: TrainerOptions,
    student: nn.Module | None = None,
    loggers: Sequence[Logger] = (),
) -> tuple[Dreams, list[dict[str, Any]]]:
    """Make the batches that the bank in `directory` lacks, and load all of it.

    Each batch depends on the teacher, the recipe and (seed, its index) alone: a bank that was interrupted ends as one
    that was not.

    Returns:
        The dreams, and the course of their inversion: rows of batch, iteration and the terms' values.

    Raises:
        ModelError: the teacher has no batch norm.
        InversionError: a batch's loss was not finite; the batches before it stay in the bank.
    """
    require_batch_norm(teacher)
    bank = DreamBank(directory)
    plan = plan_batches(recipe, spec.num_classes, seed)
    missing = bank.missing(len(plan))
    total = len(plan) * recipe.iterations
    with Progress("dream", total, "iterations", done=(len(plan) - len(missing)) * recipe.iterations) as progress:
        reached = 0

        def on_check(iteration: int, terms: dict[str, float]) -> None:
            nonlocal reached
            progress.advance(iteration - reached, f"loss {terms['total']:.4g}")
            reached = iteration % recipe.iterations

        if missing:
            module = InversionModule(teacher, recipe, bank, spec.image_shape, spec.valid_range(), student, on_check)
            batches: list[Any] = [plan[number] for number in missing]
            loader: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
            home = next(teacher.parameters()).device
            with torch.random.fork_rng(), quiet_lightning():
                options.make_trainer(loggers, max_epochs=1).fit(module, loader)
            teacher.to(home)
    return bank.load(len(plan), recipe.num_held_out)
