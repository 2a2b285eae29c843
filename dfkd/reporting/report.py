"""Many runs as tables of their students and of their dreams, plots, and a page: `dfkd report DIR...`.

Runs that differ in their seed alone make one row, mean ± standard deviation (n - 1) over seeds. Runs of one student,
copies or a run that got its controls later, count as one; so do runs on the same dreams. Runs without a result are
listed below the tables; what became of a later attempt does not touch a result that is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dfkd.errors import printable, require
from dfkd.files import write_text
from dfkd.reporting import class_incremental
from dfkd.reporting.figures import save_figure
from dfkd.reporting.page import page
from dfkd.reporting.plots import SCORES, learning_plot, recovery_plot, time_plot
from dfkd.reporting.reading import read_runs
from dfkd.reporting.settings import LABELS, OPTION, settings

# What `dfkd benchmark` measures, at one image and one thread.
ON_DEVICE = {f"{name} {unit}": unit for unit in ("KiB", "ms") for name in ("teacher", "student", "student int8")}

# What is said of dreams, and whether it is a share, shown in percent. What follows `real` looked at real test images.
DREAM_METRICS = {
    "teacher_accuracy": True,
    "teacher_confidence": True,
    "class_balance": True,
    "diversity": False,
    "statistics_agreement": True,
    "verifier_accuracy": True,
    "verifier_confidence": True,
    "real fid": False,
    "real kid": False,
    "real inception_score": False,
    "pixels AUC": True,
    "coarse pixels AUC": True,
    "features AUC": True,
}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: its labels, the options in which runs of equal labels differ, and scores over seeds.

    Scores are strings in percent, `mean ± std` where there are several seeds.
    """
    labels = ["experiment", *LABELS, "measure"]
    rows = []
    for row, group in settings(runs, labels):
        row |= {"sparsity": f"{100 * group['sparsity'].mean():.1f}", "seeds": len(group)}
        row |= {label: _spread(group[name]) for name, label in SCORES.items()}
        row |= {"int8": _spread(group["int8"])} if "int8" in group else {}
        row |= {name: f"{group[name].mean():,.0f}" for name in ("parameters", "multiply_adds", "bytes", "packed bytes")}
        row |= {name: _measured(group[name], unit) for name, unit in ON_DEVICE.items() if name in group}
        rows.append(row | {f"{stage} s": f"{group[f'{stage} seconds'].mean():.0f}" for stage in ("dream", "learn")})
    table = pd.DataFrame(rows)
    silent = [name for name in labels if table[name].nunique(dropna=False) == 1 and name != "model"]
    empty = [label for label in SCORES.values() if (table[label] == "").all()]
    return table.drop(columns=silent + empty)


def _measured(values: pd.Series, unit: str) -> str:
    """The mean of what was measured on one machine; "" where nothing was."""
    return "" if values.isna().all() else f"{values.mean():{',.0f' if unit == 'KiB' else '.2f'}}"


