"""Dreams: a teacher inverted into a bank of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dfkd.dreams import DreamBank, Dreams
from dfkd.dreams.mapped import MappedDreams
from dfkd.inversion.invert import fill_bank
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.input_spec import InputSpec
from dfkd.stages.networks import load
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.store import Product
from dfkd.training.fit import Workplace


@dataclass(frozen=True, kw_only=True)
class Dreaming(Recipe):
    """How a teacher is inverted.

    Attributes:
        inversion: objective, optimisation, and how many.
        spec: the teacher's input and classes.
    """

    inversion: InversionRecipe
    spec: InputSpec


def dream(recipe: Dreaming, inputs: Inputs, workplace: Workplace) -> Notes:
    """Invert `teacher`, a `network`."""
    teacher, inversion = load(inputs["network"], inputs["teacher"]), recipe.inversion
    dreams, history = fill_bank(teacher, inversion, recipe.spec, recipe.seed, workplace)
    accuracy = dreams.teacher_accuracy if inversion.label_loss != "entropy" else None
    made = {row["batch"]: row["iteration"] + 1 for row in history}  # the last of each batch
    iterations = round(sum(made.values()) / len(made))
    return bank_notes(inversion) | {"teacher_accuracy": accuracy, "iterations": iterations, "history": history}


def bank_notes(inversion: InversionRecipe) -> Notes:
    """What the functions below need to know of a bank."""
    training, held_out = (-(-count // inversion.batch_size) for count in (inversion.num_images, inversion.num_held_out))
    return {"batches": {"training": training, "held_out": held_out}, "num_held_out": inversion.num_held_out}


def all_dreams(product: Product) -> Dreams:
    """Training and held-out dreams of a product."""
    return DreamBank(product.directory).load(sum(product.notes["batches"].values()), product.notes["num_held_out"])[0]


def training_files(product: Product) -> list[Path]:
    """The files of the training dreams."""
    bank = DreamBank(product.directory)
    return [bank.path(number) for number in range(product.notes["batches"]["training"])]


def held_out_set(product: Product) -> Dataset[Any] | None:
    """The held-out dreams, (image, label), on disk; None where there are none."""
    first, count = product.notes["batches"]["training"], product.notes["batches"]["held_out"]
    bank = DreamBank(product.directory)
    return MappedDreams([bank.path(first + number) for number in range(count)]) if count else None
