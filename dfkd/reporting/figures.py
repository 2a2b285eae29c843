"""The pictures of a run: a labelled grid of dreams, and bars of what each network scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dfkd.dreams import Dreams
from dfkd.files import replacing
from dfkd.models.input_spec import InputSpec

ROWS, COLUMNS = 5, 10


def dream_grid(dreams: Dreams, spec: InputSpec) -> Figure:
    """Up to 50 dreams, sorted by class, each under its class and the teacher's confidence in it."""
    chosen = _spread_over_classes(dreams.labels, ROWS * COLUMNS)
    figure = Figure(figsize=(COLUMNS * 1.1, ROWS * 1.35), layout="constrained")
    for axes in figure.subplots(ROWS, COLUMNS).flat:
        axes.axis("off")
    _show(figure.axes, dreams, chosen, spec)
    figure.suptitle("Dreams: class (teacher's confidence in it)", fontsize=10)
    return figure


def dreams_over_time(batches: Sequence[Dreams], spec: InputSpec) -> Figure:
    """A row of dreams, one of each of up to ten classes, for each of up to eight batches, first to last."""
    rows = [batches[round(place)] for place in np.linspace(0, len(batches) - 1, min(8, len(batches)))]
    figure = Figure(figsize=(COLUMNS * 1.1, len(rows) * 1.1 + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, dreams in zip(grid, rows, strict=True):
        chosen = _spread_over_classes(dreams.labels, COLUMNS)
        _show(line, dreams, chosen, spec)
    figure.suptitle(
        "Dreams made while the student learned, the first on top: class (teacher's confidence)", fontsize=10
    )
    return figure


def _show(places: Iterable[Axes], dreams: Dreams, chosen: Tensor, spec: InputSpec) -> None:
    pixels = spec.to_pixels(dreams.images[chosen]).permute(0, 2, 3, 1).numpy()
    for axes, image, index in zip(places, pixels, chosen.tolist(), strict=False):
        grey = image.shape[2] != 3
        axes.imshow(image.mean(axis=2) if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
        axes.set_title(f"{int(dreams.labels[index])} ({float(dreams.confidence[index]):.0%})", fontsize=8)


def _spread_over_classes(labels: Tensor, count: int) -> Tensor:
    """Indices of up to `count` images that show the classes evenly, in the order of their classes."""
    rank = torch.zeros_like(labels)
    for value in labels.unique():
        of_class = labels == value
        rank[of_class] = torch.arange(int(of_class.sum()))
    first = torch.argsort(rank, stable=True)[:count]
    return first[torch.argsort(labels[first], stable=True)]


def recovery_bars(kind: str, values: dict[str, float]) -> Figure:
    """Horizontal bars of `values` in percent, by network; `kind` says of what."""
    figure = Figure(figsize=(8, 0.5 * len(values) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(values)[::-1]
    percent = np.array([100 * values[name] for name in names])
    colours = ["#1b7837" if name.startswith(("recovered", "student", "new classes")) else "#9a9a9a" for name in names]
    bars = axes.barh(names, percent, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "accuracy on real test images (%)"
        if kind == "accuracy"
        else "agreement with the teacher on held-out dreams (%)"
    )
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in one step."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
