"""The files that tell what a run found out, and the same for the loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfkd.files import write_json
from dfkd.models.student_file import save_student
from dfkd.pruning.sparsity import layer_sparsity
from dfkd.reporting.curves import write_csv, write_curves
from dfkd.reporting.figures import dream_grid, dreams_over_time, recovery_bars, save_figure
from dfkd.reporting.record import Record
from dfkd.reporting.result import build_result, view
from dfkd.reporting.run_directory import PICTURE, RESULT, SO_FAR, STREAM_PICTURE
from dfkd.training.metrics import Metrics

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
    write_csv(
        directory / "sparsity.csv",
        ["layer", "shape", "weights", "zeros", "sparsity"],
        [
            [layer.layer, "x".join(map(str, layer.shape)), layer.weights, layer.zeros, f"{layer.sparsity:.6f}"]
            for layer in layer_sparsity(record.student)
        ],
    )
    write_curves(record.products, directory)
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
