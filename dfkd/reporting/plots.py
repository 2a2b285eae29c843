"""The plots of `dfkd report`: many runs in one picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dfkd.reporting.curves import CURVES
from dfkd.reporting.settings import LABELS, OPTION, named_settings

AMOUNT = "pruning.amount"
COLOURS = [f"C{number}" for number in range(10)]
MARKERS = "os^vD"
SCORES = {
    "teacher": "teacher",
    "pruned": "pruned",
    "noise": "noise",
    "procedural": "procedural pictures",
    "batchnorm": "batch norm only",
    "recovered": "recovered",
    "student": "student",
    "real": "real images",
}
STYLES = {
    "teacher": "_--",
    "recovered": "o-",
    "student": "o-",
    "real": "s:",
    "batchnorm": "^:",
    "noise": "x:",
    "procedural": "+:",
    "pruned": "v:",
}
MOST_NAMED = 20  # curves that a legend names


def recovery_plot(runs: pd.DataFrame) -> Figure:
    """Score against sparsity, one panel per model; a colour is a setting, a line a network of it, over seeds."""
    models = list(runs.groupby("model", dropna=False))
    figure = Figure(figsize=(max(8, 5 * len(models)), 4), layout="constrained")
    colours: dict[str, str] = {}
    for axes, (model, group) in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for setting, of_setting in named_settings(group, ["model", *LABELS[1:], "measure"], apart_from=[AMOUNT]):
            colour = colours.setdefault(setting, COLOURS[len(colours) % len(COLOURS)])
            for network, style in STYLES.items():
                x, mean, std = _curve(of_setting, network)
                if mean.notna().any():
                    black = network == "teacher"
                    label = f"{SCORES[network]} ({setting})" if setting and not black else SCORES[network]
                    axes.errorbar(x, mean, std, fmt=style, capsize=3, color="k" if black else colour, label=label)
        axes.set(xlabel="sparsity (%)", ylabel=f"{group['measure'].iloc[0]} (%)", title=str(model))
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """One legend for all panels, each label once, and room for it."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    by_label = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    columns = 1 if max(map(len, by_label), default=0) > 40 else 3
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(by_label) // columns))
    figure.legend(by_label.values(), by_label.keys(), fontsize=7, loc="outside lower center", ncols=columns)


def _curve(runs: pd.DataFrame, network: str) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Sparsity, mean and standard deviation over seeds of a network's score, in percent, for each pruned amount."""
    amount = runs[OPTION + AMOUNT] if OPTION + AMOUNT in runs else pd.Series("", runs.index)
    points = runs.assign(amount=amount.fillna(""), score=runs[network].astype(float)).groupby("amount")
    means = 100 * points[["sparsity", "score"]].mean()
    order = means["sparsity"].argsort()
    std = 100 * points["score"].std().fillna(0)
    return means["sparsity"].iloc[order], means["score"].iloc[order], std.iloc[order]


def time_plot(runs: pd.DataFrame) -> Figure:
    """Score of the student against the seconds of dreaming and of its learning: a point per run, a colour a setting."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, (setting, group) in enumerate(named_settings(runs, [*LABELS, "measure"])):
        seconds = group["dream seconds"] + group["learn seconds"]
        score = 100 * group["recovered"].fillna(group["student"]).astype(float)
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        axes.plot(seconds, score, marker, color=COLOURS[number % len(COLOURS)], label=setting or "all runs")
    axes.set(xlabel="seconds of dreaming and learning", ylabel=f"student's {runs['measure'].iloc[0]} (%)", xscale="log")
    _legend_below(figure)
    return figure


def learning_plot(runs: Iterable[Path]) -> Figure | None:
    """Agreement with the teacher on held-out dreams as students and controls learn; None where no run recorded it."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        if not (run / CURVES).exists():
            continue
        metrics = pd.read_csv(run / CURVES)
        checks = metrics[metrics["metric"] == "held_out_agreement"]
        for stage, curve in checks.groupby("stage", sort=False):
            style = "-" if str(stage).startswith(("recover", "transfer")) else ":"
            axes.plot(curve["step"], 100 * curve["value"], style, label=f"{run.name}: {stage}")
    if not axes.lines:
        return None
    axes.set(xlabel="updates", ylabel="agreement with the teacher on held-out dreams (%)")
    if len(axes.lines) <= MOST_NAMED:
        axes.legend(fontsize=8)
    return figure
