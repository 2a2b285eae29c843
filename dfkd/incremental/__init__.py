"""Class-incremental learning: new classes from their images, the old ones kept by dreams of the old network."""

from dfkd.incremental.datamodule import PairedDataModule
from dfkd.incremental.module import ClassIncrementalLearning, incremental_losses
from dfkd.incremental.recipe import IncrementalRecipe

__all__ = ["ClassIncrementalLearning", "IncrementalRecipe", "PairedDataModule", "incremental_losses"]
