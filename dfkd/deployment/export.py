"""`dfkd export RUN`: a recovered student as files that other programs take, each checked against the student itself."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dfkd.api import load_dreams
from dfkd.deployment.finished import finished_run, student_classes, student_tests
from dfkd.deployment.int8 import costly_layers, quantize_onnx
from dfkd.deployment.integers import runs_in_int8, without_quantizers
from dfkd.deployment.onnx_file import OnnxFile, describe, export_onnx, plain_onnx
from dfkd.dreams import Dreams
from dfkd.errors import ConfigError
from dfkd.evaluation.controls import noise_images, procedural_images
from dfkd.evaluation.scores import accuracy, agreement, answers
from dfkd.files import replacing, write_json
from dfkd.models.student_file import load_student
from dfkd.quantization import quantized_layers
from dfkd.real_data import Purpose
from dfkd.reporting.percent import percent
from dfkd.reporting.run_directory import EXPORT, EXPORTS
from dfkd.reporting.run_files import STUDENT
from dfkd.tasks.experiment import Experiment

log = logging.getLogger("dfkd")

CALIBRATION = 256  # images
TOO_MUCH = 0.01  # of accuracy or agreement, that int8 may cost before layers are named for it
NAMED = 5
CONTROLS = ("noise", "procedural", "real")


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        images: dreams that int8 is calibrated on.
        in_float: layers that int8 leaves in floating point.
        controls: what int8 is calibrated on beside, to compare: of `CONTROLS`.
        store: where the run's dreams are; None: where its configuration says.
    """

    images: int = CALIBRATION
    in_float: Sequence[str] = ()
    controls: Sequence[str] = ()
    store: Path | None = None


def export_pytorch(student: nn.Module, path: Path) -> None:
    """Write the dense state dict of `student`, for `torch.load(path, weights_only=True)`.

    Of a quantised student these are the weights on their grids; that inputs are rounded, the file cannot say.
    """
    with replacing(path) as temporary:
        torch.save(without_quantizers(student).state_dict(), temporary)


def export_int8(
    e: Experiment, student: nn.Module, dreams: Dreams, source: Path, path: Path, options: Options
) -> dict[str, Any]:
    """Write a run's student in int8, calibrated on the run's dreams, and say what that costs.

    Args:
        e: the run's experiment.
        student: its student; where it has learned with integers, its own scales are taken.
        dreams: the run's.
        source: the student's ONNX file.
        path: of the int8 file.
        options: as in `export_run`.

    Returns:
        `calibration`, its images; by network (`float`, or `student` where that is quantised; `int8`, and `int8 on ...`
        for each control) the `agreement` with the student on held-out dreams and the `accuracy` on test images, None
        where they cannot be known; `in_float`; and where int8 costs more than a point, `costly_layers`: the KL that
        each brings alone, in nats.

    Raises:
        ModelError: onnxruntime cannot quantise the network.
    """
    images = dreams.training.images[: options.images]  # the others are kept for what is scored on them
    if len(images) < options.images:
        log.warning("int8 is calibrated on %d dreams, of %d asked for: there are no more.", len(images), options.images)
    tests, held_out = student_tests(e), dreams.held_out.images if dreams.num_held_out else None
    before = "student" if quantized_layers(student) else "float"
    files = {before: source, "int8": path}
    with tempfile.TemporaryDirectory() as place:
        plain = plain_onnx(student, source, Path(place), e.spec.image_shape)
        quantize_onnx(plain, path, images, options.in_float, student)
        for name in options.controls:
            files[f"int8 on {name}"] = Path(place) / f"{name}.onnx"
            control = _control(name, e, len(images))
            quantize_onnx(plain, files[f"int8 on {name}"], control, options.in_float, student)
        scores = _scores(student_classes(e)[0].num_classes, files, held_out, tests)
        found = {"calibration": {"dreams": len(images)}, "networks": scores, "in_float": list(options.in_float)}
        cost = _cost(scores[before], scores["int8"])
        if cost > TOO_MUCH:
            found["costly_layers"] = dict(list(costly_layers(plain, images).items())[:NAMED])
    if cost > TOO_MUCH:
        log.warning(
            "int8 costs %s. The layers that it costs most in: %s. Keep them in floating point: --in-float %s",
            percent(cost), ", ".join(found["costly_layers"]), " ".join(found["costly_layers"]),
        )  # fmt: skip
    return found


def _cost(before: dict[str, float | None], after: dict[str, float | None]) -> float:
    for kind in ("accuracy", "agreement"):
        had, has = before[kind], after[kind]
        if had is not None and has is not None:
            return had - has
    return 0.0


