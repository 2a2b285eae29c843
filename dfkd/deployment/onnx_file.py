"""Networks as ONNX files: written and checked by onnxruntime, and run from there."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd.deployment.graph import needed
from dfkd.deployment.integers import without_quantizers, write_integers
from dfkd.errors import ArtifactError, ConfigError, ModelError
from dfkd.files import replacing
from dfkd.models.freezing import frozen
from dfkd.models.input_spec import InputSpec
from dfkd.quantization import quantized_layers

OPSET = 21  # the first with integers of four bits
ABOUT = "dfkd"  # the key of what a file knows of its input and classes


class OnnxFile:
    """A network in an ONNX file, run by onnxruntime on the CPU.

    Args:
        path: the file, with `images` (batch, C, H, W) for its input and `logits` (batch, classes) for its output.
        threads: that a run may use; 0: all.

    Raises:
        ConfigError: onnxruntime is missing.
        ArtifactError: onnxruntime cannot run the file.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        onnxruntime = needed("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        content = path.read_bytes()
        try:
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no class
            raise ArtifactError(f"{path} is no ONNX file that onnxruntime runs ({error}).") from error

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (N, classes) of images (N, C, H, W) in normalised input space."""
        return torch.from_numpy(self._session.run(["logits"], {"images": images.float().numpy()})[0])

    @property
    def about(self) -> tuple[InputSpec, list[str] | None]:
        """Input and classes of the network, and the names of these, None where they are not known.

        Raises:
            ArtifactError: the file does not say.
        """
        try:
            known = json.loads(self._session.get_modelmeta().custom_metadata_map[ABOUT])
            spec = InputSpec(
                tuple(known["image_shape"]), known["num_classes"], tuple(known["mean"]), tuple(known["std"])
            )
            return spec, known["class_names"]
        except (KeyError, ValueError, TypeError, ConfigError) as error:
            raise ArtifactError(
                f"The ONNX file does not say what its input and classes are ({error!r}): export it by dfkd export."
            ) from error


def describe(path: Path, spec: InputSpec, class_names: Sequence[str] | None) -> None:
    """Write into an ONNX file what its input and its classes are."""
    onnx = needed("onnx")
    model = onnx.load(str(path))
    about = json.dumps(asdict(spec) | {"class_names": None if class_names is None else list(class_names)})
    onnx.helper.set_model_props(model, {ABOUT: about})
    with replacing(path) as temporary:
        onnx.save(model, str(temporary))


def plain_onnx(student: nn.Module, source: Path, place: Path, image_shape: tuple[int, int, int]) -> Path:
    """The ONNX file of `student` without the rounding of inputs: `source`, or of a quantised one a file in `place`.

    Args:
        student: the network.
        source: its file, as `export_onnx` writes it.
        place: a folder.
        image_shape: (C, H, W) of its input.
    """
    if not quantized_layers(student):
        return source
    path = place / f"{source.stem}.plain.onnx"
    export_onnx(without_quantizers(student), path, image_shape)
    return path


def export_onnx(student: nn.Module, path: Path, image_shape: tuple[int, int, int]) -> dict[str, float]:
    """Write `student` as ONNX: `images` (batch, C, H, W) in normalised input space to `logits` (batch, classes).

    The batch may have any size. Quantised layers have their integers in the file, of four or eight bits, and
    QuantizeLinear and DequantizeLinear before them. The file is run by onnxruntime on random images before it takes its
    place.

    Returns:
        `largest_difference` to PyTorch's logits, in units of their largest size.

    Raises:
        ConfigError: a package that this needs is missing.
        ModelError: the network cannot be exported, or its file gives other logits than it does.
    """
    needed("onnxscript")  # by torch.onnx
    needed("onnxruntime")
    batches = [torch.randn(size, *image_shape) for size in (2, 5)]
    with replacing(path) as temporary, torch.no_grad(), frozen(student):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports every step
                program = torch.onnx.export(
                    without_quantizers(student),
                    (batches[0],),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    input_names=["images"],
                    output_names=["logits"],
                    opset_version=OPSET,
                    verbose=False,
                )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"PyTorch cannot export this {type(student).__name__} to ONNX: {error}") from error
        if program is None:
            raise ModelError(f"PyTorch exported no ONNX program of this {type(student).__name__}.")
        program.save(str(temporary))
        rounds = bool(quantized_layers(student))
        if rounds:
            write_integers(student, temporary)
        written = OnnxFile(temporary)
        differences = []
        for images in batches:
            expected = student(images)
            differences.append(((written(images) - expected).abs().max() / expected.abs().max()).item())
        # A value halfway between two of a grid goes one way here and the other way there.
        if not max(differences) < (0.3 if rounds else 1e-3):
            raise ModelError(
                f"onnxruntime's logits of the exported {type(student).__name__} differ from PyTorch's by "
                f"{max(differences):.2g} of their size; the file was not kept."
            )
    return {"largest_difference": max(differences)}
