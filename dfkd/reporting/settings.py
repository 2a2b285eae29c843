"""Which runs are one setting: equal in everything but the seed. Tables and plots take means over nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

OPTION = "option "  # before the name of a column that holds an option of the configuration
LABELS = (
    "model",
    "pruning",
    "quantization",
    "inversion",
    "distillation",
)  # choices that name a setting where they differ


def settings(
    runs: pd.DataFrame, labels: Sequence[str], apart_from: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Runs that differ in their seed alone, under their labels and the options in which runs of equal labels differ.

    Args:
        runs: rows with the columns `labels`, `option NAME` and `setting`, a digest of all that the configuration does
            not show, such as the content of files.
        labels: columns that a setting is named by.
        apart_from: options that do not tell settings apart: what a curve is drawn against.
    """
    names = {OPTION + name for name in apart_from}
    options = [str(column) for column in runs if str(column).startswith(OPTION) and column not in names]
    telling = _telling(runs, list(labels), options)
    if not apart_from and len(_telling(runs, [*labels, *telling], ["setting"])):
        telling.append("setting")
    told = runs.assign(**{name: runs[name].fillna("") for name in telling})
    shown = [*labels, *(name.removeprefix(OPTION) for name in telling)]
    for key, group in told.groupby([*labels, *telling], dropna=False, sort=False):
        yield dict(zip(shown, key, strict=True)), group


def _telling(runs: pd.DataFrame, labels: list[str], columns: list[str]) -> list[str]:
    by_label = runs.groupby(labels, dropna=False)
    return [column for column in columns if (by_label[column].nunique(dropna=False) > 1).any()]


def named_settings(
    runs: pd.DataFrame, labels: Sequence[str], apart_from: Sequence[str] = ()
) -> list[tuple[str, pd.DataFrame]]:
    """The same, each under one name made of what tells it from the others."""
    found = list(settings(runs, labels, apart_from))
    differ = [part for part in found[0][0] if len({str(row[part]) for row, _ in found}) > 1] if found else []

    def name(row: dict[str, Any]) -> str:
        told = {part: str(row[part]) for part in differ if str(row[part])}
        return ", ".join(value if part in labels else f"{part}={value}" for part, value in told.items())

    return [(name(row), group) for row, group in found]
