"""A budget of seconds: how many dreams and updates a run has time for, from what one of each takes here.

A teacher that is to be trained, the controls and the scores take theirs besides.
"""

from __future__ import annotations

import logging

from torch import nn

from dfkd.costs import Costs, measured
from dfkd.errors import ConfigError, require
from dfkd.tasks.experiment import Experiment

log = logging.getLogger(__name__)

# The share of dreaming. ResNet-20's runs in docs/results.md spent 8 to 19 % so; shares were not compared.
SHARE = 1 / 6
LEAST_UPDATES = 20
WITHIN = ("inversion.num_images", "distillation.updates")  # the options that follow from the seconds


def split(e: Experiment, seconds: float, costs: Costs) -> dict[str, int]:
    """The options `inversion.num_images` and `distillation.updates` of a run that dreams and learns for `seconds`.

    A sixth of the seconds goes to dreaming, the rest to learning. Images come in whole batches, as many as a batch of
    learning needs at least; updates in tens.

    Raises:
        ConfigError: there is not the time for a batch of dreams and a few updates.
    """
    size = e.inversion.batch_size
    fewest = -(-e.distillation.batch_size // size)
    held_out = -(-e.inversion.num_held_out // size)
    batches = max(fewest, int(SHARE * seconds / costs.batch) - held_out)
    left = seconds - (batches + held_out) * costs.batch
    updates = int(left / costs.update / e.rounds)
    if updates < LEAST_UPDATES:
        least = (fewest + held_out) * costs.batch + LEAST_UPDATES * e.rounds * costs.update
        raise ConfigError(
            f"seconds must be {least:.0f} or more for this network on this machine, where a batch of {size} dreams "
            f"takes {costs.batch:.1f} s and an update {costs.update:.2g} s, got {seconds:g}. Raise it, or lower "
            "inversion.batch_size or inversion.num_held_out."
        )
    return {"inversion.num_images": batches * size, "distillation.updates": max(LEAST_UPDATES, updates // 10 * 10)}


def options_within(e: Experiment, seconds: float, teacher: nn.Module | None = None) -> dict[str, int]:
    """`split` by what was `measured`, with the `teacher` where it is known, and a line in the log that says so."""
    require(seconds > 0, "seconds", seconds, "above 0, or null")
    require(not e.streaming.every, "seconds", seconds, "null where dreams are streamed (streaming.every)")
    require(e.task != "class_incremental", "seconds", seconds, "null with task=class_incremental")
    allowed = "null with distillation.updates=0, which is no time for learning"
    require(e.distillation.updates > 0, "seconds", seconds, allowed)
    costs = measured(e, teacher)
    options = split(e, seconds, costs)
    log.info(
        "seconds=%g: a batch of %d dreams takes %.1f s here and an update %.2g s, so %s.",
        seconds, e.inversion.batch_size, costs.batch, costs.update,
        " ".join(f"{name}={value}" for name, value in options.items()),
    )  # fmt: skip
    return options
