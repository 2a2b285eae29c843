"""Class-incremental learning: new classes from their images, the old ones kept by dreams of the old network."""

from dfkd.incremental.datamodule import PairedDataModule
from dfkd.incremental.losses import class_weights, incremental_losses, turned_losses, weighted_cross_entropy
from dfkd.incremental.module import ClassifierTuning, ClassIncrementalLearning
from dfkd.incremental.recipe import IncrementalRecipe

__all__ = [
    "ClassIncrementalLearning",
    "ClassifierTuning",
    "IncrementalRecipe",
    "PairedDataModule",
    "class_weights",
    "incremental_losses",
    "turned_losses",
    "weighted_cross_entropy",
]
