"""Distillation: a student brought back to its teacher on images it is given."""

from dfkd.distillation.batch_norm import reestimate_batch_norm
from dfkd.distillation.losses import distillation_loss
from dfkd.distillation.module import DistillationModule
from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.reconstruction import reconstruct

__all__ = ["DistillationModule", "DistillationRecipe", "distillation_loss", "reconstruct", "reestimate_batch_norm"]
