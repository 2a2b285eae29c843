"""Many runs as tables of their students and of their dreams, and plots: `dfkd report DIR...`.

Runs that differ in their seed alone make one row, mean ± standard deviation (n - 1) over seeds. Runs of one student,
copies or a run that got its controls later, count as one; so do runs on the same dreams. Runs that failed or are not
done are listed below the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf

from dfkd.errors import ConfigError
from dfkd.files import write_text
from dfkd.reporting.distillation import network_scores, student_of
from dfkd.reporting.figures import save_figure
from dfkd.reporting.plots import LABELS, SCORES, learning_plot, recovery_plot, time_plot

# What is said of dreams, and whether it is a share, shown in percent. What follows `real` looked at real test images.
DREAM_MARKS = {
    "teacher_accuracy": True,
    "teacher_confidence": True,
    "class_balance": True,
    "diversity": False,
    "statistics_agreement": True,
    "other_accuracy": True,
    "other_confidence": True,
    "real fid": False,
    "real kid": False,
    "real inception_score": False,
}
# What does not change what a run finds out, or is told by a column of its own.
NOT_AN_OPTION = ("seed", "controls", "name", "run_dir", "store", "stage", "logger.", "trainer.", "input.")
BUT_AN_OPTION = ("trainer.precision",)
OF_DREAMS = ("option teacher.", "option model.", "option inversion.")
OF_JUDGES = "option judge."


class Runs(NamedTuple):
    """The runs under some folders.

    Attributes:
        students: those with a student, one row each.
        incremental: those that learned new classes, one row for each network.
        dreams: of both, what is said of the dreams, one row for each set of dreams and judge.
        others: those without a result, and what became of them.
    """

    students: pd.DataFrame
    incremental: pd.DataFrame
    dreams: pd.DataFrame
    others: pd.DataFrame


def read_runs(directories: Sequence[str | Path]) -> Runs:
    """What the runs under some folders found out.

    Raises:
        ConfigError: a folder is missing, or holds no run.
    """
    students, incremental, dreams, others, seen = [], [], [], [], set()
    for directory in map(Path, directories):
        statuses = sorted(directory.rglob("status.json"))
        if not statuses:
            raise ConfigError(f"dfkd report: {directory} must be a folder with runs of `dfkd`, got none (status.json).")
        for path in statuses:
            run = path.parent
            if run.resolve() in seen:
                continue  # folders may lie within each other, and a run counts once
            seen.add(run.resolve())
            status = json.loads(path.read_text(encoding="utf-8"))
            if status["status"] != "finished" or not (run / "result.json").exists():
                why = status.get("error") or f"stage={status.get('stage', '')}"
                others.append({"run": str(run), "status": status["status"], "why": why})
                continue
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            setting = _setting(run, result)
            row = {name: value for name, value in setting.items() if not name.startswith(OF_JUDGES)}
            if result.get("task") == "class_incremental":
                incremental += [row | {"network": name, **marks} for name, marks in result["scores"].items()]
            else:
                students.append(row | _student(result))
            dreams.append(_dreams(setting, result))
    return Runs(
        students=_once(students, "artifact"),
        incremental=_once(incremental, "artifact", "network"),
        dreams=_once(dreams, "artifact"),
        others=pd.DataFrame(others, columns=["run", "status", "why"]),
    )


def _once(rows: list[dict[str, Any]], *identity: str) -> pd.DataFrame:
    """Rows of equal options and identity as one, with what any of them knows: no student is two seeds."""
    table = pd.DataFrame(rows)
    same = [*identity, *(column for column in table if str(column).startswith("option "))]
    return table.groupby(same, dropna=False, sort=False, as_index=False).first()[table.columns] if rows else table


def _setting(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    options = pd.json_normalize(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))  # type: ignore[arg-type]
    row: dict[str, Any] = {
        f"option {name}": str(value)
        for name, value in options.iloc[0].items()
        if value is not None  # null is not used: as if it were not there
        and (name in BUT_AN_OPTION or not str(name).startswith(NOT_AN_OPTION))
    }
    artifacts = result["artifacts"]
    learned = next(stage for stage in ("recover", "transfer", "learn") if stage in artifacts)
    row |= {"artifact": artifacts[learned], "run": str(run), "experiment": result["experiment"], "seed": result["seed"]}
    return row | {name: result["choices"].get(name) for name in LABELS}


def _dreams(setting: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    judged = result["dreams"]["judged"]
    marks, real = judged["without_real_images"], judged.get("with_real_images", {})
    choices = result["choices"]
    judge = choices["model" if choices.get("model@judge.model", "None") == "None" else "model@judge.model"]
    about = (name for name in setting if not name.startswith("option ") or name.startswith((*OF_DREAMS, OF_JUDGES)))
    return {
        **{name: setting[name] for name in about},
        "artifact": result["artifacts"]["dream"],
        "dreams": result["dreams"]["count"] + result["dreams"]["held_out"],
        "iterations": result["dreams"]["iterations"],
        **marks,
        "teacher_accuracy": result["dreams"]["teacher_accuracy"],  # None: nobody asked for a class
        "judge": judge if "other_accuracy" in marks else "",
        "extractor": real.get("extractor", ""),
        **{f"real {name}": value for name, value in real.items()},
    }


def _student(result: dict[str, Any]) -> dict[str, Any]:
    measure, scores = network_scores(result)
    student, timing = student_of(result), result["timing"]
    row = {"measure": measure, **scores}
    row |= {name: student[name] for name in ("sparsity", "parameters", "multiply_adds")}
    row |= {"bytes": student["bytes"]["dense"], "packed bytes": student["bytes"]["packed"]}
    return row | {"dream seconds": timing["dream"], "learn seconds": timing.get("recover", timing.get("transfer"))}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: its labels, the options in which runs of equal labels differ, and scores over seeds.

    Scores are strings in percent, `mean ± std` where there are several seeds.
    """
    labels = ["experiment", *LABELS, "measure"]
    rows = []
    for row, group in _settings(runs, labels):
        row |= {"sparsity": f"{100 * group['sparsity'].mean():.1f}", "seeds": len(group)}
        row |= {label: _spread(group[name]) for name, label in SCORES.items()}
        row |= {name: f"{group[name].mean():,.0f}" for name in ("parameters", "multiply_adds", "bytes", "packed bytes")}
        rows.append(row | {f"{stage} s": f"{group[f'{stage} seconds'].mean():.0f}" for stage in ("dream", "learn")})
    table = pd.DataFrame(rows)
    silent = [name for name in labels if table[name].nunique(dropna=False) == 1 and name != "model"]
    empty = [label for label in SCORES.values() if (table[label] == "").all()]
    return table.drop(columns=silent + empty)


