"""Post-training quantisation to int8: an ONNX file that integer units run, its ranges taken from images.

Weights are int8 per output channel, activations uint8 per tensor, both between the smallest and the largest value seen
(Jacob et al. 2018), by onnxruntime's static quantisation in the QDQ form.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.deployment.graph import layers_of, needed, prepare, quiet
from dfkd.deployment.integers import overrides
from dfkd.deployment.onnx_file import OnnxFile
from dfkd.errors import ConfigError, ModelError
from dfkd.files import replacing

BATCH = 32


def quantize_onnx(
    source: Path, path: Path, images: Tensor, in_float: Sequence[str] = (), student: nn.Module | None = None
) -> None:
    """Write the int8 form of an ONNX file.

    Args:
        source: the file in floating point, as `export_onnx` writes it.
        path: of the int8 file.
        images: (N, C, H, W) in normalised input space, whose activations give the ranges (the calibration).
        in_float: names of layers that are left in floating point, as `layers_of` has them.
        student: a network that has learned with integers, whose own scales are taken where it has some.

    Raises:
        ConfigError: a package is missing, there is no image, or no layer of such a name.
        ModelError: onnxruntime cannot quantise the network, or run what came of it.
    """
    if not len(images):
        raise ConfigError("calibration needs one image or more, got none.")
    nodes = layers_of(source)
    for name in in_float:
        if name not in nodes:
            raise ConfigError(f"in_float must name layers of the network, got {name!r}. It has {', '.join(nodes)}.")
    quantization = needed("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        batches: Iterator[Tensor] = iter(images.float().split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as place, replacing(path) as temporary, quiet():
        prepared = Path(place) / "prepared.onnx"
        try:
            prepare(source, prepared)
            learned = {} if student is None else overrides(student, prepared, nodes)
            quantization.quantize_static(
                str(prepared), str(temporary), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                weight_type=quantization.QuantType.QInt8, activation_type=quantization.QuantType.QUInt8,
                nodes_to_exclude=[nodes[name] for name in in_float],
                extra_options={"TensorQuantOverrides": learned},
            )  # fmt: skip
            OnnxFile(temporary)(images[:1])
        except Exception as error:  # onnxruntime's own exceptions share no class
            raise ModelError(f"onnxruntime cannot quantise {source.name} to int8: {error}") from error


def costly_layers(source: Path, images: Tensor) -> dict[str, float]:
    """How far int8 in one layer alone takes the network: KL(float || one layer in int8) by layer, the farthest first.

    Args:
        source: the file in floating point.
        images: (N, C, H, W), for the ranges and for the distance.
    """
    expected = OnnxFile(source)(images).log_softmax(1)
    names = list(layers_of(source))
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            alone = Path(place) / "alone.onnx"
            quantize_onnx(source, alone, images, [other for other in names if other != name])
            logits = OnnxFile(alone)(images).log_softmax(1)
            found[name] = F.kl_div(logits, expected, reduction="batchmean", log_target=True).item()
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))
