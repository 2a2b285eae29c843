"""Pruning: which weights or filters a network can do without, and keeping weights at zero afterwards."""

from dfkd.pruning.filters import prune_filters, prune_filters_by_taylor
from dfkd.pruning.n_of_m import prune_n_of_m
from dfkd.pruning.sparsity import layer_sparsity, sparsity
from dfkd.pruning.unstructured import (
    keep_all,
    prune_at_random,
    prune_by_global_magnitude,
    prune_by_layer_adaptive_magnitude,
    prune_by_layer_magnitude,
)

__all__ = [
    "keep_all",
    "layer_sparsity",
    "prune_at_random",
    "prune_by_global_magnitude",
    "prune_by_layer_adaptive_magnitude",
    "prune_by_layer_magnitude",
    "prune_filters",
    "prune_filters_by_taylor",
    "prune_n_of_m",
    "sparsity",
]
