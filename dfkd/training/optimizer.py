"""The optimiser of every weight training here: SGD or AdamW, with an optional warm-up and a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import require
from dfkd.quantization.layer import LayerQuantizer

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """How weights are updated. Subclasses add what is learned.

    Attributes:
        updates: number of optimiser steps.
        batch_size: images per step; the last incomplete batch of an epoch is left out.
        optimizer: `sgd` or `adamw`.
        learning_rate: step size, at its highest.
        momentum: of SGD.
        nesterov: Nesterov's form of SGD's momentum.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: `constant`, `cosine` down to zero at the last step, or `step`: a tenth after each two fifths (DI).
        warmup_updates: steps over which the learning rate rises linearly.
        crop_padding: random crops from images padded by so many pixels.
        flip: mirror half of the images.
        batch_norm_rate: of AdamW, what the learning rate is multiplied by for batch norm's scales and shifts; None: 1.
    """

    updates: int = 600
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_updates: int = 0
    crop_padding: int = 0
    flip: bool = False
    batch_norm_rate: float | None = None

    group = "training"
    least_updates = 1

    def __post_init__(self) -> None:
        def check(option: str, allowed: str, holds: bool) -> None:
            require(holds, f"{self.group}.{option}", getattr(self, option), allowed)

        check("updates", f"{self.least_updates} or more", self.updates >= self.least_updates)
        check("batch_size", "1 or more", self.batch_size >= 1)
        for option in ("weight_decay", "crop_padding", "warmup_updates"):
            check(option, "0 or more", getattr(self, option) >= 0)
        check("learning_rate", "above 0", self.learning_rate > 0)
        check("batch_norm_rate", "above 0, or null", self.batch_norm_rate is None or self.batch_norm_rate > 0)
        check("momentum", "in [0, 1)", 0 <= self.momentum < 1)
        check("optimizer", f"one of {OPTIMIZERS}", self.optimizer in OPTIMIZERS)
        check("schedule", f"one of {SCHEDULES}", self.schedule in SCHEDULES)


def make_optimizer(
    model: nn.Module, recipe: OptimizerRecipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimiser of `model`'s parameters, and its schedule to be stepped after every update."""
    parameters = parameter_groups(model, recipe)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )

    factor = learning_rate_factor(recipe.schedule, recipe.updates, recipe.warmup_updates)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """The parameters that are trained: apart, those of batch norm, where AdamW has another learning rate for them, and
    the logarithms of quantisation's scales, which no decay may draw to zero."""
    norms, scales = _own(model, _BatchNorm), _own(model, LayerQuantizer)
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}, {"params": [], "weight_decay": 0.0}]
    if recipe.batch_norm_rate is not None and recipe.optimizer == "adamw":
        groups[1]["lr"] = recipe.learning_rate * recipe.batch_norm_rate
    else:
        norms = set()
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[2 if id(parameter) in scales else id(parameter) in norms]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _own(model: nn.Module, kind: type[nn.Module]) -> set[int]:
    modules = [module for module in model.modules() if isinstance(module, kind)]
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}


def learning_rate_factor(schedule: str, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each of `steps` steps, in [0, 1].

    It rises linearly over the first `warmup` steps; then it is 1 (`constant`), falls as half a cosine (`cosine`), or to
    a tenth after each two fifths of the steps (`step`; DI: every 100 of 250 epochs).
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, steps - warmup)
        if schedule == "step":
            return 0.1 ** int(progress / 0.4)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
