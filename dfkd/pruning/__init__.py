"""Pruning: which weights a network can do without, and keeping them at zero afterwards."""

from dfkd.pruning.magnitude import prune_by_global_magnitude
from dfkd.pruning.sparsity import layer_sparsity, sparsity

__all__ = ["layer_sparsity", "prune_by_global_magnitude", "sparsity"]
