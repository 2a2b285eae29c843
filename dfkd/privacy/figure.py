"""The picture of an audit: how near members and others are to dreams, and the nearest pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dfkd.privacy.comparison import Comparison, Pools

PAIRS = 10
BINS = 40


def audit_figure(pools: Pools, compared: Mapping[str, Comparison]) -> Figure:
    """A panel of distributions for each distance; below, the ten real images with the nearest dreams, in pixels."""
    figure = Figure(figsize=(1.1 * PAIRS, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3, 2.4])[:, 0]
    for axes, (name, each) in zip(above.subplots(1, len(compared), squeeze=False)[0], compared.items(), strict=True):
        _distributions(axes, name, each)
    grid = below.subplots(2, PAIRS)
    for axes in grid.flat:
        axes.axis("off")
    pixels = compared["pixels"]
    real = torch.cat([pools.members, pools.others])
    for column, place in enumerate(pixels.distances.argsort()[:PAIRS].tolist()):
        kind = "member" if place < len(pools.members) else "other"
        _picture(grid[0, column], real[place], f"{kind}\n{pixels.distances[place]:.2f}")
        _picture(grid[1, column], pools.dreams[int(pixels.places[place])], "dream")
    title = "The nearest pairs of a real image and a dream, which may count mirrored, and their distance in pixels"
    below.suptitle(title, fontsize=10)
    return figure


def _distributions(axes: Axes, name: str, each: Comparison) -> None:
    scores = torch.cat([each.members, each.others])
    edges = torch.linspace(float(scores.min()), float(scores.max()), BINS + 1).tolist()
    for label, values, colour in (("members", each.members, "#1b7837"), ("others", each.others, "#9a9a9a")):
        axes.hist(values.tolist(), edges, density=True, histtype="step", label=label, color=colour)
    low, high = each.found["interval"]
    axes.set_title(f"{name}: AUC {each.found['auc']:.3f} ({low:.3f} to {high:.3f})", fontsize=10)
    axes.set(xlabel="score: high where a dream is near", yticks=[])
    axes.legend(fontsize=8)


def _picture(axes: Axes, image: Tensor, title: str) -> None:
    grey = image.shape[0] != 3
    shown = image.mean(0) if grey else image.permute(1, 2, 0)
    axes.imshow(shown.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_title(title, fontsize=8)
