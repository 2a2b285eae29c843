"""Teachers that the project trained: what each took and reached, and the curve it took.

    python benchmarks/teachers.py RUN [RUN ...]

Each RUN trained a teacher and stopped there (`stage=teacher`). Written to `benchmarks/teachers.json`, with the curve as
`docs/images/teachers.png`; the accuracy is that of the averaged weights on the run's test images, the curve's that of
the network in training on the augmented images it learns from, a mean over a fortieth of the updates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dfkd.files import write_json
from dfkd.reporting.curves import CURVES
from dfkd.reporting.figures import save_figure
from dfkd.reporting.report import markdown
from dfkd.reporting.run_directory import CONFIG, SO_FAR
from dfkd.run_config import load_run_config

OUT = Path(__file__).with_suffix(".json")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "teachers.png"
POINTS = 40


def measured(run: Path) -> dict:
    """What a run's teacher took and reached."""
    options, known = load_run_config(run / CONFIG), json.loads((run / SO_FAR).read_text(encoding="utf-8"))
    training = options.teacher.training
    curves = pd.read_csv(run / CURVES)
    curve = curves[(curves["stage"] == "teacher") & (curves["metric"] == "accuracy")]
    part = (curve["step"] * POINTS // (training.updates + 1)).rename("part")
    means = curve.groupby(part)[["step", "value"]].mean()
    return {
        "model": options.model.name,
        "continued": training.start is not None,
        "updates": training.updates,
        "batch_size": training.batch_size,
        "progressive_size": training.progressive_size,
        "cutmix": training.cutmix,
        "precision": options.trainer.precision,
        "seed": options.seed,
        "accuracy": known["teacher"]["accuracy"],
        "seconds": known["timing"]["teacher"],
        "curve": [[round(step), round(value, 4)] for step, value in means.to_numpy()],
    }


def name_of(row: dict) -> str:
    """Which network it is, whether it began with weights of its own, and whether boxes were pasted into its images."""
    return row["model"] + ", continued" * row["continued"] + " with CutMix" * (row["cutmix"] > 0)


def table(rows: list[dict]) -> str:
    """A row for each teacher."""
    table = []
    for row in rows:
        share = row["progressive_size"]
        table.append(
            {
                "teacher": name_of(row),
                "updates": row["updates"],
                "images at first": f"{share:.0%} of their side" if share else "whole",
                "minutes": round(row["seconds"] / 60),
                "accuracy": f"{100 * row['accuracy']:.1f}",
            }
        )
    return markdown(pd.DataFrame(table))


def draw(rows: list[dict]) -> Figure:
    """Training accuracy against updates."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        steps, values = zip(*row["curve"], strict=True)
        label = f"{name_of(row)}: {100 * row['accuracy']:.1f} % on test images"
        axes.plot(steps, [100 * value for value in values], label=label)
    axes.set(xlabel="updates", ylabel="right on augmented training images (%)")
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    """Read some runs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    rows = [measured(run) for run in parser.parse_args().runs]
    write_json(OUT, {"rows": rows})
    save_figure(draw(rows), PICTURE)
    print(table(rows))


if __name__ == "__main__":
    main()
