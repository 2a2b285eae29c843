"""Reading what the runs under some folders found out, for `dfkd report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf

from dfkd.errors import ConfigError
from dfkd.reporting.run_directory import (
    AUDIT,
    BENCHMARK,
    CONFIG,
    EXPORT,
    RESULT,
    STATUS,
    is_occupied,
    runs_under,
    settled,
)
from dfkd.reporting.settings import LABELS, OPTION
from dfkd.reporting.students import network_scores, student_of
from dfkd.run_config import load_run_config

# What does not change what a run finds out, or is told by a column of its own.
NOT_AN_OPTION = ("seed", "controls", "name", "run_dir", "store", "stage", "benchmark", "logger.", "trainer.")
BUT_AN_OPTION = ("trainer.precision",)
OF_DREAMS = tuple(OPTION + group for group in ("teacher.", "model.", "input.", "inversion."))
OF_VERIFIERS = OPTION + "verifier."
ONE_IMAGE = "batch 1, 1 thread"  # of what `dfkd benchmark` measures
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of a file that is not a run's


class Runs(NamedTuple):
    """The runs under some folders.

    Attributes:
        students: those with a student, one row each.
        incremental: those that learned new classes, one row for each network.
        dreams: of both, what is said of the dreams, one row for each set of dreams and verifier.
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
        runs = runs_under(directory)
        if not runs:
            raise ConfigError(f"dfkd report: {directory} must be a folder with runs of `dfkd`, got none ({STATUS}).")
        for run in runs:
            if run.resolve() in seen:
                continue  # folders may lie within each other, and a run counts once
            seen.add(run.resolve())
            if not settled(run) or not (run / RESULT).exists():
                others.append({"run": str(run), **_attempt(run)})
                continue
            try:
                result = json.loads((run / RESULT).read_text(encoding="utf-8"))
                setting = _setting(run, result)
                row = {name: value for name, value in setting.items() if not name.startswith(OF_VERIFIERS)}
                dream = _dreams(setting, result) | _audited(run)
                if result.get("task") == "class_incremental":
                    incremental += [row | {"network": name, **scores} for name, scores in result["scores"].items()]
                else:
                    students.append(row | _student(result) | on_device(run, result))
                dreams.append(dream)
            except DAMAGED as error:
                others.append({"run": str(run), "status": "damaged", "why": f"{type(error).__name__}: {error}"})
    return Runs(
        students=_once(students, "artifact", "setting"),
        incremental=_once(incremental, "artifact", "setting", "network"),
        dreams=_once(dreams, "artifact"),
        others=pd.DataFrame(others, columns=["run", "status", "why"]),
    )


def _attempt(run: Path) -> dict[str, str]:
    """What became of a run without a result."""
    try:
        status = json.loads((run / STATUS).read_text(encoding="utf-8"))
        found, why = str(status["status"]), str(status.get("error") or f"stage={status.get('stage', '')}")
    except DAMAGED:
        return {"status": "unknown", "why": f"{STATUS} cannot be read"}
    if found == "running" and not is_occupied(run):
        found = "killed"
    return {"status": found, "why": why}


def _once(rows: list[dict[str, Any]], *identity: str) -> pd.DataFrame:
    """Rows of equal options and identity as one, with what any of them knows: no student is two seeds."""
    table = pd.DataFrame(rows)
    same = [*identity, *(column for column in table if str(column).startswith(OPTION))]
    return table.groupby(same, dropna=False, sort=False, as_index=False).first()[table.columns] if rows else table


def _setting(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    options = pd.json_normalize(OmegaConf.to_container(load_run_config(run / CONFIG)))  # type: ignore[arg-type]
    options = options.drop(columns=_idle(options))
    row: dict[str, Any] = {
        OPTION + str(name): str(value)
        for name, value in options.iloc[0].items()
        if value is not None  # null is not used: as if it were not there
        and (name in BUT_AN_OPTION or not str(name).startswith(NOT_AN_OPTION))
    }
    artifacts = result["artifacts"]
    learned = [stage for stage in ("recover", "transfer", "learn") if stage in artifacts][0]  # noqa: RUF015 (IndexError)
    row["setting"] = result.get("setting", "")  # the oldest results do not tell it
    row |= {"artifact": artifacts[learned], "run": str(run), "experiment": result["experiment"], "seed": result["seed"]}
    return row | {name: result["choices"].get(name, "none" if name == "quantization" else None) for name in LABELS}


def _idle(options: pd.DataFrame) -> list[str]:
    """Options of a quantisation that there is none of; the oldest runs do not have them."""
    bits = options.get("quantization.weight_bits")
    idle = bits is None or bits.isna().all()
    return [str(name) for name in options if idle and str(name).startswith("quantization.")]


def _dreams(setting: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    quality = result["dreams"]["quality"]
    metrics, real = quality["without_real_images"], quality.get("with_real_images", {})
    choices = result["choices"]
    verifier = choices["model" if choices.get("model@verifier.model", "None") == "None" else "model@verifier.model"]
    about = (name for name in setting if not name.startswith(OPTION) or name.startswith((*OF_DREAMS, OF_VERIFIERS)))
    return {
        **{name: setting[name] for name in about},
        "artifact": result["artifacts"]["dream"],
        "setting": result["dreams"].get("setting", ""),
        "dreams": result["dreams"]["count"] + result["dreams"]["held_out"],
        "iterations": result["dreams"]["iterations"],
        **metrics,
        "teacher_accuracy": result["dreams"]["teacher_accuracy"],  # None: nobody asked for a class
        "verifier": verifier if "verifier_accuracy" in metrics else "",
        "extractor": real.get("extractor", ""),
        **{f"real {name}": value for name, value in real.items()},
    }


def _audited(run: Path) -> dict[str, Any]:
    """How well `dfkd audit` told training images from test images by the dreams, where it was asked."""
    if not (run / AUDIT).exists():
        return {}
    distances = json.loads((run / AUDIT).read_text(encoding="utf-8"))["distances"]
    return {f"{name} AUC": float(found["auc"]) for name, found in distances.items()}


def on_device(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """What `dfkd export` and `dfkd benchmark` found out of the student, where they were asked."""
    row: dict[str, Any] = {}
    if (run / EXPORT).exists():
        exported = json.loads((run / EXPORT).read_text(encoding="utf-8")).get("int8", {})
        score = exported.get("networks", {}).get("int8", {}).get(network_scores(result)[0])
        row |= {} if score is None else {"int8": score}
    if (run / BENCHMARK).exists():
        networks = json.loads((run / BENCHMARK).read_text(encoding="utf-8"))["networks"]
        row |= {f"{name} KiB": network["bytes"] / 1024 for name, network in networks.items()}
        row |= {f"{name} ms": network["latency"][ONE_IMAGE]["median"] for name, network in networks.items()}
    return row


def _student(result: dict[str, Any]) -> dict[str, Any]:
    measure, scores = network_scores(result)
    student, timing = student_of(result), result["timing"]
    row = {"measure": measure, **scores}
    row |= {name: student[name] for name in ("sparsity", "parameters", "multiply_adds")}
    row |= {"bytes": student["bytes"]["dense"], "packed bytes": student["bytes"]["packed"]}
    return row | {"dream seconds": timing["dream"], "learn seconds": timing.get("recover", timing.get("transfer"))}