def summarise_incremental(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting and network: its scores over seeds on old, new and all classes, as strings in percent."""
    labels = ["experiment", "model", "inversion", "network"]
    rows = []
    for row, group in settings(runs, labels):
        scores = dict(zip(class_incremental.SCORES, class_incremental.COLUMNS[1:], strict=True))
        scores |= {name: name for name in class_incremental.OF_STEPS if name in group}
        rows.append(row | {"seeds": len(group)} | {label: _spread(group[name]) for name, label in scores.items()})
    return pd.DataFrame(rows)


def summarise_dreams(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting of dreams: what is said of them over seeds, as strings, shares in percent."""
    labels = ["experiment", "model", "inversion", "dreams", "iterations", "verifier", "extractor"]
    known = {name: share for name, share in DREAM_METRICS.items() if name in runs and runs[name].notna().any()}
    rows = []
    for row, group in settings(runs, labels):
        spreads = {name.replace("_", " "): _spread(group[name], 100 if share else 1) for name, share in known.items()}
        rows.append(row | {"seeds": len(group)} | spreads)
    table = pd.DataFrame(rows)
    silent = ["experiment"] if table["experiment"].nunique() == 1 else []
    empty = [name for name in ("verifier", "extractor") if (table[name] == "").all()]
    return table.drop(columns=silent + empty)


def _spread(values: pd.Series, scale: float = 100) -> str:
    known = values.dropna().astype(float) * scale
    if known.empty:
        return ""
    text = f"{known.mean():.1f}" if len(known) == 1 else f"{known.mean():.1f} ± {known.std(ddof=1):.1f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; what a file of a run says stays within its cell."""
    rows = [[str(name) for name in table.columns], *table.astype(str).to_numpy().tolist()]
    head, *body = (f"| {' | '.join(map(_cell, row))} |\n" for row in rows)
    return head + f"| {' | '.join(['---'] * len(table.columns))} |\n" + "".join(body)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def chosen(table: pd.DataFrame, columns: Sequence[str], option: str) -> pd.DataFrame:
    """Some columns of a table in the order they are named; all of them where none is.

    Raises:
        ConfigError: the table has no such column.
    """
    for name in columns:
        require(name in table, option, name, f"of the table's columns: {', '.join(map(str, table))}")
    return table[list(columns)] if columns else table


def write_report(
    directories: Sequence[str | Path], out: Path, columns: Sequence[str] = (), dream_columns: Sequence[str] = ()
) -> str:
    """Write a report into `out`: `report.md`, `report.html`, and CSV files and plots of the kinds of runs there are.

    Args:
        directories: with runs, at any depth.
        out: where to write.
        columns: of the students' table in Markdown, or of the new classes' where there are no students; all where there
            are none. The CSV files have all of them.
        dream_columns: of the dreams' table.

    Returns:
        The Markdown.

    Raises:
        ConfigError: a folder has no runs, or a table has no such column.
    """
    found = read_runs(directories)
    runs, incremental, dreams, others = found
    over_seeds: dict[str, pd.DataFrame] = {}
    finished = len(runs) + (incremental["run"].nunique() if len(incremental) else 0)
    text = "# Report\n\n"
    if finished:
        text += f"{finished} finished runs. Scores in percent; ± is the standard deviation over seeds.\n"
    if len(runs):
        over_seeds["Means over seeds"] = summarise(runs)
        text += f"\n{markdown(chosen(over_seeds['Means over seeds'], columns, '--columns'))}"
        _write_csv(out / "report.csv", runs)
        _write_csv(out / "means.csv", over_seeds["Means over seeds"])
        save_figure(recovery_plot(runs), out / "recovery_against_sparsity.png")
        save_figure(time_plot(runs), out / "accuracy_against_time.png")
        curves = learning_plot(map(Path, runs["run"]))
        if curves is not None:
            save_figure(curves, out / "learning_curves.png")
    if len(incremental):
        over_seeds["New classes"] = summarise_incremental(incremental)
        shown = () if len(runs) else columns
        text += f"\n{markdown(chosen(over_seeds['New classes'], shown, '--columns'))}"
        _write_csv(out / "class_incremental.csv", incremental)
        _write_csv(out / "class_incremental_means.csv", over_seeds["New classes"])
    if len(dreams):
        text += (
            "\nTheir dreams. What follows `real` looked at real test images, what ends in `AUC` (`dfkd audit`) at "
            "training images as well, nothing else did.\n\n"
        )
        over_seeds["Quality of dreams"] = summarise_dreams(dreams)
        text += markdown(chosen(over_seeds["Quality of dreams"], dream_columns, "--dream-columns"))
        _write_csv(out / "dreams.csv", dreams)
        _write_csv(out / "dream_means.csv", over_seeds["Quality of dreams"])
    if len(others):
        text += f"\n{len(others)} runs have no result:\n\n{markdown(others)}"
    write_text(out / "report.md", text)
    write_text(out / "report.html", page(found, over_seeds))
    return text


def _write_csv(path: Path, runs: pd.DataFrame) -> None:
    with_options = runs.rename(columns=lambda name: str(name).removeprefix(OPTION))
    write_text(path, with_options.to_csv(index=False))


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd report`."""
    parser = argparse.ArgumentParser(prog="dfkd report", description="Tables, plots and a page of many runs.")
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folders with runs, searched at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write to (default: report)")
    tables = {"--columns": "the students' table, or else the new classes'", "--dream-columns": "the dreams' table"}
    for flag, table in tables.items():
        meaning = f"of {table}, with commas between (default: all)"
        parser.add_argument(flag, type=lambda names: names.split(","), default=[], metavar="NAMES", help=meaning)
    parsed = parser.parse_args(arguments)
    print(write_report(parsed.directories, parsed.out, parsed.columns, parsed.dream_columns))
    print(f"Written to {parsed.out}: {', '.join(sorted(path.name for path in parsed.out.iterdir()))}")
