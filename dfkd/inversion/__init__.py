"""Inversion: a teacher's batch-norm statistics turned into images (DeepInversion)."""

from dfkd.inversion.engine import optimise
from dfkd.inversion.module import InversionModule
from dfkd.inversion.objective import inversion_objective
from dfkd.inversion.recipe import InversionRecipe

__all__ = ["InversionModule", "InversionRecipe", "inversion_objective", "optimise"]
