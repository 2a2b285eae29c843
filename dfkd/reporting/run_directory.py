"""What a finished run leaves in its directory, and in wandb."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from torchvision.utils import make_grid

from dfkd.dreams import Dreams
from dfkd.files import write_json, write_text
from dfkd.models.input_spec import InputSpec
from dfkd.models.student_file import save_student
from dfkd.pruning.sparsity import layer_sparsity
from dfkd.reporting.figures import dream_grid, dreams_over_time, recovery_bars, save_figure
from dfkd.reporting.result import build_result, view
from dfkd.tasks import DistillationPipeline, Pipeline

STUDENT = "student.safetensors"
PACKED_STUDENT = "student.packed.safetensors"
GRID = 50  # dreams in a picture
STREAM_PICTURE = "stream.png"


def write_run(pipeline: Pipeline, scores: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write everything but the log and `config.yaml`; `result.json` comes last, so that it tells a finished run.

    Returns:
        The content of `result.json`.
    """
    student = pipeline.network(pipeline.stages[-2])
    save_student(directory / STUDENT, student)
    save_student(directory / PACKED_STUDENT, student, packed=True)
    sizes = {"dense": (directory / STUDENT).stat().st_size, "packed": (directory / PACKED_STUDENT).stat().st_size}
    result = build_result(pipeline, scores, sizes)
    _write_csv(
        directory / "sparsity.csv",
        ["layer", "shape", "weights", "zeros", "sparsity"],
        [
            [layer.layer, "x".join(map(str, layer.shape)), layer.weights, layer.zeros, f"{layer.sparsity:.6f}"]
            for layer in layer_sparsity(student)
        ],
    )
    _write_csv(directory / "metrics.csv", ["stage", "batch", "step", "metric", "value"], _metrics(pipeline))
    save_figure(dream_grid(pipeline.dreams(), pipeline.experiment.spec), directory / "dreams.png")
    streamed = pipeline.streamed() if isinstance(pipeline, DistillationPipeline) else []
    (directory / STREAM_PICTURE).unlink(missing_ok=True)  # of an earlier run into this directory
    if streamed:
        save_figure(dreams_over_time(streamed, pipeline.experiment.spec), directory / STREAM_PICTURE)
    save_figure(recovery_bars(*view(result).bars(result)), directory / "recovery.png")
    write_json(directory / "result.json", result)
    return result


def log_run(result: dict[str, Any], directory: Path, loggers: Sequence[Logger]) -> None:
    """Send the pictures, the table and the result's numbers to the wandb loggers."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for picture in ("dreams.png", STREAM_PICTURE, "recovery.png"):
                if (directory / picture).exists():
                    logger.log_image(Path(picture).stem, [str(directory / picture)])
            columns, rows = view(result).table(result)
            logger.log_table("result", columns=columns, data=[list(row) for row in rows])
            logger.experiment.summary.update(_numbers(result))


def log_growth(loggers: Sequence[Logger], spec: InputSpec, dreams: Dreams, row: dict[str, float]) -> None:
    """Send a picture of dreams that were just made to the wandb loggers."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            pixels = make_grid(spec.to_pixels(dreams.images[:GRID]), nrow=10)
            logger.log_image("stream/dreams", [pixels], step=int(row["update"]))


def _metrics(pipeline: Pipeline) -> Iterable[list[Any]]:
    for stage, artifact in pipeline.artifacts.items():
        for row in artifact.notes.get("history", []):
            step = row.get("update", row.get("iteration"))
            for name, value in row.items():
                if name not in ("batch", "update", "iteration"):
                    yield [stage, row.get("batch", ""), step, name, value]
        for row in artifact.notes.get("stream", []):
            yield from (["stream", "", row["update"], name, value] for name, value in row.items() if name != "update")


def _numbers(content: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{key}"] = value
    return flat


def _write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