def summarise_incremental(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting and network: its scores over seeds on old, new and all classes, as strings in percent."""
    labels = ["experiment", "model", "inversion", "network"]
    rows = []
    for row, group in _settings(runs, labels):
        marks = {"old": "old classes", "new": "new classes", "combined": "all classes", "agreement": "agreement"}
        rows.append(row | {"seeds": len(group)} | {label: _spread(group[name]) for name, label in marks.items()})
    return pd.DataFrame(rows)


def summarise_dreams(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting of dreams: what is said of them over seeds, as strings, shares in percent."""
    labels = ["experiment", "model", "inversion", "dreams", "iterations", "judge", "extractor"]
    marks = {mark: share for mark, share in DREAM_MARKS.items() if mark in runs and runs[mark].notna().any()}
    rows = []
    for row, group in _settings(runs, labels):
        spreads = {mark.replace("_", " "): _spread(group[mark], 100 if share else 1) for mark, share in marks.items()}
        rows.append(row | {"seeds": len(group)} | spreads)
    table = pd.DataFrame(rows)
    silent = ["experiment"] if table["experiment"].nunique() == 1 else []
    empty = [name for name in ("judge", "extractor") if (table[name] == "").all()]
    return table.drop(columns=silent + empty)


def _settings(runs: pd.DataFrame, labels: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Runs that differ in their seed alone, under their labels and the options in which runs of equal labels differ."""
    options = [str(column) for column in runs if str(column).startswith("option ")]
    by_label = runs.groupby(labels, dropna=False)
    telling = [option for option in options if (by_label[option].nunique(dropna=False) > 1).any()]
    told = runs.assign(**{option: runs[option].fillna("") for option in telling})
    names = [*labels, *(option.removeprefix("option ") for option in telling)]
    for key, group in told.groupby([*labels, *telling], dropna=False, sort=False):
        yield dict(zip(names, key, strict=True)), group


def _spread(values: pd.Series, scale: float = 100) -> str:
    known = values.dropna().astype(float) * scale
    if known.empty:
        return ""
    text = f"{known.mean():.1f}" if len(known) == 1 else f"{known.mean():.1f} ± {known.std(ddof=1):.1f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [
        [str(name) for name in table.columns],
        ["---"] * len(table.columns),
        *table.astype(str).to_numpy().tolist(),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def write_report(directories: Sequence[str | Path], out: Path) -> str:
    """Write `report.md`, and for the kinds of runs there are CSV files and plots, into `out`; return the Markdown."""
    runs, incremental, dreams, others = read_runs(directories)
    finished = len(runs) + (incremental["run"].nunique() if len(incremental) else 0)
    text = "# Report\n\n"
    if finished:
        text += f"{finished} finished runs. Scores in percent; ± is the standard deviation over seeds.\n"
    if len(runs):
        text += f"\n{markdown(summarise(runs))}"
        _write_csv(out / "report.csv", runs)
        save_figure(recovery_plot(runs), out / "recovery_against_sparsity.png")
        save_figure(time_plot(runs), out / "accuracy_against_time.png")
        curves = learning_plot(map(Path, runs["run"]))
        if curves is not None:
            save_figure(curves, out / "learning_curves.png")
    if len(incremental):
        text += f"\n{markdown(summarise_incremental(incremental))}"
        _write_csv(out / "class_incremental.csv", incremental)
    if len(dreams):
        text += "\nTheir dreams. What follows `real` looked at real test images, nothing else did.\n\n"
        text += markdown(summarise_dreams(dreams))
        _write_csv(out / "dreams.csv", dreams)
    if len(others):
        text += f"\n{len(others)} runs have no result:\n\n{markdown(others)}"
    write_text(out / "report.md", text)
    return text


def _write_csv(path: Path, runs: pd.DataFrame) -> None:
    with_options = runs.rename(columns=lambda name: str(name).removeprefix("option "))
    write_text(path, with_options.to_csv(index=False))


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd report`."""
    parser = argparse.ArgumentParser(prog="dfkd report", description="Tables and plots of many runs.")
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folders with runs, searched at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write to (default: report)")
    parsed = parser.parse_args(arguments)
    print(write_report(parsed.directories, parsed.out))
    print(f"Written to {parsed.out}: {', '.join(sorted(path.name for path in parsed.out.iterdir()))}")
