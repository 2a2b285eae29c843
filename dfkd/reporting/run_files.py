"""The files that tell what a run found out, and the same for the loggers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfkd.files import write_json, write_text
from dfkd.models.student_file import save_student
from dfkd.pruning.sparsity import layer_sparsity
from dfkd.reporting.figures import dream_grid, dreams_over_time, recovery_bars, save_figure
from dfkd.reporting.record import Record
from dfkd.reporting.result import build_result, view
from dfkd.reporting.run_directory import PICTURE, RESULT, SO_FAR, STREAM_PICTURE
from dfkd.stages.stage import histories
from dfkd.training.metrics import NOT_A_METRIC, Metrics, step_of

STUDENT = "student.safetensors"
PACKED_STUDENT = "student.packed.safetensors.gz"


def write_run(record: Record, directory: Path) -> dict[str, Any]:
    """Write everything that a run found out, but for the log and `config.yaml`.

    Returns:
        The content of `result.json`.
    """
    save_student(directory / STUDENT, record.student)
    save_student(directory / PACKED_STUDENT, record.student, packed=True)
    sizes = {"dense": (directory / STUDENT).stat().st_size, "packed": (directory / PACKED_STUDENT).stat().st_size}
    result = build_result(record, sizes)
    _write_csv(
        directory / "sparsity.csv",
        ["layer", "shape", "weights", "zeros", "sparsity"],
        [
            [layer.layer, "x".join(map(str, layer.shape)), layer.weights, layer.zeros, f"{layer.sparsity:.6f}"]
            for layer in layer_sparsity(record.student)
        ],
    )
    _write_csv(directory / "metrics.csv", ["stage", "batch", "step", "metric", "value"], _metrics(record))
    save_figure(dream_grid(record.dreams, record.spec), directory / PICTURE)
    if record.streamed:
        save_figure(dreams_over_time(record.streamed, record.spec), directory / STREAM_PICTURE)
    save_figure(recovery_bars(*view(result).bars(result)), directory / "recovery.png")
    write_json(directory / RESULT, result)
    (directory / SO_FAR).unlink(missing_ok=True)
    return result


def log_run(result: dict[str, Any], directory: Path, metrics: Metrics) -> None:
    """Send the pictures, the table and the numbers that runs are compared by to the loggers that take them."""
    for picture in (PICTURE, STREAM_PICTURE, "recovery.png"):
        if (directory / picture).exists():
            metrics.picture(f"result/{Path(picture).stem}", directory / picture)
    metrics.table("result/table", *view(result).table(result))
    log_numbers(view(result).key_numbers(result) | {"seconds": result["timing"]["total"]}, metrics)


def log_numbers(numbers: Mapping[str, float], metrics: Metrics) -> None:
    """Send numbers that runs are compared by."""
    metrics.summary({f"result/{name}": value for name, value in numbers.items()})


def _metrics(record: Record) -> Iterable[list[Any]]:
    for stage, product in record.products.items():
        for name, history in histories(stage, product).items():
            for row in history:
                step = row.get("iteration", step_of(row))  # of a batch of dreams; its number stands beside it
                for metric, value in row.items():
                    if metric not in NOT_A_METRIC:
                        yield [name, row.get("batch", ""), step, metric, value]


def _write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
