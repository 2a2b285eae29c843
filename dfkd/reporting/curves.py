"""`metrics.csv`: every curve of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfkd.files import write_text
from dfkd.stages.stage import histories
from dfkd.store import Product
from dfkd.training.metrics import NOT_A_METRIC, step_of

CURVES = "metrics.csv"


def write_curves(products: Mapping[str, Product], directory: Path) -> None:
    """Write the curves of the stages that have made a product."""
    write_csv(directory / CURVES, ["stage", "batch", "step", "metric", "value"], _rows(products))


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _rows(products: Mapping[str, Product]) -> Iterable[list[Any]]:
    for stage, product in products.items():
        for name, history in histories(stage, product).items():
            for row in history:
                step = row.get("iteration", step_of(row))  # of a batch of dreams; its number stands beside it
                for metric, value in row.items():
                    if metric not in NOT_A_METRIC:
                        yield [name, row.get("batch", ""), step, metric, value]
