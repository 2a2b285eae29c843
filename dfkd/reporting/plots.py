"""The plots of `dfkd report`: many runs in one picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

LABELS = ("model", "pruning", "inversion", "distillation")
SCORES = {
    "teacher": "teacher",
    "pruned": "pruned",
    "noise": "noise",
    "batchnorm": "batch norm only",
    "recovered": "recovered",
    "student": "student",
    "real": "real images",
}
STYLES = {
    "teacher": "k_--",
    "recovered": "o-",
    "student": "o-",
    "real": "s:",
    "batchnorm": "^:",
    "noise": "x:",
    "pruned": "v:",
}
MOST_NAMED = 20  # curves that a legend names


def recovery_plot(runs: pd.DataFrame) -> Figure:
    """Score against sparsity, one panel per model, mean and standard deviation over whatever else differs."""
    models = list(runs.groupby("model", dropna=False))
    figure = Figure(figsize=(5.5 * len(models), 4), layout="constrained")
    for axes, (model, group) in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        points = group.assign(sparsity=(100 * group["sparsity"]).round(1)).groupby("sparsity")
        for name, style in STYLES.items():
            mean, std = 100 * points[name].mean(), 100 * points[name].std().fillna(0)
            if mean.notna().any():
                axes.errorbar(mean.index, mean, std, fmt=style, capsize=3, label=SCORES[name])
        axes.set(xlabel="sparsity (%)", ylabel=f"{group['measure'].iloc[0]} (%)", title=str(model))
        axes.legend()
    return figure


def time_plot(runs: pd.DataFrame) -> Figure:
    """Score of the student against the seconds of dreaming and of its learning, one point per run."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for setting, group in runs.groupby([(100 * runs["sparsity"]).round(1), *LABELS], dropna=False):
        label = ", ".join(str(part) for part in setting[1:3]) + f", {setting[0]} %"
        seconds = group["dream seconds"] + group["learn seconds"]
        axes.plot(seconds, 100 * group["recovered"].fillna(group["student"]).astype(float), "o", label=label)
    axes.set(xlabel="seconds of dreaming and learning", ylabel=f"student's {runs['measure'].iloc[0]} (%)", xscale="log")
    axes.legend(fontsize=8)
    return figure


def learning_plot(runs: Iterable[Path]) -> Figure | None:
    """Agreement with the teacher on held-out dreams as students and controls learn; None where no run recorded it."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        if not (run / "metrics.csv").exists():
            continue
        metrics = pd.read_csv(run / "metrics.csv")
        checks = metrics[metrics["metric"] == "held_out_agreement"]
        for stage, course in checks.groupby("stage", sort=False):
            style = "-" if str(stage).startswith(("recover", "transfer")) else ":"
            axes.plot(course["step"], 100 * course["value"], style, label=f"{run.name}: {stage}")
    if not axes.lines:
        return None
    axes.set(xlabel="updates", ylabel="agreement with the teacher on held-out dreams (%)")
    if len(axes.lines) <= MOST_NAMED:
        axes.legend(fontsize=8)
    return figure
