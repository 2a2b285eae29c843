"""Students before they learn: pruned and quantised copies of a teacher, and fresh networks."""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.pruning.method import PruningMethod
from dfkd.quantization.quantize import CALIBRATION, quantize
from dfkd.quantization.recipe import QuantizationRecipe
from dfkd.seeding import derive_seed
from dfkd.stages.dreams import all_dreams
from dfkd.stages.networks import build, load, save
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.training.fit import Workplace


@dataclass(frozen=True, kw_only=True)
class Pruning(Recipe):
    """How a network is pruned.

    Attributes:
        method: the function with its settings.
        amount: in place of the method's own; None: its own.
    """

    method: PruningMethod
    amount: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quantization(Recipe):
    """How a network is quantised.

    Attributes:
        quantization: in how many bits.
    """

    quantization: QuantizationRecipe


@dataclass(frozen=True, kw_only=True)
class Fresh(Recipe):
    """A student with random weights: `network` and the seed are all that determines it."""


def prune(recipe: Pruning, inputs: Inputs, workplace: Workplace) -> Notes:
    """Prune `before`, a `network`, by what the method asks for of `teacher` and `dreams`."""
    student = load(inputs["network"], inputs["before"])
    teacher = load(inputs["network"], inputs["teacher"])
    amount = {} if recipe.amount is None else {"amount": recipe.amount}
    recipe.method.apply(student, teacher, lambda: all_dreams(inputs["dreams"]).training.images, **amount)
    save(student, workplace.directory)
    return {}


def quantize_pruned(recipe: Quantization, inputs: Inputs, workplace: Workplace) -> Notes:
    """Quantise `pruned`, a `network`, its ranges those on `dreams`."""
    student = load(inputs["network"], inputs["pruned"])
    quantize(student, recipe.quantization, all_dreams(inputs["dreams"]).training.images[:CALIBRATION].float())
    save(student, workplace.directory)
    return {}


def initialise(recipe: Fresh, inputs: Inputs, workplace: Workplace) -> Notes:
    """Build `network` with random weights."""
    save(build(inputs["network"], derive_seed(recipe.seed, "student")), workplace.directory)
    return {}
