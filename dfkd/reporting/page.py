"""The report as one HTML file that needs nothing else: no network, no server, no file beside it.

Runs come from folders that anyone may have written. So everything that is read is escaped, pictures are decoded and
encoded again, and the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dfkd.reporting.plots import AMOUNT, SCORES
from dfkd.reporting.reading import Runs
from dfkd.reporting.result import view
from dfkd.reporting.run_directory import COMMAND, PICTURE, RESULT
from dfkd.reporting.settings import LABELS, OPTION, named_settings

PICTURE_WIDTH = 900  # pixels
NETWORKS = ("teacher", "pruned", "recovered", "student", "batchnorm", "noise", "procedural", "real")
NUMBER = re.compile(r"$|[\d.,]+( |$)")  # a cell may be empty, or tell the spread after the mean


def page(runs: Runs, over_seeds: Mapping[str, pd.DataFrame]) -> str:
    """The HTML of a report.

    Args:
        runs: what was read from the folders.
        over_seeds: further tables, by their titles.
    """
    loader = PackageLoader("dfkd.reporting", "html")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    names = _short_names([run for table in (runs.students, runs.incremental) if len(table) for run in table["run"]])
    students = _students(runs.students, names)
    return environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=_columns(students),
        students=students,
        runs=[_run(Path(run), name) for run, name in names.items()],
        dreams=_pictures(names),
        tables={title: _aligned(table) for title, table in over_seeds.items()},
        others=runs.others.to_dict("records"),
    )


def _short_names(runs: list[str]) -> dict[str, str]:
    """Names of runs by their directories, without the folder that all have in common."""
    if not runs:
        return {}
    common = os.path.commonpath([Path(run).absolute().parent for run in runs])
    return {run: os.path.relpath(run, common) for run in runs}


def _students(runs: pd.DataFrame, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One dictionary per student, of plain values: what its row shows, and what the plots are drawn from."""
    if runs.empty:
        return []
    lines = _setting_of_each(runs, ["model", *LABELS[1:], "measure"], [AMOUNT])
    settings = _setting_of_each(runs, [*LABELS, "measure"])
    places = {run: number for number, run in enumerate(names)}
    found = []
    for index, row in runs.iterrows():
        scores = {name: 100 * row[name] for name in NETWORKS if _known(row[name]) is not None}
        result = _result(Path(row["run"]))
        found.append({
            "place": places[row["run"]],
            "name": names[row["run"]],
            "setting": settings[index],
            "line": lines[index],
            "amount": str(row.get(OPTION + AMOUNT, "")),
            "model": row["model"],
            "measure": row["measure"],
            "seed": int(row["seed"]),
            "sparsity": _known(100 * row["sparsity"]),
            **scores,
            "score": scores.get("recovered", scores.get("student")),
            "seconds": _known(row["dream seconds"] + row["learn seconds"]),
            "kilobytes": _known(row["packed bytes"] / 1000),
            "int8": _known(100 * row.get("int8", math.nan)),
            "milliseconds": _known(row.get("student ms", math.nan)),
            "int8_milliseconds": _known(row.get("student int8 ms", math.nan)),
            "doubts": len(result.get("warnings", [])),
        })  # fmt: skip
    return found


def _known(value: Any) -> float | None:
    """A number that JSON can hold; None where it is missing or not finite."""
    return float(value) if pd.notna(value) and math.isfinite(value) else None


def _setting_of_each(runs: pd.DataFrame, labels: list[str], apart_from: list[str] | None = None) -> dict[Any, str]:
    named = named_settings(runs, labels, apart_from or [])
    return {index: name for name, group in named for index in group.index}


def _columns(students: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's columns of numbers: those in which a student has a value."""
    known = {key for student in students for key, value in student.items() if value is not None}
    columns = [("sparsity", "sparsity", 1), *((name, SCORES[name], 1) for name in NETWORKS), ("seconds", "seconds", 0)]
    columns += [("kilobytes", "KB", 0), ("int8", "int8", 1), ("milliseconds", "ms", 3)]
    columns += [("int8_milliseconds", "int8 ms", 3), ("seed", "seed", 0), ("doubts", "doubts", 0)]
    return [{"key": key, "title": title, "digits": digits} for key, title, digits in columns if key in known]


def _aligned(table: pd.DataFrame) -> dict[str, Any]:
    """A table's columns, each with whether it holds text, which is aligned to the left; and its rows."""
    rows = table.to_numpy().tolist()
    text = [not all(NUMBER.match(str(row[place])) for row in rows) for place in range(len(table.columns))]
    return {"columns": list(zip(table.columns, text, strict=True)), "rows": rows}


def _result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / RESULT).read_text(encoding="utf-8"))
    return result


def _run(run: Path, name: str) -> dict[str, Any]:
    """What is told of one run."""
    result = _result(run)
    columns, rows = view(result).table(result)
    command = run / COMMAND
    return {
        "name": name,
        "directory": str(run),
        "columns": columns,
        "rows": rows,
        "summary": view(result).summary(result),
        "warnings": result.get("warnings", []),
        "command": command.read_text(encoding="utf-8", errors="replace").strip() if command.is_file() else None,
    }


def _pictures(names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The grid of each set of dreams, once, and which runs learned from it (their place and name)."""
    sets: dict[str, list[tuple[int, str, Path]]] = {}
    for place, (run, name) in enumerate(names.items()):
        sets.setdefault(_result(Path(run))["artifacts"]["dream"], []).append((place, name, Path(run) / PICTURE))
    grids = []
    for members in sets.values():
        picture = next((found for _, _, path in members if (found := _embedded(path))), None)
        if picture is not None:
            grids.append({"runs": [(place, name) for place, name, _ in members], "picture": picture})
    return grids


def _embedded(path: Path) -> str | None:
    """A picture as a data URI, scaled; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if picture.width > PICTURE_WIDTH:
        height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
        picture = picture.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