def _scores(
    classes: int, files: dict[str, Path], held_out: Tensor | None, tests: Dataset[Any] | None
) -> dict[str, Any]:
    networks = {name: OnnxFile(file) for name, file in files.items()}
    expected = None if held_out is None else next(iter(networks.values()))(held_out).argmax(1)
    scores: dict[str, Any] = {name: {"agreement": None, "accuracy": None} for name in networks}
    for name, network in networks.items():
        if held_out is not None and expected is not None:
            scores[name]["agreement"] = agreement(network(held_out).argmax(1), expected)
        if tests is not None:
            logits, labels = answers(network, tests)
            scores[name]["accuracy"] = accuracy(logits.argmax(1), labels, classes)
    return scores


def _control(name: str, e: Experiment, count: int) -> Tensor:
    if name == "noise":
        return noise_images(count, e.spec.image_shape, e.seed).images
    if name == "procedural":
        return procedural_images(count, e.spec, e.seed, e.inversion.start_families).images
    real = e.images(Purpose.REAL_DATA_CONTROL).open()
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(e.seed))[:count]  # type: ignore[arg-type]
    return torch.stack([real[index][0] for index in chosen.tolist()])


def export_run(run: Path, formats: Sequence[str] | None, out: Path, options: Options | None = None) -> dict[str, Any]:
    """Export the student of a finished run into `out`, and write `export.json` there.

    Args:
        run: the folder of the run.
        formats: of `EXPORTS`; None: all, but int8 only where the run's dreams are still there, and no layer of the
            student takes inputs of fewer bits, which integers of eight do not round.
        out: the folder of the files.
        options: for int8.

    Returns:
        What `export.json` holds: by format, the file, its size in bytes, and what was measured of it.

    Raises:
        ConfigError: `run` holds no finished run, or int8 is asked for where it cannot be.
    """
    options = options or Options()
    experiment = finished_run(run)
    student = load_student(run / STUDENT, experiment.student.build())
    spec, names = student_classes(experiment)
    dreams = _dreams(run, student, formats, options.store)
    wanted = EXPORTS if formats is None else formats
    files: dict[str, Any] = {}

    def note(name: str, measured: dict[str, Any]) -> None:
        files[name] = {"file": EXPORTS[name], "bytes": (out / EXPORTS[name]).stat().st_size, **measured}

    if "pytorch" in wanted:
        export_pytorch(student, out / EXPORTS["pytorch"])
        note("pytorch", {})
    if "onnx" in wanted or dreams is not None:
        measured = export_onnx(student, out / EXPORTS["onnx"], spec.image_shape)
        describe(out / EXPORTS["onnx"], spec, names)
        note("onnx", measured)
    if dreams is not None:
        measured = export_int8(experiment, student, dreams, out / EXPORTS["onnx"], out / EXPORTS["int8"], options)
        describe(out / EXPORTS["int8"], spec, names)
        note("int8", measured)
    write_json(out / EXPORT, files)
    return files


def _dreams(run: Path, student: nn.Module, formats: Sequence[str] | None, store: Path | None) -> Dreams | None:
    """The dreams that int8 is calibrated on; None where it is not asked for, or not by name and cannot be."""
    if formats is not None and "int8" not in formats:
        return None
    if not runs_in_int8(student):
        why = f"the student's layers take inputs of fewer than eight bits, as {EXPORTS['onnx']} has them"
        if formats is not None:
            raise ConfigError(f"--format int8 cannot be: {why}.")
        log.warning("int8 is left out: %s.", why)
        return None
    try:
        return load_dreams(run, store)
    except ConfigError as error:
        if formats is not None:
            raise
        log.warning("int8 is left out: %s (--store)", error)
        return None


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd export`."""
    parser = argparse.ArgumentParser(prog="dfkd export", description="A recovered student as files for deployment.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", nargs="+", choices=sorted(EXPORTS), help="default: all")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN)")
    parser.add_argument(
        "--images", type=int, default=CALIBRATION, help=f"dreams that int8 is calibrated on (default: {CALIBRATION})"
    )
    parser.add_argument("--in-float", nargs="+", default=[], metavar="LAYER", help="layers that int8 leaves in float")
    parser.add_argument(
        "--controls", nargs="*", choices=CONTROLS, default=[], help="calibrate int8 on these as well, to compare"
    )
    parser.add_argument("--store", type=Path, help="where the run's dreams are (default: as in its configuration)")
    parsed = parser.parse_args(arguments)
    if parsed.images < 1:
        raise ConfigError(f"--images must be 1 or more, got {parsed.images}.")
    out = parsed.out or parsed.run
    options = Options(parsed.images, parsed.in_float, parsed.controls, parsed.store)
    for name, entry in export_run(parsed.run, parsed.format, out, options).items():
        print(f"{name}: {out / entry['file']}, {entry['bytes']:,} bytes")
        for network, scores in entry.get("networks", {}).items():
            print(f"  {network}: accuracy {percent(scores['accuracy'])}, agreement {percent(scores['agreement'])}")
