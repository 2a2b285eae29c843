"""`dfkd export RUN`: a recovered student as files that other programs take, each checked against the student itself."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dfkd import config
from dfkd.errors import ConfigError, ModelError
from dfkd.files import replacing, write_json
from dfkd.models.freezing import frozen
from dfkd.models.student_file import load_student
from dfkd.reporting.run_files import STUDENT

ImageShape = tuple[int, int, int]


def export_onnx(student: nn.Module, path: Path, image_shape: ImageShape) -> dict[str, float]:
    """Write `student` as ONNX: `images` (batch, C, H, W) in normalised input space to `logits` (batch, classes).

    The batch may have any size. The file is run by onnxruntime on random images before it takes its place.

    Returns:
        `largest_difference` to PyTorch's logits, in units of their largest size.

    Raises:
        ConfigError: a package that this needs is missing.
        ModelError: the network cannot be exported, or its file gives other logits than it does.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ConfigError(f"dfkd export --format onnx needs {error.name}: pip install 'dfkd[onnx]'.") from error
    batches = [torch.randn(size, *image_shape) for size in (2, 5)]
    with replacing(path) as temporary, torch.no_grad(), frozen(student):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports every step
                program = torch.onnx.export(
                    student,
                    (batches[0],),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    input_names=["images"],
                    output_names=["logits"],
                    verbose=False,
                )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"PyTorch cannot export this {type(student).__name__} to ONNX: {error}") from error
        if program is None:
            raise ModelError(f"PyTorch exported no ONNX program of this {type(student).__name__}.")
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        differences = []
        for images in batches:
            expected = student(images)
            (logits,) = session.run(["logits"], {"images": images.numpy()})
            differences.append(((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()).item())
        if not max(differences) < 1e-3:
            raise ModelError(
                f"onnxruntime's logits of the exported {type(student).__name__} differ from PyTorch's by "
                f"{max(differences):.2g} of their size; the file was not kept."
            )
    return {"largest_difference": max(differences)}


def export_pytorch(student: nn.Module, path: Path, image_shape: ImageShape) -> dict[str, float]:
    """Write the dense state dict of `student`, for `torch.load(path, weights_only=True)`."""
    with replacing(path) as temporary:
        torch.save(student.state_dict(), temporary)
    return {}


# By name: the file, and what writes it and returns what it measured.
FORMATS: dict[str, tuple[str, Callable[[nn.Module, Path, ImageShape], dict[str, float]]]] = {
    "onnx": ("student.onnx", export_onnx),
    "pytorch": ("student.pt", export_pytorch),
}


def export_run(run: Path, formats: Sequence[str], out: Path) -> dict[str, Any]:
    """Export the student of a finished run into `out`, and write `export.json` there.

    Returns:
        Its content: by format, the file, its size in bytes, and what was measured of it.

    Raises:
        ConfigError: `run` holds no finished run.
    """
    for needed in (STUDENT, "config.yaml"):
        if not (run / needed).is_file():
            raise ConfigError(f"dfkd export: {run} must be the folder of a finished run, but it has no {needed}.")
    cfg = OmegaConf.load(run / "config.yaml")
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"dfkd export: {run / 'config.yaml'} must hold a run's configuration, but it holds a list.")
    student = load_student(run / STUDENT, config.instantiate("model", cfg.get("student") or cfg.model))
    files = {}
    for name in formats:
        file, write = FORMATS[name]
        measured = write(student, out / file, tuple(cfg.input.image_shape))
        files[name] = {"file": file, "bytes": (out / file).stat().st_size, **measured}
    write_json(out / "export.json", files)
    return files


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd export`."""
    parser = argparse.ArgumentParser(prog="dfkd export", description="A recovered student as files for deployment.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", nargs="+", choices=sorted(FORMATS), default=sorted(FORMATS), help="default: all")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN)")
    parsed = parser.parse_args(arguments)
    out = parsed.out or parsed.run
    for name, entry in export_run(parsed.run, parsed.format, out).items():
        print(f"{name}: {out / entry['file']}, {entry['bytes']:,} bytes")
